//! A damaged database never keeps the master from starting: it is set aside, whole, under a name that
//! says when and why, and what can still be read of the roll and of the newest events moves to a new one.

use std::path::Path;

use rollcall_protocol::api::EventRow;
use rusqlite::{Connection, Row, Transaction, params};

use super::checksum;
use super::events;
use super::fault::is_environment;
use super::files;
use super::load::{load, open_checked};
use super::rows::{RedoRow, SlaveRow, State};
use super::schema::{self, Database};
use super::{Loaded, StoreError};

/// Newest events carried over from a damaged database.
const EVENTS_CARRIED_MAX: usize = 10_000;

/// Opens the database; if it is damaged, sets it aside and makes a new one.
pub(super) fn open_or_set_aside(path: &Path) -> Result<(Database, Loaded), StoreError> {
    let why = match open_checked(path) {
        Ok((database, mut loaded)) => {
            loaded.set_aside_files = files::set_aside_files(path);
            return Ok((database, loaded));
        }
        Err(StoreError::Sqlite { source, .. }) if !is_environment(&source) => source,
        Err(error) => return Err(error),
    };
    let aside = files::set_aside(path, &why)?;
    let rescued = Rescued::read(&aside);
    tracing::error!(
        event = "store_set_aside",
        path = %path.display(),
        aside = %aside.display(),
        error = %why,
        slaves = rescued.slaves.rows.len(),
        redo_groups = rescued.redo.rows.len(),
        events = rescued.events.rows.len(),
        damaged = rescued.damaged(),
        "the database is damaged and was set aside; what could be read of the roll and the newest events was carried over: look at it with `sqlite3 FILE .recover`"
    );
    let mut database = schema::open(path)?;
    let written = rescued.write(&mut database.connection);
    written.map_err(|source| database.fault("carry the roll over to", source))?;
    let (mut loaded, _) =
        load(&database.connection).map_err(|source| database.fault("read", source))?;
    loaded.set_aside = Some(aside);
    loaded.set_aside_files = files::set_aside_files(path);
    Ok((database, loaded))
}

/// The rows of a table that can be read, and how many that were met can't.
#[derive(Debug)]
struct Readable<T> {
    rows: Vec<T>,
    damaged: usize,
}

impl<T> Default for Readable<T> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            damaged: 0,
        }
    }
}

impl<T> Readable<T> {
    /// From the first row on, and where SQLite can't go on, from the last row back.
    fn read(
        connection: &Connection,
        select: &str,
        of: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
        key: impl Fn(&T) -> i64,
    ) -> Self {
        let mut found = Self::default();
        let whole = found.extend(connection, &format!("{select} ORDER BY key"), &of, |_| {
            false
        });
        if !whole {
            let newest = found.rows.iter().map(&key).max();
            let from = found.rows.len();
            let is_known = |row: &T| newest.is_some_and(|newest| key(row) <= newest);
            found.extend(
                connection,
                &format!("{select} ORDER BY key DESC"),
                &of,
                is_known,
            );
            found.rows[from..].reverse();
        }
        found
    }

    /// Whether the end was reached.
    fn extend(
        &mut self,
        connection: &Connection,
        query: &str,
        of: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
        is_end: impl Fn(&T) -> bool,
    ) -> bool {
        let Ok(mut statement) = connection.prepare(query) else {
            self.damaged += 1;
            return false;
        };
        let mut rows = statement.raw_query();
        loop {
            match rows.next() {
                Ok(Some(row)) => match of(row) {
                    Ok(row) if is_end(&row) => return true,
                    Ok(row) => self.rows.push(row),
                    Err(_damaged) => self.damaged += 1,
                },
                Ok(None) => return true,
                Err(_damaged) => {
                    self.damaged += 1;
                    return false;
                }
            }
        }
    }
}

/// What a damaged database still gives.
#[derive(Debug, Default)]
struct Rescued {
    state: Option<State>,
    slaves: Readable<SlaveRow>,
    redo: Readable<RedoRow>,
    events: Readable<EventRow>,
}

impl Rescued {
    fn read(aside: &Path) -> Self {
        // Opening an empty file would remove the log beside it.
        if files::is_empty(aside) {
            return Self::default();
        }
        let Ok(connection) = schema::open_read_only(aside) else {
            return Self::default();
        };
        let mut events = Readable::default();
        events.extend(
            &connection,
            &format!(
                "SELECT * FROM events NOT INDEXED ORDER BY id DESC LIMIT {EVENTS_CARRIED_MAX}"
            ),
            events::verified,
            |_| false,
        );
        events.rows.reverse();
        Self {
            state: State::read(&connection).ok(),
            slaves: Readable::read(&connection, SlaveRow::SELECT, SlaveRow::verified, |row| {
                row.key
            }),
            redo: Readable::read(&connection, RedoRow::SELECT, RedoRow::verified, |row| {
                row.key
            }),
            events,
        }
    }

    /// Rows, or stretches of rows, that could not be read.
    fn damaged(&self) -> usize {
        usize::from(self.state.is_none())
            + self.slaves.damaged
            + self.redo.damaged
            + self.events.damaged
    }

    fn write(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        for slave in &self.slaves.rows {
            transaction
                .prepare_cached(
                    "INSERT OR IGNORE INTO slaves (id, name, presence, health, last_seen_ms, record, checksum)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    slave.id,
                    slave.name,
                    slave.presence,
                    slave.health,
                    slave.last_seen_ms,
                    slave.record,
                    slave.columns().checksum()
                ])?;
        }
        for redo in &self.redo.rows {
            transaction
                .prepare_cached(
                    "INSERT OR IGNORE INTO redo (group_id, reports, checksum) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![
                    redo.key,
                    redo.reports,
                    checksum::of_redo(redo.key, &redo.reports)
                ])?;
        }
        events::insert(&transaction, &self.events.rows)?;
        self.write_state(&transaction)?;
        transaction.commit()
    }

    /// The numbers go on behind whatever was carried over.
    fn write_state(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let mut state = match &self.state {
            Some(state) => state.clone(),
            None => State::read(transaction)?,
        };
        let after = |newest: Option<i64>| newest.map_or(1, |newest| newest.saturating_add(1));
        let newest_group = self.redo.rows.iter().map(|row| row.key).max();
        let newest_event = self.events.rows.iter().map(|row| row.id).max();
        state.next_group = state.next_group.max(after(newest_group));
        state.next_event = state.next_event.max(after(newest_event));
        state.write(transaction)
    }
}
