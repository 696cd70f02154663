//! Which of SQLite's errors pass, which mean a damaged file, and which end the daemon.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::ErrorCode;
use rusqlite::ffi;
use rustix::io::Errno;

use super::files::with_suffix;

/// Bytes of the probe: more than what a file system may have left of a block or an inode.
const PROBE_BYTES: usize = 64 * 1024;

/// What an error means for the group in hand.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Rolled back and worth another try.
    Passing {
        /// What is wrong and what to do; the same text for the same trouble.
        reason: String,
        /// The system's error number, where there is one.
        errno: Option<i32>,
    },
    /// The file's content is wrong.
    Damaged,
    /// Nobody knows what is on disk, or the code is wrong: no second try.
    Final,
}

/// Sorts an error met while writing the database at `path`.
pub(super) fn classify(error: &rusqlite::Error, path: &Path) -> Fault {
    let directory = path.parent().unwrap_or(Path::new("."));
    let Some(failure) = error.sqlite_error().filter(|_| !is_sync_failure(error)) else {
        return Fault::Final;
    };
    match failure.code {
        ErrorCode::DiskFull => passing(directory, Some(Errno::NOSPC)),
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed => passing_busy(directory),
        ErrorCode::OutOfMemory => passing(directory, Some(Errno::NOMEM)),
        ErrorCode::ReadOnly if failure.extended_code != ffi::SQLITE_READONLY_DBMOVED => {
            passing(directory, Some(Errno::ROFS))
        }
        ErrorCode::CannotOpen => passing(directory, probe(path)),
        // SQLite keeps the system's error number to itself. Whether it was space is asked of the
        // directory; an fsync that failed is final whatever the directory says now.
        ErrorCode::SystemIoFailure => match probe(path) {
            Some(errno) if is_passing(errno) => passing(directory, Some(errno)),
            _ => Fault::Final,
        },
        _ if is_damage(error) => Fault::Damaged,
        _ => Fault::Final,
    }
}

/// Whether an error met while opening the database comes from around it: the disk, its permissions,
/// another process. Every other one comes from what is in the file.
pub(super) fn is_environment(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::CannotOpen
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::DiskFull
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::OutOfMemory
                | ErrorCode::PermissionDenied
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
        )
    )
}

/// Whether a sync failed: what was to be synced may be gone, and the next sync would say yes.
pub(super) fn is_sync_failure(error: &rusqlite::Error) -> bool {
    let failure = error.sqlite_error();
    failure.is_some_and(|failure| failure.extended_code == ffi::SQLITE_IOERR_FSYNC)
}

/// Whether the error says that the file's content is wrong.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

fn is_passing(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::NOSPC
            | Errno::DQUOT
            | Errno::FBIG
            | Errno::ROFS
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOMEM
    )
}

fn passing(directory: &Path, errno: Option<Errno>) -> Fault {
    let what = match errno {
        Some(Errno::NOSPC) => "the disk is full: free some space",
        Some(Errno::DQUOT) => "the disk quota is used up: raise it or free some space",
        Some(Errno::FBIG) => "a limit of file sizes is reached: raise LimitFSIZE",
        Some(Errno::ROFS) => "the file system or the database is read-only: make it writable again",
        Some(Errno::MFILE | Errno::NFILE) => "no file descriptor is left: raise LimitNOFILE",
        Some(Errno::NOMEM) => "memory is short",
        _ => "the database cannot be opened for writing: look at the directory's permissions",
    };
    Fault::Passing {
        reason: format!("cannot write to {}: {what}", directory.display()),
        errno: errno.map(Errno::raw_os_error),
    }
}

fn passing_busy(directory: &Path) -> Fault {
    Fault::Passing {
        reason: format!(
            "another program holds a lock on the database in {}: end its transaction",
            directory.display()
        ),
        errno: None,
    }
}

/// Why a small file can't be written and synced beside the database, or one as long as the database's
/// files; none if both can.
fn probe(path: &Path) -> Option<Errno> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = tempfile::tempfile_in(directory)?;
        file.write_all(&[0; PROBE_BYTES])?;
        file.sync_all()?;
        for file_beside in [path, &with_suffix(path, "-wal")] {
            let end = fs::metadata(file_beside).map_or(0, |beside| beside.len());
            file.write_all_at(&[0; PROBE_BYTES], end)?;
        }
        Ok(())
    };
    write().err().and_then(|error| Errno::from_io_error(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(extended_code: i32) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(ffi::Error::new(extended_code), None)
    }

    #[test]
    fn a_failed_fsync_is_final_and_a_full_disk_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("master.db");
        let sort = |code| classify(&error(code), &database);
        assert_eq!(sort(ffi::SQLITE_IOERR_FSYNC), Fault::Final);
        assert_eq!(sort(ffi::SQLITE_IOERR_WRITE), Fault::Final);
        assert_eq!(sort(ffi::SQLITE_CONSTRAINT_PRIMARYKEY), Fault::Final);
        assert_eq!(sort(ffi::SQLITE_READONLY_DBMOVED), Fault::Final);
        assert_eq!(sort(ffi::SQLITE_CORRUPT_INDEX), Fault::Damaged);
        assert_eq!(sort(ffi::SQLITE_NOTADB), Fault::Damaged);
        assert!(matches!(
            sort(ffi::SQLITE_FULL),
            Fault::Passing {
                errno: Some(28),
                ..
            }
        ));
        assert!(matches!(
            sort(ffi::SQLITE_BUSY_SNAPSHOT),
            Fault::Passing { errno: None, .. }
        ));
    }
}
