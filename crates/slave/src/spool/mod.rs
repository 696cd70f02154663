//! The durable spool: a report exists once it is committed here.
//!
//! One SQLite database in the state folder holds every report that the master has not acked yet.
//! One thread owns its connection; the rest of the daemon talks to it over a bounded channel.
//!
//! ```text
//!   collector ── append ──> ┌────────────────┐
//!                           │ spool thread   │ entries, in order: R R R G R R R
//!   link <── read_after ──  │ Queue (SQLite) │ R report, G gap: what had to be given up
//!   link ─── acked ───────> └────────────────┘
//! ```
//!
//! Each start of the process begins a new stream; what older streams left behind stays under their
//! own ids and sequences until it is acked, so that the master can tell a repeat from a new report.
//! An ack is synced together with the next append: to send again what was acked does no harm.

mod database;
mod entries;
mod figures;
mod folder;
mod handle;
mod limits;
mod migration;
mod queue;
mod states;
mod thread;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::path::PathBuf;

use rollcall_protocol::wire;

pub(crate) use figures::Figures;
use folder::Folder;
pub(crate) use handle::{Ended, Spool, SpoolEnd, renew_identity};
pub(crate) use limits::SpoolLimits;
pub(crate) use queue::{BEFORE_ALL, NewIdentity};

/// One report or gap of the spool.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Its place: entries are sent in the order of their ids.
    pub(crate) id: u64,
    /// What it is, with its stream and its sequence.
    pub(crate) body: Body,
}

/// What an [`Entry`] holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Body {
    /// A report, `live` not set.
    Report(wire::Report),
    /// The receipt for reports that were given up.
    Gap(wire::Gap),
}

/// What the slave says of its spool in Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The slave's identity.
    pub(crate) slave_id: [u8; 16],
    /// The stream that new reports are appended to.
    pub(crate) stream: u64,
    /// The sequence that its next report will get.
    pub(crate) next_sequence: u64,
    /// Number of reports that have not been acked.
    pub(crate) backlog: u64,
    /// Every stream with unacked entries, oldest first, and `stream` itself as the last.
    pub(crate) pending: Vec<wire::Pending>,
    /// The streams of this folder's earlier processes that have said Hello, newest first.
    pub(crate) previous: Vec<u64>,
}

impl Standing {
    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        let [own] = self.pending.as_slice() else {
            return false;
        };
        own.first == self.next_sequence
    }
}

/// Why the spool can't do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// Another slave runs on the same folder.
    #[error(
        "the state folder {} is in use by another slave ({holder}); stop it, or give this slave a folder of its own ([state] directory)",
        path.display()
    )]
    InUse {
        /// The state folder.
        path: PathBuf,
        /// "pid N", as far as known.
        holder: String,
    },
    /// There is no state folder.
    #[error(
        "there is no state folder {}: a slave makes it, and draws its id, at its first start",
        path.display()
    )]
    NoFolder {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file of the state folder can't be used.
    #[error("can't {verb} {}: {source}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// SQLite refused, for example for want of space. What was asked for may work later.
    #[error("the spool {} can't be written: {source}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The disk did not take what was written, and there is no telling what of it arrived.
    #[error(
        "the spool {} could not be synced ({error}): look after the disk; the next start goes on from what is on it",
        path.display()
    )]
    Sync {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        error: String,
    },
    /// The database was damaged and has been set aside; a new one with a new stream took its place.
    #[error("the spool was damaged and has been replaced by a new one")]
    Replaced,
    /// The SQLite that was linked in may lose committed writes.
    #[error("SQLite {found} is too old, it must be 3.51.3 or later: build with the bundled one")]
    OldSqlite {
        /// Its version.
        found: &'static str,
    },
    /// No random numbers from the system.
    #[error("no random numbers from the system: {0}")]
    Random(#[from] getrandom::Error),
    /// The spool's thread has ended.
    #[error("the spool's thread has ended")]
    Ended,
}
