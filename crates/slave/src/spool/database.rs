//! The SQLite database under the spool: how it is opened, its tables, and which errors mean damage.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rollcall_os::filesystem;
use rusqlite::config::DbConfig;
use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::{SpoolError, migration};

/// Version of the tables below, kept in `PRAGMA user_version`. It grows with every change that an older
/// build could not read.
pub(super) const SCHEMA: i32 = 2;
/// "RCSP" in `PRAGMA application_id`.
const APPLICATION: i32 = 0x5243_5350;
/// The first SQLite without the bug that can lose committed writes when the log starts over.
const SQLITE_MIN: i32 = 3_051_003;
/// Pages of 4 KiB in the write-ahead log after which they are moved into the database.
const WAL_PAGES: i32 = 256;
/// Most memory for pages, in KiB.
const CACHE_KIB: i32 = 512;
/// Free pages of 4 KiB that the database keeps: on a full disk the newest reports still fit.
const FREE_PAGES_KEPT: i64 = 256;
/// Most pages given back to the file system at once.
const FREE_PAGES_SLICE: i64 = 1024;

/// `first` and `last` are sequences, equal for a report; `gap` is NULL for a report and the
/// GapReason for a gap; `repeat` is 1 if the states equal those of the report before; a report's
/// `body` is its wire::Report without stream and sequence, and the CRC-32 of that.
const TABLES: &str = "
    CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        value BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY,
        stream INTEGER NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        gap INTEGER,
        repeat INTEGER NOT NULL,
        from_ms INTEGER NOT NULL,
        to_ms INTEGER NOT NULL,
        size INTEGER NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX entries_by_stream ON entries (stream, last);
    CREATE INDEX reports_to_thin ON entries (repeat, id) WHERE gap IS NULL;
";

/// Why a database can't be used as it is.
#[derive(Debug)]
pub(super) enum OpenError {
    /// It has to be set aside: the word for its new name, and the reason in full.
    Unusable {
        /// "damaged" or "newer".
        why: &'static str,
        /// For the log.
        reason: String,
    },
    /// It may be fine, but can't be used now.
    Other(SpoolError),
}

/// Opens the database at `path`, creates it if it is not there, and checks all of it.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    if rusqlite::version_number() < SQLITE_MIN {
        let found = rusqlite::version();
        return Err(OpenError::Other(SpoolError::OldSqlite { found }));
    }
    if let Some(reason) = is_gone_beneath_its_log(path) {
        let why = "damaged";
        return Err(OpenError::Unusable { why, reason });
    }
    let classify = |error| classify(path, error);
    let connection = connect(path).map_err(classify)?;
    match prepare(&connection).map_err(classify)? {
        None => Ok(connection),
        Some((why, reason)) => Err(OpenError::Unusable { why, reason }),
    }
}

/// SQLite throws the log of an empty database away without a word, as if it were a remnant; but the
/// log is begun only after the database's first page is on disk.
fn is_gone_beneath_its_log(path: &Path) -> Option<String> {
    let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let log_bytes = length(log.as_ref());
    (log_bytes > 0 && length(path) == 0)
        .then(|| format!("it is empty or gone beside a write-ahead log of {log_bytes} bytes"))
}

/// Opens a database that was set aside, for reading only; `None` if there is nothing to read.
pub(super) fn open_set_aside(path: &Path) -> Option<Connection> {
    if is_gone_beneath_its_log(path).is_some() {
        return None;
    }
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()
}

fn classify(path: &Path, error: rusqlite::Error) -> OpenError {
    if is_damage(&error) {
        OpenError::Unusable {
            why: "damaged",
            reason: error.to_string(),
        }
    } else {
        OpenError::Other(SpoolError::Database {
            path: path.to_owned(),
            source: error,
        })
    }
}

/// Whether the error says that the file's content is not what was written.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => matches!(
            failure.code,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase
        ),
        // A value of a type that the tables can't hold.
        rusqlite::Error::InvalidColumnType(_, _, found) => *found != Type::Null,
        rusqlite::Error::IntegralValueOutOfRange(..) => true,
        _ => false,
    }
}

