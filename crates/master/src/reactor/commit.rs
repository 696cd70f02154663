//! Group commit: what has arrived while the last group was written is the next one.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::api::{EventKind, EventRow};
use tokio::sync::{Notify, mpsc};

use super::{CoreFailure, Reactor};
use crate::roll::{Gathered, Published, Stamp};
use crate::store::{Outcome, StoreError, StoreHandle};
use crate::view::{Degraded, RollSnapshot};

/// Readers get a new snapshot at most this often, in milliseconds.
const PUBLISH_EVERY_MS: u128 = 100;

/// One group's way to the disk, and those who wait for it.
#[derive(Debug, Default)]
pub(super) struct Turn {
    committed: Cell<bool>,
    waiting: Notify,
}

impl Turn {
    async fn committed(&self) {
        // Registered before the question is asked; both happen on one thread.
        let notified = self.waiting.notified();
        if !self.committed.get() {
            notified.await;
        }
    }

    fn finish(&self) {
        self.committed.set(true);
        self.waiting.notify_waiters();
    }
}

impl Reactor {
    /// Resolves when everything that the roll has taken in so far is durable.
    pub(crate) async fn durable(&self) {
        let turn = if self.roll.borrow().has_group() {
            self.wanted.notify_one();
            Some(Rc::clone(&self.gathering.borrow()))
        } else {
            self.committing.borrow().clone()
        };
        if let Some(turn) = turn {
            turn.committed().await;
        }
    }

    /// Has whatever the roll holds committed soon, and the time of listening with it.
    pub(super) fn want_commit(&self) {
        self.wanted.notify_one();
    }

    /// Commits group after group; ends only when it can't.
    pub(crate) async fn commit_groups(
        &self,
        store: &StoreHandle,
        outcomes: &mut mpsc::Receiver<Outcome>,
    ) -> CoreFailure {
        loop {
            self.wanted.notified().await;
            // Connections that are ready in this turn of the loop join the group.
            tokio::task::yield_now().await;
            let (gathered, published) = self.take_group();
            let Gathered { group, events } = gathered;
            let id = group.id;
            if store.commit(group).is_err() {
                return StoreError::Panicked.into();
            }
            if let Err(failure) = self.await_commit(id, outcomes).await {
                return failure;
            }
            self.tell(&events);
            if let Some(published) = published {
                self.publish(published);
            }
            if self.roll.borrow().has_group() {
                self.wanted.notify_one();
            }
        }
    }

    /// The group that has gathered becomes the one that is committed.
    fn take_group(&self) -> (Gathered, Option<Published>) {
        let now = clock::boot();
        let mut roll = self.roll();
        let gathered = roll.take_group(clock::wall_ms());
        // What this snapshot shows is durable with the group.
        let last = self.published_at.get();
        let due = now.saturating_since(last).as_millis() >= PUBLISH_EVERY_MS;
        let published = due.then(|| roll.publish()).flatten();
        let turn = self.gathering.take();
        self.committing.replace(Some(turn));
        self.committing_since.set(Some(now));
        self.stats().commit_begun(now);
        (gathered, published)
    }

    async fn await_commit(
        &self,
        group: u64,
        outcomes: &mut mpsc::Receiver<Outcome>,
    ) -> Result<(), CoreFailure> {
        loop {
            match outcomes.recv().await {
                Some(Outcome::Committed { id, took, bytes }) => {
                    debug_assert_eq!(id, group, "one group at a time");
                    self.stats().committed(took, bytes);
                    self.durable_group.set(id);
                    break;
                }
                Some(Outcome::Degraded { reason }) => {
                    self.stats().store_refuses.set(1);
                    self.degrade(reason);
                }
                Some(Outcome::Failed { error }) => return Err(error.into()),
                None => return Err(StoreError::Panicked.into()),
            }
        }
        self.committed_at.set(clock::boot());
        self.committing_since.set(None);
        if let Some(turn) = self.committing.take() {
            turn.finish();
        }
        self.recover();
        Ok(())
    }

