//! What the master keeps on disk: the roll's records, the redo of the newest reports, and the events.
//!
//! One thread owns the database and commits one [`Group`] at a time, each in one transaction, so that
//! the reactor never waits for a disk. A group that is [`Outcome::Committed`] is on disk: only then may
//! its reports be acked. A full disk or a database that somebody else holds is waited out
//! ([`Outcome::Degraded`]); a disk that fails or a damaged database ends the daemon
//! ([`Outcome::Failed`]), because after a failed fsync(2) nobody knows what is on disk.
//!
//! ```text
//!   reactor ── commit(Group) ──> thread ── BEGIN … COMMIT ──> master.db
//!      ^                           │  ^ no space: rolled back, kept, tried again
//!      └──────── Outcome ──────────┘  └── 0.25 s … 2 s
//! ```

mod checksum;
mod error;
pub(crate) mod events;
mod fault;
mod files;
mod load;
mod lock;
mod migration;
mod rows;
mod salvage;
mod schema;
mod selfcheck;
#[cfg(test)]
mod tests;
mod thread;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rollcall_protocol::api::EventRow;
use tokio::sync::mpsc;

pub(crate) use error::{StoreError, StoreGone};
pub(crate) use schema::SCHEMA_VERSION as LAYOUT;
pub(crate) use selfcheck::{Look, look};
pub(crate) use verify::{Inspect, verify};

/// The database's file name inside the state directory.
const DATABASE: &str = "master.db";
/// Outcomes that may wait for the reactor: one group's troubles and its end.
const OUTCOMES_MAX: usize = 4;

/// What the owner of the roll hands over for one transaction.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Grows by at least one with every group; the first is [`Loaded::next_group`].
    pub(crate) id: u64,
    /// The reports of the group, as the owner wants them back after a crash; empty if there are none.
    pub(crate) redo: Vec<u8>,
    /// New events. The owner assigns their ids, from [`Loaded::next_event`], without reuse.
    pub(crate) events: Vec<EventRow>,
    /// Records of slaves to write, new or anew.
    pub(crate) records: Vec<Record>,
    /// Slaves to remove.
    pub(crate) forgotten: Vec<[u8; 16]>,
    /// Redo of groups below this id is in the records by now and can go.
    pub(crate) forget_redo_below: Option<u64>,
    /// The newest moment at which the master was listening, in ms since 1970.
    pub(crate) listening_at_ms: i64,
}

/// A slave's durable record. `blob` is the owner's; the other columns are for people with `sqlite3`.
#[derive(Debug)]
pub(crate) struct Record {
    /// The slave's id.
    pub(crate) id: [u8; 16],
    /// Its name.
    pub(crate) name: String,
    /// Its presence, as the API says it.
    pub(crate) presence: &'static str,
    /// Its health, as the API says it; none before the first report.
    pub(crate) health: Option<&'static str>,
    /// When its newest live report was read, in ms since 1970.
    pub(crate) last_seen_ms: Option<i64>,
    /// Everything that the owner needs to go on.
    pub(crate) blob: Vec<u8>,
}

/// What was on disk when the store was opened.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// The master's id, drawn when the database was made.
    pub(crate) master_id: [u8; 16],
    /// The records: the slave's id and what the owner had written.
    pub(crate) records: Vec<([u8; 16], Vec<u8>)>,
    /// Redo to apply over the records, oldest group first.
    pub(crate) redo: Vec<(u64, Vec<u8>)>,
    /// When the master was listening last, in ms since 1970; none on the first start.
    pub(crate) listening_at_ms: Option<i64>,
    /// The id of the next group.
    pub(crate) next_group: u64,
    /// The id of the next event.
    pub(crate) next_event: i64,
    /// The damaged database that was set aside, if the last one was; its readable records and redo
    /// are in this answer and in the new database.
    pub(crate) set_aside: Option<PathBuf>,
    /// The last run did not end in order, and the log of its last commits is gone.
    pub(crate) log_missing: bool,
    /// Databases that were set aside, now or earlier, and that nobody has taken away.
    pub(crate) set_aside_files: usize,
}