/// Whether the error says that nobody knows what is on disk.
pub(super) fn is_sync_failure(error: &rusqlite::Error) -> bool {
    error.sqlite_error().is_some_and(|failure| {
        matches!(
            failure.extended_code,
            ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC
        )
    })
}

/// Whether the close leaves the write-ahead log as it is instead of folding it into the database.
///
/// It does while the database is being opened, and after a sync that failed: folding in would sync
/// once more, and the kernel says yes to what it has dropped.
pub(super) fn keep_log_at_close(connection: &Connection, keep: bool) -> rusqlite::Result<()> {
    let option = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection.set_db_config(option, keep).map(|_| ())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let vfs = filesystem::sqlite_vfs(path);
    let connection = Connection::open_with_flags_and_vfs(path, flags, vfs)?;
    keep_log_at_close(&connection, true)?;
    // One plan a statement. Without this, SQLite plans anew for each new value that is bound to a LIMIT (or to
    // the column of an index of which it has statistics), which costs more than to run it.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    // An operator may look at it with sqlite3, which locks it for moments.
    connection.busy_timeout(Duration::from_secs(2))?;
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if pages == 0 {
        // Has to come before anything is written.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", WAL_PAGES, |_| Ok(()))?;
    let wal_bytes = i64::from(WAL_PAGES) * 4096;
    connection.pragma_update_and_check(None, "journal_size_limit", wal_bytes, |_| Ok(()))?;
    Ok(connection)
}

/// Creates the tables or checks them; why the database must be set aside, if it must.
fn prepare(connection: &Connection) -> rusqlite::Result<Option<(&'static str, String)>> {
    let schema: i32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (schema, application, tables) {
        (0, 0, 0) => {
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE; {TABLES}
                 PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {SCHEMA}; COMMIT;"
            ))?;
            Ok(None)
        }
        (1..=SCHEMA, APPLICATION, _) => {
            let check: String =
                connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
            if check != "ok" {
                return Ok(Some(("damaged", check)));
            }
            migration::migrate(connection, schema)?;
            Ok(None)
        }
        (newer, APPLICATION, _) if newer > SCHEMA => {
            let reason = format!("its tables are of version {newer}, this build knows {SCHEMA}");
            Ok(Some(("newer", reason)))
        }
        _ => Ok(Some(("damaged", "not a spool of Rollcall".to_owned()))),
    }
}

/// Gives pages that are no longer in use back to the file system, some at a time.
pub(super) fn give_back(connection: &Connection) -> rusqlite::Result<()> {
    let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    let slice = (free - FREE_PAGES_KEPT).min(FREE_PAGES_SLICE);
    if slice > 0 {
        let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({slice})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn a_commit_is_on_disk_before_it_returns() {
        let folder = tempfile::tempdir().unwrap();
        let connection = open(&folder.path().join("spool.db")).unwrap();
        let synchronous: i32 = connection
            .pragma_query_value(None, "synchronous", |row| row.get(0))
            .unwrap();
        assert_eq!(synchronous, 2, "FULL");
    }

    #[test]
    fn a_statement_is_planned_once_whatever_is_bound_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let connection = open(&folder.path().join("spool.db")).unwrap();
        let sql = "SELECT id FROM entries WHERE id > ?1 ORDER BY id LIMIT ?2";
        let mut statement = connection.prepare(sql).unwrap();
        for value in 1..4 {
            let mut rows = statement.query([value, value]).unwrap();
            assert!(rows.next().unwrap().is_none());
        }
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
    }

    #[test]
    fn only_a_failed_sync_leaves_nobody_knowing_what_is_on_disk() {
        let error = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        assert!(is_sync_failure(&error(ffi::SQLITE_IOERR_FSYNC)));
        assert!(is_sync_failure(&error(ffi::SQLITE_IOERR_DIR_FSYNC)));
        assert!(!is_sync_failure(&error(ffi::SQLITE_IOERR_WRITE)));
        assert!(!is_sync_failure(&error(ffi::SQLITE_FULL)));
    }
}
