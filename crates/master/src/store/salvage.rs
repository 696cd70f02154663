//! A damaged database never keeps the master from starting: it is set aside, whole, under a name that
//! says when and why, and what can still be read of the roll and of the newest events moves to a new one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rollcall_os::clock;
use rollcall_protocol::api::EventRow;
use rusqlite::{Connection, ErrorCode, Row, Transaction, params};

use super::checksum;
use super::events;
use super::fault::{is_environment, is_sync_failure};
use super::rows::{RedoRow, SlaveRow, State};
use super::schema::{self, Database};
use super::{Loaded, StoreError, file_time};

/// Beside the database: "a write has met damage, check the whole file at the next start".
pub(super) const SUSPECT_SUFFIX: &str = ".suspect";
/// SQLite keeps the last commits in the first, and an index of them in the second.
const COMPANION_SUFFIXES: [&str; 2] = ["-wal", "-shm"];
/// Beside a database only while it is being made: after that changes go to the log.
const MAKING_SUFFIX: &str = "-journal";
/// A file up to this size is checked whole at every start; of a larger one the tables that hold the
/// roll, unless there is a reason to suspect the rest.
const CHECKED_WHOLE_BYTES_MAX: u64 = 16 << 20;
/// A file below it has no whole header; SQLite takes it for an empty one.
const DATABASE_BYTES_MIN: u64 = 512;
/// Newest events carried over from a damaged database.
const EVENTS_CARRIED_MAX: usize = 10_000;

/// Opens the database; if it is damaged, sets it aside and makes a new one.
pub(super) fn open_or_set_aside(path: &Path) -> Result<(Database, Loaded), StoreError> {
    let why = match open_checked(path) {
        Ok((database, mut loaded)) => {
            loaded.set_aside_files = set_aside_files(path);
            return Ok((database, loaded));
        }
        Err(StoreError::Sqlite { source, .. }) if !is_environment(&source) => source,
        Err(error) => return Err(error),
    };
    let aside = set_aside(path, &why)?;
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
    loaded.set_aside_files = set_aside_files(path);
    Ok((database, loaded))
}

/// Leaves word for the next start that the whole file must be checked. Best effort: it is called
/// when the disk is already in doubt.
pub(super) fn mark_suspect(path: &Path) {
    let marker = with_suffix(path, SUSPECT_SUFFIX);
    if let Err(error) = fs::write(&marker, b"") {
        tracing::warn!(
            event = "store_mark_failed",
            path = %marker.display(),
            error = %error,
            "could not leave word that the database needs a check"
        );
    }
}

/// Databases that were set aside, now or earlier, and are still there.
pub(super) fn set_aside_files(path: &Path) -> usize {
    let entries = path.parent().and_then(|folder| fs::read_dir(folder).ok());
    let entries = entries.into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // Of one whose file was gone there is only the log.
    let asides = names.filter_map(|name| {
        let base = name.strip_suffix(COMPANION_SUFFIXES[0]).unwrap_or(&name);
        (base.starts_with("master.") && base.ends_with("Z.db")).then(|| base.to_owned())
    });
    asides.collect::<BTreeSet<_>>().len()
}

fn open_checked(path: &Path) -> Result<(Database, Loaded), StoreError> {
    refuse_disguised(path)?;
    let log_is_there = length(&with_suffix(path, COMPANION_SUFFIXES[0])) > Some(0);
    let database = schema::open(path)?;
    let marker = with_suffix(path, SUSPECT_SUFFIX);
    let suspected = marker.exists();
    let checked = check_as_at_start(&database.connection, path, suspected);
    checked.map_err(|source| database.fault("check", source))?;
    if suspected {
        remove_if_there(&marker)?;
    }
    let (mut loaded, was_open) =
        load(&database.connection).map_err(|source| database.fault("read", source))?;
    loaded.log_missing = was_open && !log_is_there;
    if loaded.log_missing {
        tracing::warn!(
            event = "store_log_missing",
            path = %path.display(),
            "the last run did not end in order and its write-ahead log is gone: what it had stored last is lost, unless another program has folded it in"
        );
    }
    if let Err(error) = set_open(&database.connection, true) {
        if is_sync_failure(&error) {
            return Err(database.fault("sync", error));
        }
        tracing::warn!(event = "store_mark_failed", path = %path.display(), error = %error, "could not note in the database that it is in use");
    }
    Ok((database, loaded))
}

/// Notes in the database's file itself, not only in its log, whether a writer has it open. Best
/// effort: a full disk must not keep the daemon from starting.
pub(super) fn set_open(connection: &Connection, is_open: bool) -> rusqlite::Result<()> {
    let state = State::read(connection)?;
    State { is_open, ..state }.write(connection)?;
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_folded| Ok(()))
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|file| file.len())
}

/// What SQLite would take for something else: an empty file for a new database, whose log it throws
/// away; a damaged number for a database that can only be read.
pub(super) fn refuse_disguised(path: &Path) -> Result<(), StoreError> {
    if with_suffix(path, MAKING_SUFFIX).exists() {
        // SQLite rolls back what was begun; there was nothing before it.
        return Ok(());
    }
    let log = length(&with_suffix(path, COMPANION_SUFFIXES[0])).unwrap_or(0);
    let what = match length(path) {
        Some(0..DATABASE_BYTES_MIN) => "its file is empty",
        None if log > 0 => "its file is gone and its log is there",
        Some(_) if !says_that_it_can_be_written(path) => "its header names no known way of writing",
        _ => return Ok(()),
    };
    Err(StoreError::Sqlite {
        what: "read",
        path: path.to_owned(),
        source: checksum::damage(what.to_owned()),
    })
}

