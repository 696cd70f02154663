//! The spool as the rest of the daemon sees it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, mpsc};

use rollcall_os::clock;
use rollcall_protocol::wire::{self, GapReason};
use tokio::sync::{Semaphore, oneshot, watch};

use super::figures::Figures;
use super::queue::{NewIdentity, Queue};
use super::thread::{Command, Worker, run};
use super::{Entry, Folder, SpoolError, SpoolLimits, Standing};

/// Requests that may wait for the thread; whoever has one more waits before it.
const WAITING_MAX: usize = 16;

/// Handle of the spool's thread, which ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Spool {
    commands: mpsc::Sender<Command>,
    places: Arc<Semaphore>,
    newest: watch::Receiver<u64>,
    figures: Arc<Figures>,
}

/// How the spool's thread ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolEnd {
    /// A bug.
    #[error("the spool's thread panicked: {0}")]
    Panicked(String),
    /// The database was damaged and no new one can be had.
    #[error(transparent)]
    Failed(#[from] SpoolError),
}

/// Resolves when the thread has ended: with `Ok` if that is because all handles were dropped.
pub(crate) type Ended = oneshot::Receiver<Result<(), SpoolEnd>>;

impl Spool {
    /// Locks the folder, opens its database and starts the thread.
    ///
    /// # Errors
    /// The folder is in use by another slave, or can't be written.
    pub(crate) fn open(directory: &Path, limits: SpoolLimits) -> Result<(Self, Ended), SpoolError> {
        let folder = Folder::lock(directory)?;
        let path = folder.path().to_owned();
        let (newest, watched) = watch::channel(0);
        let worker = Worker::open(folder, limits, newest)?;
        let (commands, received) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        let figures = Arc::new(Figures::default());
        let shown = Arc::clone(&figures);
        std::thread::Builder::new()
            .name("spool".to_owned())
            .stack_size(1024 * 1024)
            .spawn(move || {
                let outcome = catch_unwind(AssertUnwindSafe(|| run(worker, &received, &shown)));
                let result = match outcome {
                    Ok(result) => result.map_err(SpoolEnd::Failed),
                    Err(panic) => Err(SpoolEnd::Panicked(message(&*panic))),
                };
                // Nobody listens any more: then nobody waits either.
                drop(end.send(result));
            })
            .map_err(|source| SpoolError::File {
                verb: "start a thread for",
                path,
                source,
            })?;
        let spool = Self {
            commands,
            places: Arc::new(Semaphore::new(WAITING_MAX)),
            newest: watched,
            figures,
        };
        Ok((spool, ended))
    }

    /// Commits a report; its sequence and its stream are the spool's to assign. Returns false if it
    /// could not be written: it is kept in memory then and tried again.
    ///
    /// # Errors
    /// [`SpoolError::Ended`]
    pub(crate) async fn append(&self, report: wire::Report) -> Result<bool, SpoolError> {
        self.call(move |worker| worker.append(report)).await
    }

    /// All up to these marks is durable in the master. This is synced with the next append at the
    /// latest.
    ///
    /// # Errors
    /// [`SpoolError::Replaced`], [`SpoolError::Database`], [`SpoolError::Ended`]
    pub(crate) async fn acked(&self, marks: Vec<wire::Mark>) -> Result<(), SpoolError> {
        self.call(move |worker| worker.acked(&marks)).await
    }

    /// Up to `max` entries with ids above `after`, in order. A new reader begins with
    /// [`super::BEFORE_ALL`]. There is one reader at a time.
    ///
    /// # Errors
    /// As for [`Self::acked`].
    pub(crate) async fn read_after(
        &self,
        after: u64,
        max: usize,
    ) -> Result<Vec<Entry>, SpoolError> {
        self.call(move |worker| worker.read_after(after, max)).await
    }

    /// The newest report, if it is not acked.
    ///
    /// # Errors
    /// As for [`Self::acked`].
    pub(crate) async fn newest(&self) -> Result<Option<Entry>, SpoolError> {
        self.call(Worker::newest).await
    }

    /// How the spool stands.
    ///
    /// # Errors
    /// As for [`Self::acked`].
    pub(crate) async fn standing(&self) -> Result<Standing, SpoolError> {
        self.call(Worker::standing).await
    }

    /// What Hello has to say. That this stream has said Hello is remembered before it does, so that
    /// the next process on this folder can name it as an earlier one.
    ///
    /// # Errors
    /// As for [`Self::acked`].
    pub(crate) async fn introduce(&self) -> Result<Standing, SpoolError> {
        self.call(Worker::introduce).await
    }

    /// Gives up one report that can't be sent: a gap takes its place.
    ///
    /// # Errors
    /// As for [`Self::acked`].
    pub(crate) async fn give_up(&self, id: u64, reason: GapReason) -> Result<(), SpoolError> {
        self.call(move |worker| worker.give_up(id, reason)).await
    }

    /// Moves what is not acked of `stream` to a new stream; returns the new one. If it was the
    /// stream of new reports, these go to the new one from now on.
    ///
    /// # Errors
    /// As for [`Self::acked`], and [`SpoolError::Random`].
    pub(crate) async fn restream(&self, stream: u64) -> Result<u64, SpoolError> {
        self.call(move |worker| worker.restream(stream)).await
    }

    /// Changes the bounds; the next append keeps them.
    ///
    /// # Errors
    /// [`SpoolError::Ended`]
    pub(crate) async fn set_limits(&self, limits: SpoolLimits) -> Result<(), SpoolError> {
        self.call(move |worker| worker.set_limits(limits)).await
    }

    /// What the thread shows of itself. This is no handle: the thread may end.
    pub(crate) fn figures(&self) -> Arc<Figures> {
        Arc::clone(&self.figures)
    }

    /// The id of the newest report; changes when one was committed.
    pub(crate) fn watch_newest(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(|_| SpoolError::Ended)?;
        let (reply, answer) = oneshot::channel();
        let command = move |worker: &mut Worker| {
            // Whoever asked may have gone meanwhile; the work is done all the same.
            drop(reply.send(work(worker)));
        };
        self.commands
            .send((Box::new(command), place))
            .map_err(|_| SpoolError::Ended)?;
        answer.await.map_err(|_| SpoolError::Ended)?
    }
}

/// Draws a new id for the slave whose state folder this is, and keeps its spool. No slave may run on
/// it, and none is started.
///
/// # Errors
/// There is no such folder, it is in use by a slave, or it can't be written.
pub(crate) fn renew_identity(
    directory: &Path,
    limits: SpoolLimits,
) -> Result<NewIdentity, SpoolError> {
    let folder = Folder::lock_existing(directory)?;
    Queue::open(folder, limits, clock::wall_ms())?.renew_identity()
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
        .to_owned()
}