    /// Readers are told why nothing is stored, since when; the caller has logged it.
    pub(super) fn degrade(&self, reason: String) {
        let before = self.degraded.take();
        let (since, since_ms) = match before {
            Some(degraded) => (degraded.since, degraded.since_ms),
            None => self.commit_began(),
        };
        self.degraded.replace(Some(Degraded {
            reason,
            since,
            since_ms,
        }));
        self.publish_again();
    }

    /// On the boot clock, and in ms since 1970.
    fn commit_began(&self) -> (Moment, i64) {
        let now = clock::boot();
        let began = self.committing_since.get().unwrap_or(now);
        let ago = now.saturating_since(began).as_millis();
        let ago_ms = i64::try_from(ago).unwrap_or(i64::MAX);
        (began, clock::wall_ms().saturating_sub(ago_ms))
    }

    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded.borrow().is_some()
    }

    /// What was degraded is told in an event, now that events can be stored again.
    fn recover(&self) {
        let Some(degraded) = self.degraded.take() else {
            return;
        };
        let now = Stamp {
            at: clock::boot(),
            wall_ms: clock::wall_ms(),
        };
        self.roll()
            .handle_degraded(&degraded.reason, degraded.since_ms, now);
        self.publish_again();
    }

    /// Publishes what has changed if all of it is durable.
    pub(super) fn publish_if_quiet(&self) {
        let quiet = self.committing.borrow().is_none() && !self.roll.borrow().has_group();
        if quiet && let Some(published) = self.roll().publish() {
            self.publish(published);
        }
    }

    /// Shows `slaves`, all of them durable, to readers.
    pub(super) fn publish(&self, slaves: Published) {
        self.published_at.set(clock::boot());
        self.published.replace(slaves.clone());
        let degraded = self.degraded.borrow().clone();
        let snapshot = RollSnapshot { slaves, degraded };
        self.publication.roll.send_replace(Arc::new(snapshot));
    }

    /// Shows the same slaves again, because something else has changed.
    fn publish_again(&self) {
        let slaves = self.published.borrow().clone();
        self.publish(slaves);
    }

    fn tell(&self, events: &[Arc<EventRow>]) {
        for event in events {
            log(event);
            // Nobody may be following.
            let _ = self.publication.events.send(Arc::clone(event));
        }
    }
}

/// The log has a line for every event of the roll, under the event's own name.
fn log(row: &EventRow) {
    macro_rules! line {
        ($level:ident, event = $event:literal, $message:literal) => {
            tracing::$level!(
                event = $event,
                slave = row.slave.as_deref(),
                subject = row.subject.as_deref(),
                from = row.from.as_deref(),
                to = row.to.as_deref(),
                text = row.text.as_str(),
                replayed = row.replayed,
                $message
            )
        };
    }
    match row.kind {
        EventKind::Enrolled => line!(info, event = "slave_enrolled", "a new slave is on the roll"),
        EventKind::Presence => line!(
            info,
            event = "presence_changed",
            "a slave's presence changed"
        ),
        EventKind::Health => line!(info, event = "health_changed", "a slave's health changed"),
        EventKind::Check => line!(info, event = "check_changed", "a check's state changed"),
        EventKind::Gap => line!(warn, event = "reports_lost", "a slave had to drop reports"),
        EventKind::Conflict => line!(
            warn,
            event = "slave_conflict",
            "two slaves claim one id or name"
        ),
        EventKind::Resync => line!(
            warn,
            event = "slave_resync",
            "a slave's sequences ran backwards"
        ),
        EventKind::Restart => line!(
            info,
            event = "slave_restarted",
            "a slave's process started anew"
        ),
        EventKind::Renamed => line!(info, event = "slave_renamed", "a slave has another name"),
        EventKind::MasterStart => line!(info, event = "master_started", "the master started"),
        EventKind::Degraded => line!(
            warn,
            event = "degraded_spell",
            "nothing could be stored for a while"
        ),
    }
}
