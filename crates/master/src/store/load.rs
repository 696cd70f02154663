//! Reading the database at a start: is it whole, and what is in it?

use std::path::Path;

use rusqlite::Connection;

use super::checksum;
use super::fault::is_sync_failure;
use super::files;
use super::rows::{RedoRow, SlaveRow, State};
use super::schema::{self, Database};
use super::{Loaded, StoreError};

/// A file up to this size is checked whole at every start; of a larger one the tables that hold the
/// roll, unless there is a reason to suspect the rest.
const CHECKED_WHOLE_BYTES_MAX: u64 = 16 << 20;

/// Opens the database for its writer, if it is whole, with what is in it.
pub(super) fn open_checked(path: &Path) -> Result<(Database, Loaded), StoreError> {
    files::refuse_disguised(path)?;
    let log_is_there = files::log_length(path) > 0;
    let database = schema::open(path)?;
    let suspected = files::is_suspect(path);
    let checked = check_as_at_start(&database.connection, path, suspected);
    checked.map_err(|source| database.fault("check", source))?;
    if suspected {
        files::clear_suspect(path)?;
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

/// Reads a small file whole, of a large one the tables that hold the roll, unless it is suspected.
pub(super) fn check_as_at_start(
    connection: &Connection,
    path: &Path,
    suspected: bool,
) -> rusqlite::Result<()> {
    let small = files::length(path).is_some_and(|length| length <= CHECKED_WHOLE_BYTES_MAX);
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
