//! A damaged database never keeps the master from starting: it is set aside, whole, under a name that
//! says when and why, and the roll that can still be read moves to a new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rollcall_os::clock;
use rusqlite::{Connection, ErrorCode, Row, params};

use super::fault::is_damage;
use super::schema::{self, Database};
use super::{Loaded, StoreError};

/// Beside the database: "a write has met damage, check the whole file at the next start".
const SUSPECT_SUFFIX: &str = ".suspect";
/// SQLite keeps the last commits in the first, and an index of them in the second.
const COMPANION_SUFFIXES: [&str; 2] = ["-wal", "-shm"];

/// Opens the database; if it is damaged, sets it aside and makes a new one.
pub(super) fn open_or_set_aside(path: &Path) -> Result<(Database, Loaded), StoreError> {
    let error = match open_checked(path) {
        Ok(opened) => return Ok(opened),
        Err(error) => error,
    };
    let StoreError::Sqlite { source, .. } = &error else {
        return Err(error);
    };
    if !is_damage(source) {
        return Err(error);
    }
    let aside = set_aside(path, source)?;
    let rescued = Rescued::read(&aside);
    tracing::error!(
        event = "store_set_aside",
        path = %path.display(),
        aside = %aside.display(),
        error = %source,
        slaves = rescued.slaves.len(),
        redo_groups = rescued.redo.len(),
        "the database is damaged and was set aside; what could be read of the roll was carried over, the events were not"
    );
    let mut database = schema::open(path)?;
    let written = rescued.write(&mut database.connection);
    written.map_err(|source| database.fault("carry the roll over to", source))?;
    let mut loaded = load(&database.connection).map_err(|source| database.fault("read", source))?;
    loaded.set_aside = Some(aside);
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

fn open_checked(path: &Path) -> Result<(Database, Loaded), StoreError> {
    let database = schema::open(path)?;
    let marker = with_suffix(path, SUSPECT_SUFFIX);
    if marker.exists() {
        check(&database.connection).map_err(|source| database.fault("check", source))?;
        remove_if_there(&marker)?;
    }
    let loaded = load(&database.connection).map_err(|source| database.fault("read", source))?;
    Ok((database, loaded))
}

/// Reads the whole file; damage comes back as the error that SQLite gives for it.
fn check(connection: &Connection) -> rusqlite::Result<()> {
    let verdict: String =
        connection.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
        Some(verdict),
    ))
}

fn load(connection: &Connection) -> rusqlite::Result<Loaded> {
    let state = State::read(connection)?;
    let records = "SELECT id, record FROM slaves";
    let redo = "SELECT group_id, reports FROM redo ORDER BY group_id";
    Ok(Loaded {
        master_id: state.master_id,
        records: connection
            .prepare(records)?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?,
        redo: connection
            .prepare(redo)?
            .query_map([], |row| Ok((unsigned(row.get(0)?)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?,
        listening_at_ms: state.listening_at_ms,
        next_group: unsigned(state.next_group)?,
        next_event: state.next_event,
        set_aside: None,
    })
}

fn unsigned(value: i64) -> rusqlite::Result<u64> {
    u64::try_from(value).map_err(|_negative| rusqlite::Error::IntegralValueOutOfRange(0, value))
}

/// The one row of the table of that name.
#[derive(Debug)]
struct State {
    master_id: [u8; 16],
    listening_at_ms: Option<i64>,
    next_group: i64,
    next_event: i64,
}

impl State {
    fn read(connection: &Connection) -> rusqlite::Result<Self> {
        connection.query_row("SELECT * FROM state", [], |row| {
            Ok(Self {
                master_id: row.get("master_id")?,
                listening_at_ms: row.get("listening_at_ms")?,
                next_group: row.get("next_group")?,
                next_event: row.get("next_event")?,
            })
        })
    }
}

/// A row of `slaves`.
#[derive(Debug)]
struct SlaveColumns {
    id: [u8; 16],
    name: String,
    presence: String,
    health: Option<String>,
    last_seen_ms: Option<i64>,
    record: Vec<u8>,
}

impl SlaveColumns {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get("id")?,
            name: row.get("name")?,
            presence: row.get("presence")?,
            health: row.get("health")?,
            last_seen_ms: row.get("last_seen_ms")?,
            record: row.get("record")?,
        })
    }
}

/// What a damaged database still gives: each table up to the first row that can't be read.
#[derive(Debug, Default)]
struct Rescued {
    state: Option<State>,
    slaves: Vec<SlaveColumns>,
    redo: Vec<(i64, Vec<u8>)>,
}

impl Rescued {
    fn read(aside: &Path) -> Self {
        let Ok(connection) = schema::open_read_only(aside) else {
            return Self::default();
        };
        Self {
            state: State::read(&connection).ok(),
            // NOT INDEXED: the rows themselves, not what an index says of them.
            slaves: readable(
                &connection,
                "SELECT * FROM slaves NOT INDEXED",
                SlaveColumns::of,
            ),
            redo: readable(
                &connection,
                "SELECT group_id, reports FROM redo ORDER BY group_id",
                |row| Ok((row.get(0)?, row.get(1)?)),
            ),
        }
    }

    fn write(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let transaction = connection.transaction()?;
        for slave in &self.slaves {
            transaction.execute(
                "INSERT OR IGNORE INTO slaves (id, name, presence, health, last_seen_ms, record)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    slave.id,
                    slave.name,
                    slave.presence,
                    slave.health,
                    slave.last_seen_ms,
                    slave.record
                ],
            )?;
        }
        for (group_id, reports) in &self.redo {
            transaction.execute(
                "INSERT OR IGNORE INTO redo (group_id, reports) VALUES (?1, ?2)",
                params![group_id, reports],
            )?;
        }
        if let Some(state) = &self.state {
            transaction.execute(
                "UPDATE state SET master_id = ?1, listening_at_ms = ?2, next_group = ?3, next_event = ?4",
                params![
                    state.master_id,
                    state.listening_at_ms,
                    state.next_group,
                    state.next_event
                ],
            )?;
        }
        transaction.execute(
            "UPDATE state SET next_group = max(next_group, (SELECT ifnull(max(group_id), 0) + 1 FROM redo))",
            [],
        )?;
        transaction.commit()
    }
}

fn readable<T>(
    connection: &Connection,
    query: &str,
    of: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Vec<T> {
    let Ok(mut statement) = connection.prepare(query) else {
        return Vec::new();
    };
    let Ok(rows) = statement.query_map([], of) else {
        return Vec::new();
    };
    rows.map_while(Result::ok).collect()
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
        let when = jiff::Timestamp::from_millisecond(at_ms).map_or_else(
            |_beyond_the_calendar| at_ms.to_string(),
            |at| at.strftime("%Y%m%dT%H%M%S%.3fZ").to_string(),
        );
        let name = path.with_file_name(format!("master.{why}-{when}.db"));
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

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
