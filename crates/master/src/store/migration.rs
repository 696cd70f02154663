//! From one layout to the next: a copy of the old database first, then one transaction.

use std::path::PathBuf;

use rusqlite::backup::Progress;
use rusqlite::{Connection, Transaction, params};

use super::checksum;
use super::rows::{SlaveRow, State};
use super::schema::{APPLICATION_ID, Database, SCHEMA_VERSION};
use super::{StoreError, files};

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

/// Events of version 1 stay without a checksum: there may be millions of them.
const SCHEMA_2: &str = "
ALTER TABLE state ADD COLUMN is_open INTEGER NOT NULL DEFAULT 0;
ALTER TABLE state ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE slaves ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE redo ADD COLUMN checksum INTEGER NOT NULL DEFAULT 0;
ALTER TABLE events ADD COLUMN checksum INTEGER;
";

/// Takes the layout from the version found to [`SCHEMA_VERSION`], one step a version. An older
/// database is copied before it is touched, and the copy is never deleted.
pub(super) fn migrate(database: &mut Database, found: i64) -> Result<(), StoreError> {
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    let backup = match found {
        0 => None,
        _ => Some(back_up(database, found)?),
    };
    let mut master_id = [0; 16];
    getrandom::fill(&mut master_id).map_err(StoreError::Random)?;
    let what = match found {
        0 => "create the tables of",
        _ => "migrate",
    };
    let migrated = run(&mut database.connection, found, master_id);
    migrated.map_err(|source| database.fault(what, source))?;
    if let Some(backup) = backup {
        tracing::info!(
            event = "store_migrated",
            path = %database.path.display(),
            backup = %backup.display(),
            from = found,
            to = SCHEMA_VERSION,
            "the store has a new layout; the old database is kept as a backup"
        );
    }
    Ok(())
}

fn run(connection: &mut Connection, found: i64, master_id: [u8; 16]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    if found < 1 {
        transaction.execute_batch(SCHEMA_1)?;
        transaction.execute(
            "INSERT INTO state (one, master_id, next_group, next_event) VALUES (1, ?1, 1, 1)",
            [master_id],
        )?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    if found < 2 {
        transaction.execute_batch(SCHEMA_2)?;
        add_checksums(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}

fn add_checksums(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let state = transaction.query_row("SELECT * FROM state", [], State::of)?;
    state.write(transaction)?;
    let mut read = transaction.prepare(SlaveRow::SELECT)?;
    let mut write = transaction.prepare("UPDATE slaves SET checksum = ?2 WHERE rowid = ?1")?;
    let slaves: Vec<_> = read
        .query_map([], |row| {
            let slave = SlaveRow::of(row)?;
            Ok((slave.key, slave.columns().checksum()))
        })?
        .collect::<Result<_, _>>()?;
    for (key, sum) in slaves {
        write.execute([key, sum])?;
    }
    let mut read = transaction.prepare("SELECT group_id, reports FROM redo")?;
    let mut write = transaction.prepare("UPDATE redo SET checksum = ?2 WHERE group_id = ?1")?;
    let redo: Vec<_> = read
        .query_map([], |row| {
            let (id, reports): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            Ok((id, checksum::of_redo(id, &reports)))
        })?
        .collect::<Result<_, _>>()?;
    for (id, sum) in redo {
        write.execute(params![id, sum])?;
    }
    Ok(())
}

/// Copies the database, with what is still in its log, beside itself.
fn back_up(database: &Database, version: i64) -> Result<PathBuf, StoreError> {
    let suffix = |now: &str| format!(".v{version}-{now}.backup");
    let path = files::free_name(|now| files::with_suffix(&database.path, &suffix(now)));
    let copied = database
        .connection
        .backup("main", &path, None::<fn(Progress)>);
    match copied {
        Ok(()) => Ok(path),
        Err(source) => {
            // A half copy would be taken for a backup.
            let _ = std::fs::remove_file(&path);
            Err(StoreError::Backup {
                path,
                found: version,
                known: SCHEMA_VERSION,
                source,
            })
        }
    }
}
