//! The thread that owns the database, and what it does when the disk is full or the file damaged.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::wire::{self, GapReason};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::figures::Figures;
use super::queue::{GivenUp, Queue, RestreamError, Room};
use super::{Entry, Folder, SpoolError, SpoolLimits, Standing, database};

/// Reports that are kept in memory while they can't be written.
const HELD_MAX: usize = 16;
/// How soon they are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long acks may wait for the next append: longer than usual intervals, so that a report and its
/// ack cost one transaction and not two. If they are lost, the master's marks say the same.
const FLUSH_AFTER: Duration = Duration::from_secs(60);
/// Shortest time between two log lines about the same trouble.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Something to do on the thread, and the place in the channel that it takes until it is done.
pub(super) type Command = (Box<dyn FnOnce(&mut Worker) + Send>, OwnedSemaphorePermit);

/// Does what it is asked for until nobody can ask any more.
///
/// # Errors
/// The database was damaged and no new one can be had, or it could not be synced.
pub(super) fn run(
    mut worker: Worker,
    commands: &Receiver<Command>,
    figures: &Figures,
) -> Result<(), SpoolError> {
    figures.end(worker.backlog());
    loop {
        let received = worker.receive(commands);
        figures.begin(clock::boot());
        match received {
            Ok((command, _place)) => command(&mut worker),
            Err(RecvTimeoutError::Timeout) => worker.tidy(),
            Err(RecvTimeoutError::Disconnected) => {
                worker.tidy();
                return worker.broken.take().map_or(Ok(()), Err);
            }
        }
        if let Some(error) = worker.broken.take() {
            return Err(error);
        }
        figures.end(worker.backlog());
    }
}

/// What the thread owns.
pub(super) struct Worker {
    /// `None` while a damaged database is being replaced, and when that has failed.
    queue: Option<Queue>,
    broken: Option<SpoolError>,
    newest: watch::Sender<u64>,
    /// The database was replaced, and the reader has not been told yet.
    replaced: bool,
    /// Reports that could not be written, oldest first.
    held: VecDeque<wire::Report>,
    /// Reports dropped because more than [`HELD_MAX`] could not be written.
    dropped: u64,
    failure_logged: Option<Moment>,
    flush_failure_logged: Option<Moment>,
    given_up: GivenUp,
    given_up_logged: Option<Moment>,
}

impl Worker {
    /// Opens the folder's database; `newest` is told the id of each newest report.
    pub(super) fn open(
        folder: Folder,
        limits: SpoolLimits,
        newest: watch::Sender<u64>,
    ) -> Result<Self, SpoolError> {
        let queue = Queue::open(folder, limits, clock::wall_ms())?;
        newest.send_replace(queue.newest_id());
        Ok(Self {
            queue: Some(queue),
            broken: None,
            newest,
            replaced: false,
            held: VecDeque::new(),
            dropped: 0,
            failure_logged: None,
            flush_failure_logged: None,
            given_up: GivenUp::default(),
            given_up_logged: None,
        })
    }

    /// Reports that are not acked, those in memory included.
    fn backlog(&self) -> u64 {
        let stored = self
            .queue
            .as_ref()
            .map_or(0, |queue| queue.totals().reports);
        stored + u64::try_from(self.held.len()).unwrap_or(0)
    }

    /// Stores the report, or holds it in memory until it can be stored; whether it was stored.
    pub(super) fn append(&mut self, report: wire::Report) -> Result<bool, SpoolError> {
        self.held.push_back(report);
        if self.held.len() > HELD_MAX {
            self.held.pop_front();
            self.dropped += 1;
        }
        self.store_held();
        Ok(self.held.is_empty())
    }

    /// See [`Queue::acked`].
    pub(super) fn acked(&mut self, marks: &[wire::Mark]) -> Result<(), SpoolError> {
        self.read(|queue| {
            marks
                .iter()
                .try_for_each(|mark| queue.acked(mark.stream, mark.sequence))
        })
    }

    /// See [`Queue::read_after`].
    pub(super) fn read_after(&mut self, after: u64, max: usize) -> Result<Vec<Entry>, SpoolError> {
        self.read(|queue| queue.read_after(after, max))
    }

    /// See [`Queue::newest`].
    pub(super) fn newest(&mut self) -> Result<Option<Entry>, SpoolError> {
        self.read(Queue::newest)
    }

    /// See [`Queue::standing`].
    pub(super) fn standing(&mut self) -> Result<Standing, SpoolError> {
        self.replaced = false;
        self.read(|queue| queue.standing())
    }

    /// See [`Queue::introduce`].
    pub(super) fn introduce(&mut self) -> Result<Standing, SpoolError> {
        self.replaced = false;
        self.read(Queue::introduce)
    }

    /// See [`Queue::give_up`].
    pub(super) fn give_up(&mut self, id: u64, reason: GapReason) -> Result<(), SpoolError> {
        self.read(|queue| queue.give_up(id, reason))
    }

