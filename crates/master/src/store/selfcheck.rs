//! A look at a store that this process is not to open: would a start of this build read it?

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rollcall_os::filesystem;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};

use super::checksum::damage;
use super::fault::is_environment;
use super::files;
use super::load;
use super::rows::{SlaveRow, State};
use super::schema::{self, APPLICATION_ID, SCHEMA_VERSION};
use super::{Loaded, Store, StoreError};

/// Where the header of a database has its two numbers, 4 bytes each (sqlite.org/fileformat.html).
const USER_VERSION_AT: u64 = 60;
const APPLICATION_ID_AT: u64 = 68;

/// What is there.
#[derive(Debug)]
pub(crate) enum Look {
    /// No store: a start makes one.
    Nothing,
    /// A master runs and keeps the index of its log to itself.
    HeaderOnly {
        /// The layout.
        version: i64,
    },
    /// All that a start reads.
    Whole {
        /// The layout, which may be an older one.
        version: i64,
        /// The content.
        loaded: Box<Loaded>,
    },
}

/// Reads the store of a state directory, without writing and without a lock of its own.
///
/// # Errors
/// If a start of this build would refuse it, or set it aside as damaged.
pub(crate) fn look(directory: &Path) -> Result<Look, StoreError> {
    let copies_on_write = filesystem::is_copy_on_write(directory);
    look_at(&Store::database(directory), copies_on_write).map_err(|error| match error {
        StoreError::Sqlite { path, source, .. } if !is_environment(&source) => {
            StoreError::Damaged { path, source }
        }
        error => error,
    })
}

fn look_at(path: &Path, copies_on_write: bool) -> Result<Look, StoreError> {
    schema::assert_sqlite()?;
    files::refuse_disguised(path)?;
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Look::Nothing),
        Err(source) => {
            return Err(StoreError::File {
                what: "read",
                path: path.to_owned(),
                source,
            });
        }
        Ok(_) => {}
    }
    match read(path) {
        Err(StoreError::Sqlite { source, .. }) if copies_on_write && is_held(&source) => {
            let version = header(path)?;
            Ok(Look::HeaderOnly { version })
        }
        read => read,
    }
}

fn read(path: &Path) -> Result<Look, StoreError> {
    let fault = |source| StoreError::Sqlite {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let mut connection = schema::open_read_only(path).map_err(fault)?;
    // All is read as of one moment.
    let moment = connection
        .transaction_with_behavior(TransactionBehavior::Deferred)
        .map_err(fault)?;
    let version = schema::version(&moment, path)?;
    if version == 0 {
        return Ok(Look::Nothing);
    }
    load::check_as_at_start(&moment, path, files::is_suspect(path)).map_err(fault)?;
    let loaded = match version {
        SCHEMA_VERSION => load::load(&moment).map(|(loaded, _)| loaded),
        _ => load_older(&moment),
    };
    let loaded = Box::new(loaded.map_err(fault)?);
    Ok(Look::Whole { version, loaded })
}

/// What a migration would bring over; rows of the first layout have no checksums.
fn load_older(connection: &Connection) -> rusqlite::Result<Loaded> {
    let state = connection.query_row("SELECT *, 0 AS is_open FROM state", [], State::of)?;
    let slaves = "SELECT rowid AS key, id, name, presence, health, last_seen_ms, record FROM slaves NOT INDEXED";
    let records: Vec<_> = connection
        .prepare(slaves)?
        .query_map([], SlaveRow::of)?
        .map(|row| row.map(|row| (row.id, row.record)))
        .collect::<Result<_, _>>()?;
    let redo: Vec<_> = connection
        .prepare("SELECT group_id, reports FROM redo ORDER BY group_id")?
        .query_map([], |row| {
            Ok((load::unsigned(row.get("group_id")?)?, row.get("reports")?))
        })?
        .collect::<Result<_, _>>()?;
    Ok(Loaded {
        master_id: state.master_id,
        records,
        redo,
        listening_at_ms: state.listening_at_ms,
        next_group: load::unsigned(state.next_group)?,
        next_event: state.next_event,
        set_aside: None,
        log_missing: false,
        set_aside_files: 0,
    })
}

fn is_held(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed
        )
    )
}

/// The layout as the file itself has it, without its log.
pub(super) fn header(path: &Path) -> Result<i64, StoreError> {
    let number = |at| {
        let mut bytes = [0; 4];
        let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, at));
        read.map(|()| i64::from(i32::from_be_bytes(bytes)))
            .map_err(|source| StoreError::File {
                what: "read",
                path: path.to_owned(),
                source,
            })
    };
    let (application, version) = (number(APPLICATION_ID_AT)?, number(USER_VERSION_AT)?);
    if application != APPLICATION_ID {
        return Err(StoreError::Sqlite {
            what: "read",
            path: path.to_owned(),
            source: damage(format!("its header says application id {application:#x}")),
        });
    }
    if version > SCHEMA_VERSION {
        return Err(StoreError::Newer {
            path: path.to_owned(),
            found: version,
            known: SCHEMA_VERSION,
        });
    }
    Ok(version)
}
