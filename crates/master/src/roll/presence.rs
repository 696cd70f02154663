//! Presence: what silence means, and what a goodbye.
//!
//! A slave that is stopped says goodbye, and can't know whether it is started again at once. So the roll
//! shows it as left from then on, and the event is kept back for an interval, or for as long as the slave
//! says that it will be away: who reports before that was never gone, and nobody hears of it. Who stays
//! away is told of then, once, and with the time of the goodbye. The goodbye is durable before it
//! is answered, and with it that nobody was told, so that a master that is restarted meanwhile goes on
//! with it; the time in which it was away does not count, as for any deadline.

use std::time::Duration;

use rollcall_protocol::Moment;
use rollcall_protocol::api::{EventKind, Presence};

use super::gathering::Change;
use super::record::{Leaving, RedoEntry, StoredPresence};
use super::slave::Slave;
use super::{Roll, SessionId, Slot, Stamp};

/// A slave that says it will be back is waited for no longer than this before its absence is told.
const BACK_MAX: Duration = Duration::from_secs(3600);

impl Roll {
    /// Worsens the presence of those whose deadline has passed.
    pub(crate) fn handle_tick(&mut self, now: Stamp) {
        while let Some(slot) = self.deadlines.pop_due(now.at) {
            match self.due(slot) {
                Some((due, _)) if due <= now.at && self.is_held_back(slot) => {
                    self.slaves[slot].read_at = now.at;
                    self.arm(slot);
                }
                Some((due, _)) if due <= now.at && self.slaves[slot].leaving.is_some() => {
                    self.tell_leaving(slot, now);
                }
                Some((due, worse)) if due <= now.at => {
                    let silent = now.at.saturating_since(self.slaves[slot].read_at);
                    self.change_presence(slot, worse, now, &silence(silent));
                    self.record_presence(slot);
                    self.arm(slot);
                }
                _ => self.arm(slot),
            }
        }
    }

    /// What the connection `session` has brought is not read for now (`held`), or is read again.
    pub(crate) fn hold_back(&mut self, slot: Slot, session: SessionId, held: bool) {
        if self.holds(slot, session) {
            self.slaves[slot].held_back = held.then_some(session);
        }
    }

    fn is_held_back(&self, slot: Slot) -> bool {
        let slave = &self.slaves[slot];
        slave.held_back.is_some() && slave.held_back == slave.session
    }

    /// For `time` the master could not listen, or could not store what it heard: it counts against
    /// nobody.
    pub(crate) fn excuse(&mut self, time: Duration) {
        for slave in &mut self.slaves {
            slave.read_at = slave.read_at + time;
        }
    }

    /// A live report of the slave was read at `stamp`.
    pub(super) fn heard(&mut self, slot: Slot, stamp: Stamp) {
        let slave = &mut self.slaves[slot];
        slave.read_at = stamp.at;
        slave.shown_mut().last_seen_ms = Some(stamp.wall_ms);
        if slave.shown.presence != Presence::Up {
            self.change_presence(slot, Presence::Up, stamp, "it reports");
        }
        self.arm(slot);
    }

    /// The slave has said goodbye, and means to be back after `back_ms`, if it is not 0.
    pub(super) fn leave(&mut self, slot: Slot, back_ms: u32, stamp: Stamp) {
        let slave = &mut self.slaves[slot];
        if slave.shown.presence == Presence::Left {
            return;
        }
        slave.leaving = Some(Box::new(Leaving {
            told: StoredPresence::from(slave.shown.presence).into(),
            since_ms: slave.shown.since_ms,
            back_ms,
        }));
        slave.read_at = stamp.at;
        let shown = slave.shown_mut();
        shown.presence = Presence::Left;
        shown.since_ms = stamp.wall_ms;
        self.gathering.touch(slave, slot);
        self.arm(slot);
    }

