//! Why the store can't be opened, or gives up.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why the store can't be opened or went on strike.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// The state directory can't be made.
    #[error(
        "cannot create the state directory {}: give this user write access to it, or set [state] directory",
        path.display()
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the state directory can't be read or written.
    #[error("cannot {what} {}: give this user write access to the state directory", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another master uses the directory.
    #[error(
        "another master ({holder}) uses the state directory {}: stop it, or give this one a [state] directory of its own",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, as far as it could be told.
        holder: String,
    },
    /// A newer build has written the database.
    #[error(
        "{} has schema version {found} and this build knows up to {known}: install the newer rollcall-master again, or set [state] directory to another folder",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that this build knows.
        known: i64,
    },
    /// The file is a database of some other program.
    #[error(
        "{} is not Rollcall's database (application id {found:#x}): move it away, or set [state] directory to another folder",
        path.display()
    )]
    Foreign {
        /// The database.
        path: PathBuf,
        /// Its application id.
        found: i64,
    },
    /// The linked SQLite has the WAL-reset bug.
    #[error(
        "this build is linked with SQLite {found}, which can lose committed rows: build it with 3.51.3 or later"
    )]
    OldSqlite {
        /// The version that is linked.
        found: &'static str,
    },
    /// No randomness for the master's id.
    #[error("cannot draw the master's id: {0}")]
    Random(getrandom::Error),
    /// SQLite says no.
    #[error("cannot {what} {}: {source}", path.display())]
    Sqlite {
        /// What was tried.
        what: &'static str,
        /// The database.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A start would set it aside.
    #[error(
        "{} is damaged, and a start would set it aside: `rollcall-master --verify-store` tells the damage; {source}",
        path.display()
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        source: rusqlite::Error,
    },
    /// There is nothing to verify.
    #[error("there is no store at {}: look at [state] directory, or give --config", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The copy that goes before a migration can't be made.
    #[error(
        "the store has schema version {found} and must be brought to {known}, but its backup {} cannot be written: make room for a second copy of the database",
        path.display()
    )]
    Backup {
        /// The copy.
        path: PathBuf,
        /// The version of the database.
        found: i64,
        /// The version that this build needs.
        known: i64,
        /// Why.
        source: rusqlite::Error,
    },
    /// The thread can't be started.
    #[error("cannot start the store's thread")]
    Thread(#[source] io::Error),
    /// The owner broke the contract of [`StoreHandle::commit`](super::StoreHandle::commit).
    #[error("group {second} was handed over before the outcome of group {first}")]
    TwoGroups {
        /// The group in hand.
        first: u64,
        /// The one that came too early.
        second: u64,
    },
    /// The thread has panicked; the panic's own line tells where.
    #[error("the store's thread panicked")]
    Panicked,
}

/// The thread is gone: it has failed or panicked, which [`StoreHandle::close`](super::StoreHandle::close) tells apart.
#[derive(Debug, Error)]
#[error("the store's thread has ended and takes no more groups")]
pub(crate) struct StoreGone;
