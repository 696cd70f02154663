//! When a connection is left, and who closes it.

use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::Moment;

use super::{Exchange, Leaving};
use crate::link::Close;
use crate::link::end::End;
use crate::random;

/// How long the master may take to close after its last word. If it does not, the slave closes
/// first, which costs it a port for a minute.
pub(crate) const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// How long an exchange stays for the close once all is acked. A master closes in the next moment;
/// if it does not, the connection waits aside, and the next message goes out.
const CLOSE_SOON: Duration = Duration::from_millis(100);
/// How often it looks for free ports while it has fallen back to a pooled connection.
pub(super) const PORTS_ASKED_EVERY: Duration = Duration::from_secs(5);

impl Exchange<'_> {
    /// Whether there is nothing left to wait for.
    pub(super) fn finished(&self, now: Moment) -> Option<End> {
        if let Some(until) = self.link.drain_until {
            let last = if self.goodbye_said || self.session.is_open() {
                until + CLOSE_WAIT
            } else {
                until
            };
            if now >= last {
                return Some(End::Stopped);
            }
        }
        let is_past = |at: Option<Moment>| at.is_some_and(|at| now >= at);
        if is_past(self.close_by) || is_past(self.aside_at()) {
            return Some(self.done());
        }
        match self.leaving {
            Some(leaving) if self.is_settled() => Some(match leaving {
                Leaving::Again => End::Again,
                Leaving::Return => End::Return,
                Leaving::Idle => End::Idle,
            }),
            _ => None,
        }
    }

    /// Whether all that was said was heard.
    fn is_settled(&self) -> bool {
        let is_all_acked = self.session.in_flight() == 0 && self.connection.unwritten() == 0;
        is_all_acked && self.session.is_open()
    }

    /// When the connection may wait aside for the master's close, if it may.
    fn aside_at(&self) -> Option<Moment> {
        let may = self.last_word.is_none() && !self.goodbye_said && self.link.closing.has_room();
        self.aside_at.filter(|_| may && !self.link.is_stopping())
    }

    /// When the connection is idle for too long, if nothing comes.
    pub(super) fn idle_at(&self) -> Option<Moment> {
        let timeout = self.link.config.idle_timeout?;
        let may = self.may_leave() && self.is_settled();
        may.then_some(self.busy_at + timeout)
    }

    /// When to look for free ports.
    fn ports_at(&self) -> Option<Moment> {
        self.ports_at.filter(|_| self.may_leave())
    }

    /// When the connection is to be made anew.
    pub(super) fn renew_at(&self) -> Option<Moment> {
        self.lifetime_until.filter(|_| self.may_leave())
    }

    /// When [`Self::finished`] or the session has to be asked again.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let drain = self.link.drain_until.map(|until| {
            if self.link.is_drained() {
                until + CLOSE_WAIT
            } else {
                until
            }
        });
        let session = self.session.deadline().filter(|_| self.last_word.is_none());
        let closing = [self.close_by, self.aside_at()];
        let pooled = [self.idle_at(), self.renew_at(), self.ports_at()];
        let all = [session, drain].into_iter().chain(closing).chain(pooled);
        all.flatten().min()
    }

    /// Pooled mode: whether it may leave on its own accord.
    pub(super) fn may_leave(&self) -> bool {
        !self.per_message
            && self.leaving.is_none()
            && self.last_word.is_none()
            && !self.link.is_stopping()
    }

    /// Pooled mode: up to a quarter shorter than the longest life, so that not all slaves come
    /// together.
    pub(super) fn begin_life(&mut self, now: Moment) {
        self.busy_at = now;
        let life = self.link.config.lifetime_max;
        let life = life.map(|life| life.mul_f64(1.0 - 0.25 * random::unit()));
        self.lifetime_until = life.map(|life| now + life);
    }

    /// Per-message mode: once all is acked, the master closes; or the slave does if it is to.
    pub(super) fn await_close(&mut self) {
        if !self.per_message || self.session.in_flight() > 0 {
            return;
        }
        let now = clock::boot();
        let is_abort = self.link.config.close == Close::Abort && !self.goodbye_said;
        let waits = if is_abort { Duration::ZERO } else { CLOSE_WAIT };
        self.close_by.get_or_insert(now + waits);
        self.aside_at.get_or_insert(now + CLOSE_SOON);
    }

    /// Closes, or leaves that to the master where it may still do so.
    pub(super) fn close(self, is_done: bool) {
        let now = clock::boot();
        let Self {
            link, connection, ..
        } = self;
        let Some(peer) = connection.peer().filter(|_| !connection.is_ended()) else {
            // The master has closed first, or it broke: no port of this host is in TIME_WAIT.
            drop(connection);
            link.publish_ports();
            return;
        };
        let waits = self.close_by.is_some_and(|close_by| now < close_by);
        if is_done && self.per_message && link.config.close == Close::Abort {
            if connection.reset().is_err() {
                link.budget.handle_closed_first(peer, now);
            }
        } else if is_done && waits && link.closing.has_room() {
            link.closing.add(connection, CLOSE_WAIT - CLOSE_SOON);
        } else {
            tracing::debug!(
                event = "slave_closed_first",
                peer = %peer,
                "the slave closes first, which takes a port for a minute"
            );
            drop(connection);
            link.budget.handle_closed_first(peer, now);
        }
        link.publish_ports();
    }

    /// Fallen back to a pooled connection: asks now and then whether ports are free again.
    pub(super) async fn look_for_ports(&mut self) {
        let now = clock::boot();
        if self.ports_at().is_some_and(|at| now >= at) {
            self.ports_at = Some(now + PORTS_ASKED_EVERY);
            if self.link.find_ports().await {
                self.leaving = Some(Leaving::Again);
            }
        }
    }
}