/// What became of the group in hand.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The group is on disk. Ends a degraded state, if there was one.
    Committed {
        /// The group.
        id: u64,
        /// How long the transaction took, without earlier attempts.
        took: Duration,
        /// Bytes of redo written.
        bytes: u64,
    },
    /// The group can't be written at present and is kept and tried again. Sent once for each new
    /// reason; more outcomes of the same group follow.
    Degraded {
        /// What is wrong and what to do.
        reason: String,
    },
    /// The group could not be written and the thread has ended. The daemon must end, too.
    Failed {
        /// What is wrong.
        error: StoreError,
    },
}

/// How much history is kept. What is over either bound goes, oldest first, in slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retention {
    /// Events that were recorded longer ago go.
    pub(crate) keep: Duration,
    /// Events go while the database has more bytes in use.
    pub(crate) bytes_max: u64,
}

/// What [`Store::open`] gives.
#[derive(Debug)]
pub(crate) struct Opened {
    /// What was on disk.
    pub(crate) loaded: Loaded,
    /// Where groups go.
    pub(crate) handle: StoreHandle,
    /// Where outcomes come from. Its end without an [`Outcome::Failed`] means that the thread
    /// panicked, or that the handle was dropped.
    pub(crate) outcomes: mpsc::Receiver<Outcome>,
}

/// The way to the store's thread.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    groups: std_mpsc::SyncSender<Group>,
    thread: JoinHandle<()>,
}

impl StoreHandle {
    /// Hands a group over without waiting. The next one may follow when the outcome of this one is
    /// [`Outcome::Committed`], not before.
    pub(crate) fn commit(&self, group: Group) -> Result<(), StoreGone> {
        // Blocks only if the contract is broken twice over: the thread takes a group out of the
        // channel before it works on it.
        self.groups.send(group).map_err(|_gone| StoreGone)
    }

    /// Ends the thread and waits for it. A group in hand is still written, unless the store is
    /// degraded: then it is dropped, and since it was never acked, nothing is lost. Blocks for the
    /// length of that commit. Drop [`Opened::outcomes`] first or go on reading them: the thread
    /// waits for room to say how the group ended.
    pub(crate) fn close(self) -> Result<(), StoreError> {
        drop(self.groups);
        self.thread.join().map_err(|_panic| StoreError::Panicked)
    }
}

/// The master's store.
#[derive(Debug)]
pub(crate) struct Store;

impl Store {
    /// The database in a state directory, for an [`events::EventReader`].
    pub(crate) fn database(directory: &Path) -> PathBuf {
        directory.join(DATABASE)
    }

    /// A reader has met an error: if it is damage, the next start checks the whole file.
    pub(crate) fn suspect(database: &Path, error: &rusqlite::Error) {
        if fault::is_damage(error) {
            files::mark_suspect(database);
        }
    }

    /// Opens or creates the store of a state directory, loads what is in it, and starts its thread.
    /// Events beyond `retention` are removed in small slices.
    ///
    /// Blocks for as long as loading takes. A damaged database is set aside under a name that says
    /// when and why, what can be read of the roll is carried over, and [`Loaded::set_aside`] tells.
    pub(crate) fn open(directory: &Path, retention: Retention) -> Result<Opened, StoreError> {
        fs::create_dir_all(directory).map_err(|source| StoreError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        let lock = lock::take(directory)?;
        let (database, loaded) = salvage::open_or_set_aside(&Self::database(directory))?;
        schema::keep_log_at_close(&database.connection, false)
            .map_err(|source| database.fault("set up", source))?;
        tracing::info!(
            event = "store_opened",
            path = %Self::database(directory).display(),
            slaves = loaded.records.len(),
            redo_groups = loaded.redo.len(),
            next_group = loaded.next_group,
            "the store is open"
        );

        let (groups, groups_in) = std_mpsc::sync_channel(1);
        let (outcomes, outcomes_in) = mpsc::channel(OUTCOMES_MAX);
        let writer = thread::Writer::new(database, retention, groups_in, outcomes);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                // Held until the last write is over.
                let _lock = lock;
                writer.run();
            })
            .map_err(StoreError::Thread)?;
        Ok(Opened {
            loaded,
            handle: StoreHandle { groups, thread },
            outcomes: outcomes_in,
        })
    }
}
