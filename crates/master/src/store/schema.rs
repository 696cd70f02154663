//! Opening the database: is it ours, is it whole, of which version, and how it is to be written.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rollcall_os::filesystem;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::checksum::damage;
use super::rows::State;
use super::{StoreError, migration};

/// The newest layout that this build knows. It grows with every change that an older build could not
/// read, and that includes a new kind of event.
pub(crate) const SCHEMA_VERSION: i64 = 2;
/// No build will ever have so high a layout.
const VERSION_PLAUSIBLE: i64 = 1000;
/// "ROLL": tells the file apart from other programs' databases.
pub(super) const APPLICATION_ID: i64 = 0x524f_4c4c;
/// Before it the WAL-reset bug can lose committed rows.
const SQLITE_VERSION_MIN: i32 = 3_051_003;
/// How long a commit waits for somebody else's lock before the store calls itself degraded.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// What a connection remembers of the file, in KiB; negative by SQLite's convention.
const CACHE_KIB: i64 = -8192;
/// To what the write-ahead log is cut back after a checkpoint, in bytes.
const WAL_BYTES_KEPT: i64 = 16 << 20;
/// Statements kept prepared: all of the writer's.
const STATEMENTS_MAX: usize = 24;

/// An open database and where it is.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
}

impl Database {
    /// An error of SQLite's with what was being done.
    pub(super) fn fault(&self, what: &'static str, source: rusqlite::Error) -> StoreError {
        StoreError::Sqlite {
            what,
            path: self.path.clone(),
            source,
        }
    }
}

/// Opens or creates the database for the writer and brings its layout up to date.
pub(super) fn open(path: &Path) -> Result<Database, StoreError> {
    assert_sqlite()?;
    let fault = |what| {
        move |source| StoreError::Sqlite {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let vfs = filesystem::sqlite_vfs(path);
    let connection =
        Connection::open_with_flags_and_vfs(path, flags, vfs).map_err(fault("open"))?;
    keep_log_at_close(&connection, true).map_err(fault("set up"))?;
    plan_once(&connection).map_err(fault("set up"))?;
    let mut database = Database {
        connection,
        path: path.to_owned(),
    };
    let found = version(&database.connection, path)?;
    set_up(&database.connection).map_err(fault("set up"))?;
    migration::migrate(&mut database, found)?;
    Ok(database)
}

/// Whether the close leaves the write-ahead log as it is instead of folding it into the database.
///
/// It does while the database is being opened, and after a sync that failed: folding in would sync
/// once more, and the kernel says yes to what it has dropped.
pub(super) fn keep_log_at_close(connection: &Connection, keep: bool) -> rusqlite::Result<()> {
    let option = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection.set_db_config(option, keep).map(|_| ())
}

/// Refuses an SQLite that can lose what it has committed.
pub(super) fn assert_sqlite() -> Result<(), StoreError> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        return Err(StoreError::OldSqlite {
            found: rusqlite::version(),
        });
    }
    Ok(())
}

/// Opens the database for reading only. It must exist.
pub(super) fn open_read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let vfs = filesystem::sqlite_vfs(path);
    let connection = Connection::open_with_flags_and_vfs(path, flags, vfs)?;
    plan_once(&connection)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

/// One plan a statement. Without this SQLite plans anew for each new value that is bound to a LIMIT.
fn plan_once(connection: &Connection) -> rusqlite::Result<()> {
    let option = DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG;
    connection.set_db_config(option, true).map(|_| ())
}

/// Before anything is written: is it ours, and do we know its layout? 0: it is empty.
pub(super) fn version(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let read = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get(0));
    let look = || -> rusqlite::Result<(i64, i64, bool)> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let empty = connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| {
            row.get(0)
        })?;
        Ok((read("application_id")?, read("user_version")?, empty))
    };
    let fault = |source| StoreError::Sqlite {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let (application, version, empty) = look().map_err(fault)?;
    if empty {
        return Ok(0);
    }
    if application == APPLICATION_ID && version == SCHEMA_VERSION {
        return Ok(version);
    }
    // The row of `state` is signed with our version: it is the header that is wrong.
    let is_plausible =
        application == APPLICATION_ID && (SCHEMA_VERSION..VERSION_PLAUSIBLE).contains(&version);
    if !is_plausible && State::read(connection).is_ok() {
        return Err(fault(damage(format!(
            "its header says application id {application:#x} and version {version}, and its content says otherwise"
        ))));
    }
    if application != APPLICATION_ID {
        return Err(StoreError::Foreign {
            path: path.to_owned(),
            found: application,
        });
    }
    if version > SCHEMA_VERSION {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found: version,
            known: SCHEMA_VERSION,
        });
    }
    if version < 1 {
        return Err(fault(damage(format!(
            "its version is {version}, and there are tables in it"
        ))));
    }
    Ok(version)
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    // The writer checkpoints itself: SQLite would keep a failed fsync of the database to itself, and
    // try again as if nothing were lost.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn a_commit_is_on_disk_before_it_returns() {
        let folder = tempfile::tempdir().unwrap();
        let database = open(&folder.path().join("master.db")).unwrap();
        let synchronous: i32 = database
            .connection
            .pragma_query_value(None, "synchronous", |row| row.get(0))
            .unwrap();
        assert_eq!(synchronous, 2, "FULL");
    }

    #[test]
    fn a_statement_is_planned_once_whatever_is_bound_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.db");
        let writer = open(&path).unwrap().connection;
        let reader = open_read_only(&path).unwrap();
        for connection in [writer, reader] {
            let sql = "SELECT id FROM events WHERE id > ?1 ORDER BY id LIMIT ?2";
            let mut statement = connection.prepare(sql).unwrap();
            for value in 1..4 {
                let mut rows = statement.query([value, value]).unwrap();
                assert!(rows.next().unwrap().is_none());
            }
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
        }
    }
}