    /// If the slave has said goodbye and nobody was told: it has stayed away.
    pub(super) fn tell_leaving(&mut self, slot: Slot, now: Stamp) {
        let slave = &mut self.slaves[slot];
        let Some(leaving) = slave.leaving.as_ref() else {
            return;
        };
        if leaving.back_ms > 0 {
            let back = Duration::from_millis(leaving.back_ms.into());
            let why = format!(
                "it was to be back after {:.1} s, and is not",
                back.as_secs_f64()
            );
            self.change_presence(slot, Presence::Missing, now, &why);
        } else {
            let left = Stamp {
                at: now.at,
                wall_ms: slave.shown.since_ms,
            };
            let from = leaving.told().into();
            slave.leaving = None;
            let change = change(from, Presence::Left, left, "it was stopped");
            self.gathering.event(slave, now, change);
            self.gathering.touch(slave, slot);
        }
        self.record_presence(slot);
    }

    /// Sets the presence and tells of it, unless it is what was told last.
    pub(super) fn change_presence(&mut self, slot: Slot, to: Presence, stamp: Stamp, why: &str) {
        let slave = &mut self.slaves[slot];
        if slave.shown.presence == to {
            return;
        }
        let before = slave
            .leaving
            .take()
            .map_or((slave.shown.presence, stamp.wall_ms), |leaving| {
                (leaving.told().into(), leaving.since_ms)
            });
        let (told, since_ms) = before;
        let shown = slave.shown_mut();
        shown.presence = to;
        if told == to {
            shown.since_ms = since_ms;
        } else {
            shown.since_ms = stamp.wall_ms;
            let change = change(told, to, stamp, why);
            self.gathering.event(slave, stamp, change);
        }
        self.gathering.touch(slave, slot);
    }

    /// Makes the present presence durable where no message of the slave does.
    pub(super) fn record_presence(&mut self, slot: Slot) {
        let slave = &self.slaves[slot];
        let entry = RedoEntry {
            slave_id: slave.shown.id.to_vec(),
            wall_ms: slave.shown.since_ms,
            presence: Some(StoredPresence::from(slave.shown.presence).into()),
            ..RedoEntry::default()
        };
        self.gathering.redo(&entry);
    }

    /// Arms everybody whose silence means something, afresh from `now`.
    pub(super) fn arm_all(&mut self, now: Moment) {
        for slot in 0..self.slaves.len() {
            self.slaves[slot].read_at = now + self.rules.reconnect_window;
            self.arm(slot);
        }
    }

    /// Sees to it that the slave is looked at when its next deadline comes.
    pub(super) fn arm(&mut self, slot: Slot) {
        if let Some((due, _)) = self.due(slot) {
            self.deadlines.arm(slot, due);
        }
    }

    /// When the presence gets worse if nothing is heard, and to what.
    fn due(&self, slot: Slot) -> Option<(Moment, Presence)> {
        let slave = &self.slaves[slot];
        let interval = interval(slave);
        let (patience, worse) = match (slave.shown.presence, &slave.leaving) {
            (Presence::Up, _) => (interval.mul_f64(self.rules.late_after), Presence::Late),
            (Presence::Late, _) => (
                interval.mul_f64(self.rules.missing_after),
                Presence::Missing,
            ),
            (Presence::Left, Some(leaving)) => {
                let back = Duration::from_millis(leaving.back_ms.into());
                (back.min(BACK_MAX).max(interval), Presence::Left)
            }
            (Presence::Expected | Presence::Missing | Presence::Left, _) => return None,
        };
        Some((slave.read_at + patience, worse))
    }
}

fn interval(slave: &Slave) -> Duration {
    Duration::from_millis(slave.shown.interval_ms.into())
}

fn change(from: Presence, to: Presence, stamp: Stamp, why: &str) -> Change {
    Change {
        kind: EventKind::Presence,
        subject: None,
        from: Some(from.as_str().to_owned()),
        to: Some(to.as_str().to_owned()),
        text: why.to_owned(),
        time_ms: stamp.wall_ms,
        replayed: false,
    }
}

fn silence(silent: Duration) -> String {
    format!("no report for {:.1} s", silent.as_secs_f64())
}
