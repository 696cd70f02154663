//! The database's layout: opening, pragmas, versions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// The newest layout that this build knows. It grows with every change that an older build could not
/// read, and that includes a new kind of event.
pub(super) const SCHEMA_VERSION: i64 = 1;
/// "ROLL": tells the file apart from other programs' databases.
const APPLICATION_ID: i64 = 0x524f_4c4c;
/// Before it the WAL-reset bug can lose committed rows.
const SQLITE_VERSION_MIN: i32 = 3_051_003;
/// How long a commit waits for somebody else's lock before the store calls itself degraded.
const BUSY_TIMEOUT: Duration = Duration::from_millis(500);
/// What a connection remembers of the file, in KiB; negative by SQLite's convention.
const CACHE_KIB: i64 = -8192;
/// To what the write-ahead log is cut back after a checkpoint, in bytes.
const WAL_BYTES_KEPT: i64 = 16 << 20;
/// Statements kept prepared: all of the writer's.
const STATEMENTS_MAX: usize = 16;

const SCHEMA_1: &str = "
CREATE TABLE state (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    master_id       BLOB NOT NULL CHECK (length(master_id) = 16),
    listening_at_ms INTEGER,
    next_group      INTEGER NOT NULL,
    next_event      INTEGER NOT NULL
) STRICT;
CREATE TABLE slaves (
    id           BLOB PRIMARY KEY CHECK (length(id) = 16),
    name         TEXT NOT NULL,
    presence     TEXT NOT NULL,
    health       TEXT,
    last_seen_ms INTEGER,
    record       BLOB NOT NULL
) STRICT;
CREATE TABLE redo (
    group_id INTEGER PRIMARY KEY,
    reports  BLOB NOT NULL
) STRICT;
CREATE TABLE events (
    id          INTEGER PRIMARY KEY,
    time_ms     INTEGER NOT NULL,
    recorded_ms INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    slave       TEXT,
    subject     TEXT,
    from_state  TEXT,
    to_state    TEXT,
    text        TEXT NOT NULL,
    replayed    INTEGER NOT NULL
) STRICT;
CREATE INDEX events_by_time ON events (time_ms);
CREATE INDEX events_by_slave ON events (slave, id);
";

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
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        return Err(StoreError::OldSqlite {
            found: rusqlite::version(),
        });
    }
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
    let connection = Connection::open_with_flags(path, flags).map_err(fault("open"))?;
    let mut database = Database {
        connection,
        path: path.to_owned(),
    };
    refuse_foreign(&database)?;
    set_up(&database.connection).map_err(fault("set up"))?;
    migrate(&mut database)?;
    Ok(database)
}

/// Opens the database for reading only. It must exist.
pub(super) fn open_read_only(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

/// Before anything is written: is it ours, and do we know its layout?
fn refuse_foreign(database: &Database) -> Result<(), StoreError> {
    let connection = &database.connection;
    let read = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get(0));
    let look = || -> rusqlite::Result<(i64, i64, bool)> {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let empty = connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| {
            row.get(0)
        })?;
        Ok((read("application_id")?, read("user_version")?, empty))
    };
    let (application, version, empty) = look().map_err(|source| database.fault("read", source))?;
    if application != APPLICATION_ID && !empty {
        return Err(StoreError::Foreign {
            path: database.path.clone(),
            found: application,
        });
    }
    if version > SCHEMA_VERSION {
        return Err(StoreError::Newer {
            path: database.path.clone(),
            found: version,
            known: SCHEMA_VERSION,
        });
    }
    Ok(())
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "cache_size", CACHE_KIB)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)
}

/// Takes the layout from the version found to [`SCHEMA_VERSION`], one step a version, all in one
/// transaction.
fn migrate(database: &mut Database) -> Result<(), StoreError> {
    let mut master_id = [0; 16];
    getrandom::fill(&mut master_id).map_err(StoreError::Random)?;
    let connection = &mut database.connection;
    let mut run = || -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        let version: i64 =
            transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version < 1 {
            transaction.execute_batch(SCHEMA_1)?;
            transaction.execute(
                "INSERT INTO state (one, master_id, next_group, next_event) VALUES (1, ?1, 1, 1)",
                [master_id],
            )?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        }
        if version < SCHEMA_VERSION {
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        transaction.commit()
    };
    run().map_err(|source| StoreError::Sqlite {
        what: "create the tables of",
        path: database.path.clone(),
        source,
    })
}