    /// See [`Queue::restream`].
    pub(super) fn restream(&mut self, stream: u64) -> Result<u64, SpoolError> {
        let new = self.read(|queue| match queue.restream(stream) {
            Ok(new) => Ok(Ok(new)),
            Err(RestreamError::Random(error)) => Ok(Err(error)),
            Err(RestreamError::Database(error)) => Err(error),
        })?;
        Ok(new?)
    }

    /// See [`Queue::set_limits`].
    pub(super) fn set_limits(&mut self, limits: SpoolLimits) -> Result<(), SpoolError> {
        let queue = self.queue.as_mut().ok_or(SpoolError::Ended)?;
        queue.set_limits(limits);
        Ok(())
    }

    fn receive(&self, commands: &Receiver<Command>) -> Result<Command, RecvTimeoutError> {
        let has_cleared = self.queue.as_ref().is_some_and(Queue::has_cleared);
        match (self.held.is_empty(), has_cleared) {
            (false, _) => commands.recv_timeout(RETRY),
            (true, true) => commands.recv_timeout(FLUSH_AFTER),
            (true, false) => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    /// What is done when there is nothing to do.
    fn tidy(&mut self) {
        self.store_held();
        if let Some(queue) = &mut self.queue
            && let Err(error) = queue.flush()
            && !self.handle(&error)
            && is_due(&mut self.flush_failure_logged)
        {
            tracing::warn!(
                event = "spool_ack_not_noted",
                error = %error,
                "what was acked can't be taken out of the spool; it is tried again, and a report that is sent twice is applied once"
            );
        }
    }

    /// Works on the database for the reader, which is told once when it was replaced.
    fn read<T>(
        &mut self,
        work: impl FnOnce(&mut Queue) -> rusqlite::Result<T>,
    ) -> Result<T, SpoolError> {
        if std::mem::take(&mut self.replaced) {
            return Err(SpoolError::Replaced);
        }
        let queue = self.queue.as_mut().ok_or(SpoolError::Ended)?;
        let path = queue.folder().database();
        work(queue).map_err(|source| {
            if self.handle(&source) {
                // This is how it is told.
                self.replaced = false;
                SpoolError::Replaced
            } else {
                SpoolError::Database { path, source }
            }
        })
    }

    fn store_held(&mut self) {
        let Some(queue) = self.queue.as_mut().filter(|_| !self.held.is_empty()) else {
            return;
        };
        let room = Room {
            now_ms: clock::wall_ms(),
            free_bytes: queue.folder().free_bytes().ok(),
        };
        match queue.append(self.held.make_contiguous(), room) {
            Ok(given_up) => {
                self.newest.send_replace(queue.newest_id());
                self.held.clear();
                self.log_recovery();
                self.log_given_up(given_up);
            }
            Err(error) if self.handle(&error) => self.store_held(),
            Err(error) => self.log_failure(&error),
        }
    }

    /// Replaces the database if `error` means that it is damaged; whether it did. Gives up if it
    /// could not be synced: the next sync would say yes to what the kernel has dropped.
    fn handle(&mut self, error: &rusqlite::Error) -> bool {
        if let Some(queue) = self.queue.take_if(|_| database::is_sync_failure(error)) {
            self.broken = Some(queue.abandon(error));
            return false;
        }
        let Some(queue) = self.queue.take_if(|_| database::is_damage(error)) else {
            return false;
        };
        match queue.replace(clock::wall_ms(), error) {
            Ok(queue) => {
                self.queue = Some(queue);
                self.replaced = true;
                true
            }
            Err(error) => {
                self.broken = Some(error);
                false
            }
        }
    }

    fn log_failure(&mut self, error: &rusqlite::Error) {
        if is_due(&mut self.failure_logged) {
            tracing::warn!(
                event = "spool_append_failed",
                error = %error,
                held = self.held.len(),
                dropped = self.dropped,
                "a report can't be stored; the newest are kept in memory and tried again"
            );
        }
    }

    fn log_recovery(&mut self) {
        if self.failure_logged.take().is_some() {
            let dropped = std::mem::take(&mut self.dropped);
            tracing::info!(
                event = "spool_append_recovered",
                dropped,
                "reports are stored again"
            );
        }
    }

    fn log_given_up(&mut self, now: GivenUp) {
        self.given_up.expired += now.expired;
        self.given_up.full += now.full;
        if self.given_up != GivenUp::default() && is_due(&mut self.given_up_logged) {
            let GivenUp { expired, full } = std::mem::take(&mut self.given_up);
            let totals = self.queue.as_ref().map(Queue::totals).unwrap_or_default();
            tracing::warn!(
                event = "spool_gave_way",
                expired,
                full,
                backlog = totals.reports,
                bytes = totals.bytes,
                "the spool had to give up reports; the master will be told which"
            );
        }
    }
}

/// Whether a line may be logged again; if so, it counts as logged now.
fn is_due(logged: &mut Option<Moment>) -> bool {
    let now = clock::boot();
    let due = logged.is_none_or(|logged| now.saturating_since(logged) >= LOG_EVERY);
    if due {
        *logged = Some(now);
    }
    due
}