fn says_that_it_can_be_written(path: &Path) -> bool {
    const MAGIC: &[u8] = b"SQLite format 3\0";
    const WRITE_VERSION_AT: usize = 18;
    let mut head = [0; WRITE_VERSION_AT + 1];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut head, 0));
    // 1: with a rollback journal; 2: with a log. Whether it is a database at all is asked later.
    read.is_err() || !head.starts_with(MAGIC) || matches!(head[WRITE_VERSION_AT], 1 | 2)
}

/// Reads a small file whole, of a large one the tables that hold the roll, unless it is suspected.
pub(super) fn check_as_at_start(
    connection: &Connection,
    path: &Path,
    suspected: bool,
) -> rusqlite::Result<()> {
    let small = length(path).is_some_and(|length| length <= CHECKED_WHOLE_BYTES_MAX);
    match suspected || small {
        true => check(connection, ""),
        false => ["(state)", "(slaves)", "(redo)"]
            .iter()
            .try_for_each(|table| check(connection, table)),
    }
}

/// Reads the whole file, or one table of it; damage comes back as the error that SQLite gives for it.
pub(super) fn check(connection: &Connection, table: &str) -> rusqlite::Result<()> {
    let verdict: String =
        connection.query_row(&format!("PRAGMA integrity_check{table}"), [], |row| {
            row.get(0)
        })?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(checksum::damage(verdict))
}

/// All that is in it, and whether its last writer did not end in order.
pub(super) fn load(connection: &Connection) -> rusqlite::Result<(Loaded, bool)> {
    let state = State::read(connection)?;
    let slaves: Vec<SlaveRow> = connection
        .prepare(SlaveRow::SELECT)?
        .query_map([], SlaveRow::verified)?
        .collect::<Result<_, _>>()?;
    let redo: Vec<RedoRow> = connection
        .prepare(&format!("{} ORDER BY group_id", RedoRow::SELECT))?
        .query_map([], RedoRow::verified)?
        .collect::<Result<_, _>>()?;
    in_step(connection, &state, &redo)?;
    let redo = redo.into_iter().map(|row| {
        let id = unsigned(row.key)?;
        Ok((id, row.reports))
    });
    let loaded = Loaded {
        master_id: state.master_id,
        records: slaves.into_iter().map(|row| (row.id, row.record)).collect(),
        redo: redo.collect::<rusqlite::Result<_>>()?,
        listening_at_ms: state.listening_at_ms,
        next_group: unsigned(state.next_group)?,
        next_event: state.next_event,
        set_aside: None,
        log_missing: false,
        set_aside_files: 0,
    };
    Ok((loaded, state.is_open))
}

/// Whether all tables are of one moment, as every transaction leaves them.
pub(super) fn in_step(
    connection: &Connection,
    state: &State,
    redo: &[RedoRow],
) -> rusqlite::Result<()> {
    let newest_group = redo.last().map_or(0, |row| row.key);
    let newest_event: i64 =
        connection.query_row("SELECT ifnull(max(id), 0) FROM events", [], |row| {
            row.get(0)
        })?;
    if newest_group < state.next_group && newest_event < state.next_event {
        return Ok(());
    }
    Err(checksum::damage(format!(
        "its tables are not of one moment: group {newest_group} is there before {}, event {newest_event} before {}",
        state.next_group, state.next_event
    )))
}

pub(super) fn unsigned(value: i64) -> rusqlite::Result<u64> {
    u64::try_from(value).map_err(|_negative| rusqlite::Error::IntegralValueOutOfRange(0, value))
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
        let is_empty = length(aside).is_none_or(|length| length < DATABASE_BYTES_MIN);
        let connection = match is_empty {
            true => return Self::default(),
            false => schema::open_read_only(aside),
        };
        let Ok(connection) = connection else {
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

fn set_aside(path: &Path, why: &rusqlite::Error) -> Result<PathBuf, StoreError> {
    let aside = free_name(path, why);
    // The log first: a database without its log would be read as a complete one.
    for suffix in COMPANION_SUFFIXES {
        rename_if_there(&with_suffix(path, suffix), &with_suffix(&aside, suffix))?;
    }
    rename_if_there(path, &aside)?;
    remove_if_there(&with_suffix(path, SUSPECT_SUFFIX))?;
    Ok(aside)
}

/// A name that says when and why, and that no file has yet.
fn free_name(path: &Path, why: &rusqlite::Error) -> PathBuf {
    let why = match why.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => "not-a-database",
        _ => "corrupt",
    };
    let mut at_ms = clock::wall_ms();
    loop {
        let name = path.with_file_name(format!("master.{why}-{}.db", file_time(at_ms)));
        if !name.exists() {
            return name;
        }
        at_ms = at_ms.saturating_add(1);
    }
}

fn rename_if_there(from: &Path, to: &Path) -> Result<(), StoreError> {
    ignore_missing(fs::rename(from, to)).map_err(|source| StoreError::File {
        what: "set aside",
        path: from.to_owned(),
        source,
    })
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    ignore_missing(fs::remove_file(path)).map_err(|source| StoreError::File {
        what: "remove",
        path: path.to_owned(),
        source,
    })
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
