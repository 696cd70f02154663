//! Presence: what silence means.

use std::time::Duration;

use rollcall_protocol::Moment;
use rollcall_protocol::api::{EventKind, Presence};

use super::gathering::Change;
use super::record::{RedoEntry, StoredPresence};
use super::{Roll, SessionId, Slot, Stamp};

impl Roll {
    /// Worsens the presence of those whose deadline has passed.
    pub(crate) fn handle_tick(&mut self, now: Stamp) {
        while let Some(slot) = self.deadlines.pop_due(now.at) {
            match self.due(slot) {
                Some((due, _)) if due <= now.at && self.is_held_back(slot) => {
                    self.slaves[slot].read_at = now.at;
                    self.arm(slot);
                }
                Some((due, worse)) if due <= now.at => {
                    let silent = now.at.saturating_since(self.slaves[slot].read_at);
                    self.change_presence(slot, worse, now, &silence(silent));
                    self.record_presence(slot, now);
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

    /// Sets the presence and tells of it.
    pub(super) fn change_presence(&mut self, slot: Slot, to: Presence, stamp: Stamp, why: &str) {
        let slave = &mut self.slaves[slot];
        let from = slave.shown.presence;
        if from == to {
            return;
        }
        let shown = slave.shown_mut();
        shown.presence = to;
        shown.since_ms = stamp.wall_ms;
        let change = Change {
            kind: EventKind::Presence,
            subject: None,
            from: Some(from.as_str().to_owned()),
            to: Some(to.as_str().to_owned()),
            text: why.to_owned(),
            time_ms: stamp.wall_ms,
            replayed: false,
        };
        self.gathering.event(slave, stamp, change);
        self.gathering.touch(slave, slot);
    }

    /// Makes the present presence durable where no message of the slave does.
    pub(super) fn record_presence(&mut self, slot: Slot, stamp: Stamp) {
        let slave = &self.slaves[slot];
        let entry = RedoEntry {
            slave_id: slave.shown.id.to_vec(),
            wall_ms: stamp.wall_ms,
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
        let (intervals, worse) = match slave.shown.presence {
            Presence::Up => (self.rules.late_after, Presence::Late),
            Presence::Late => (self.rules.missing_after, Presence::Missing),
            Presence::Expected | Presence::Missing | Presence::Left => return None,
        };
        let interval = Duration::from_millis(u64::from(slave.shown.interval_ms));
        Some((slave.read_at + interval.mul_f64(intervals), worse))
    }
}

fn silence(silent: Duration) -> String {
    format!("no report for {:.1} s", silent.as_secs_f64())
}
