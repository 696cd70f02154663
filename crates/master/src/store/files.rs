//! The database's file and those beside it: their names, and how they are set aside.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rollcall_os::clock;
use rusqlite::ErrorCode;

use super::{StoreError, checksum};

/// Beside the database: "a write has met damage, check the whole file at the next start".
pub(super) const SUSPECT_SUFFIX: &str = ".suspect";
/// SQLite keeps the last commits in the first, and an index of them in the second.
const COMPANION_SUFFIXES: [&str; 2] = ["-wal", "-shm"];
/// Beside a database only while it is being made: after that changes go to the log.
const MAKING_SUFFIX: &str = "-journal";
/// A file below it has no whole header; SQLite takes it for an empty one.
const DATABASE_BYTES_MIN: u64 = 512;

/// A file beside the one at `path`.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Its bytes; `None` if there is none.
pub(super) fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|file| file.len())
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

/// Whether such word was left.
pub(super) fn is_suspect(path: &Path) -> bool {
    with_suffix(path, SUSPECT_SUFFIX).exists()
}

/// Takes it away.
pub(super) fn clear_suspect(path: &Path) -> Result<(), StoreError> {
    remove_if_there(&with_suffix(path, SUSPECT_SUFFIX))
}

/// Bytes of the write-ahead log, 0 if there is none.
pub(super) fn log_length(path: &Path) -> u64 {
    length(&with_suffix(path, COMPANION_SUFFIXES[0])).unwrap_or(0)
}

/// Whether SQLite would take the file for an empty one, and remove the log beside it.
pub(super) fn is_empty(path: &Path) -> bool {
    length(path).is_none_or(|length| length < DATABASE_BYTES_MIN)
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

/// What SQLite would take for something else: an empty file for a new database, whose log it throws
/// away; a damaged number for a database that can only be read.
pub(super) fn refuse_disguised(path: &Path) -> Result<(), StoreError> {
    if with_suffix(path, MAKING_SUFFIX).exists() {
        // SQLite rolls back what was begun; there was nothing before it.
        return Ok(());
    }
    let what = match length(path) {
        Some(0..DATABASE_BYTES_MIN) => "its file is empty",
        None if log_length(path) > 0 => "its file is gone and its log is there",
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

/// Gives the database at `path` and what belongs to it names that say when and why; returns its own.
pub(super) fn set_aside(path: &Path, why: &rusqlite::Error) -> Result<PathBuf, StoreError> {
    let why = match why.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => "not-a-database",
        _ => "corrupt",
    };
    let aside = free_name(|now| path.with_file_name(format!("master.{why}-{now}.db")));
    // The log first: a database without its log would be read as a complete one.
    for suffix in COMPANION_SUFFIXES {
        rename_if_there(&with_suffix(path, suffix), &with_suffix(&aside, suffix))?;
    }
    rename_if_there(path, &aside)?;
    clear_suspect(path)?;
    Ok(aside)
}

/// A name that says when, such as "20261122T051200.123Z", and that no file has yet.
pub(super) fn free_name(name: impl Fn(&str) -> PathBuf) -> PathBuf {
    let mut at_ms = clock::wall_ms();
    loop {
        let path = name(&file_time(at_ms));
        if !path.exists() {
            return path;
        }
        at_ms = at_ms.saturating_add(1);
    }
}

fn file_time(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms).map_or_else(
        |_beyond_the_calendar| format!("{at_ms}Z"),
        |at| at.strftime("%Y%m%dT%H%M%S%.3fZ").to_string(),
    )
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
