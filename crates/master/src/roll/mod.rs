//! The roll: the present state of every slave, in memory, with one owner.
//!
//! It takes inputs with the moment at which their bytes were read, and gathers what must become
//! durable because of them: redo, events and records, which leave together as one group. It does no
//! I/O and asks no clock, so a restart replays the redo through the same code.
//!
//! ```text
//!   Hello, Report, Gap, Goodbye ─┐                     ┌─ take_group() ──> store ──> acks
//!   the passing of time ─────────┼─> Roll ─> Gathering ┤
//!   redo after a crash ──────────┘                     └─ publish()    ──> readers
//! ```

mod adopt;
mod changes;
mod deadlines;
mod gathering;
mod hello;
mod identity;
mod presence;
mod record;
mod reports;
mod rings;
mod slave;
mod spans;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use foldhash::HashMap;
use foldhash::HashMapExt;
use prost::Message;
use rollcall_protocol::Moment;
use rollcall_protocol::wire::{Mark, ToMaster, to_master};

use crate::view::SlaveId;
use deadlines::Deadlines;
use gathering::Gathering;
use record::{RedoEntry, SlaveRecord, StoredPresence};
use rings::Rings;
use slave::Slave;

pub(crate) use gathering::{Gathered, Published};
pub(crate) use hello::Greeting;
pub(crate) use reports::Taken;
pub(crate) use rings::{Remembered, RingRules};
pub(crate) use slave::SessionId;

/// Where a slave stands in the roll, for as long as the process lives.
pub(crate) type Slot = usize;

/// When something happened, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    /// For deadlines.
    pub(crate) at: Moment,
    /// For records: milliseconds since 1970.
    pub(crate) wall_ms: i64,
}

/// When a slave's silence means something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PresenceRules {
    /// Intervals without a report after which a slave is late.
    pub(crate) late_after: f64,
    /// Intervals without a report after which a slave is missing.
    pub(crate) missing_after: f64,
    /// How long slaves may take to come back after the master was away.
    pub(crate) reconnect_window: Duration,
}

/// What the store had, to begin from.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    /// The records of the slaves.
    pub(crate) records: Vec<(SlaveId, Vec<u8>)>,
    /// What came after them, oldest group first.
    pub(crate) redo: Vec<(u64, Vec<u8>)>,
    /// The number of the next group.
    pub(crate) next_group: u64,
    /// The number of the next event.
    pub(crate) next_event: i64,
}

/// What of the store can't be understood.
#[derive(Debug, thiserror::Error)]
#[error("{what} in the store can't be read: {source}")]
pub(crate) struct Unreadable {
    what: String,
    source: prost::DecodeError,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Roll {
    rules: PresenceRules,
    slaves: Vec<Slave>,
    ids: HashMap<SlaveId, Slot>,
    names: BTreeMap<String, Slot>,
    deadlines: Deadlines,
    gathering: Gathering,
    rings: Rings,
}

impl Roll {
    /// The roll as it was durable, with every slave that was up or late armed afresh from `now`:
    /// time in which nobody listened counts against nobody.
    ///
    /// # Errors
    /// [`Unreadable`] if a record or redo is not what this version writes.
    pub(crate) fn restore(
        durable: Durable,
        rules: PresenceRules,
        rings: RingRules,
        now: Moment,
    ) -> Result<Self, Unreadable> {
        let mut roll = Self {
            rules,
            slaves: Vec::with_capacity(durable.records.len()),
            ids: HashMap::with_capacity(durable.records.len()),
            names: BTreeMap::new(),
            deadlines: Deadlines::default(),
            gathering: Gathering::new(durable.next_group, durable.next_event),
            rings: Rings::new(rings),
        };
        for (id, blob) in durable.records {
            let record = decode::<SlaveRecord>(&blob, || format!("the record {id:02x?}"))?;
            // After a rescue the store may not know how far it had come; redo of groups that a
            // record claims to contain would be skipped.
            roll.gathering.skip_group(record.group);
            roll.insert(Slave::from_record(id, record));
        }
        roll.gathering.begin_replay();
        for (group, blob) in durable.redo {
            roll.replay_group(group, &blob)?;
        }
        roll.gathering.end_replay();
        roll.arm_all(now);
        Ok(roll)
    }

    /// Takes over new rules.
    pub(crate) fn set_rules(&mut self, rules: PresenceRules) {
        self.rules = rules;
        for slot in 0..self.slaves.len() {
            self.arm(slot);
        }
    }

    /// How long slaves may take to come back after the master was away.
    pub(crate) fn reconnect_window(&self) -> Duration {
        self.rules.reconnect_window
    }

    /// Number of slaves.
    pub(crate) fn len(&self) -> usize {
        self.slaves.len()
    }

    /// How far each of a slave's streams has been applied.
    pub(crate) fn marks(&self, slot: Slot) -> &[Mark] {
        self.slaves[slot].ledger.marks()
    }

    /// How far `stream` has been applied.
    pub(crate) fn mark(&self, slot: Slot, stream: u64) -> u64 {
        self.slaves[slot].ledger.mark(stream).unwrap_or(0)
    }

    /// Whether the connection `session` still speaks for the slave.
    pub(crate) fn holds(&self, slot: Slot, session: SessionId) -> bool {
        self.slaves[slot].session == Some(session)
    }

    /// Whether a live report has run ahead of the slave's backlog, and its place is not reached.
    pub(crate) fn is_behind(&self, slot: Slot) -> bool {
        let catching_up = self.slaves[slot].catching_up.as_ref();
        catching_up.is_some_and(|behind| !behind.previewed.is_empty())
    }

    /// The connection `session` has ended. Presence is a matter of deadlines, not of connections.
    pub(crate) fn handle_disconnect(&mut self, slot: Slot, session: SessionId) {
        if self.holds(slot, session) {
            let slave = &mut self.slaves[slot];
            slave.session = None;
            slave.shown_mut().connected_since_ms = None;
            self.gathering.touch_view(&mut self.slaves[slot], slot);
        }
        self.slaves[slot].forget_elder(session);
    }

    fn insert(&mut self, slave: Slave) -> Slot {
        let slot = self.slaves.len();
        self.ids.insert(slave.shown.id, slot);
        self.names.insert(slave.shown.name.clone(), slot);
        self.gathering.touch_new(slot, slave.record_is_old);
        self.slaves.push(slave);
        slot
    }

    fn replay_group(&mut self, group: u64, mut blob: &[u8]) -> Result<(), Unreadable> {
        while !blob.is_empty() {
            let what = || format!("the redo of group {group}");
            let entry =
                RedoEntry::decode_length_delimited(&mut blob).map_err(|source| Unreadable {
                    what: what(),
                    source,
                })?;
            let Ok(id) = SlaveId::try_from(entry.slave_id.as_slice()) else {
                continue;
            };
            let known = self.ids.get(&id).copied();
            let contained = known.filter(|slot| self.slaves[*slot].record_group >= group);
            if let Some(slot) = contained {
                self.recall(slot, &entry);
            } else if entry.message.is_empty() {
                self.replay_presence(known, &entry);
            } else {
                let message = decode::<ToMaster>(&entry.message, what)?;
                self.replay_message(id, known, message, &entry);
            }
        }
        Ok(())
    }

    /// The record contains the entry; if it is a report, it is remembered all the same.
    fn recall(&mut self, slot: Slot, entry: &RedoEntry) {
        let message = ToMaster::decode(entry.message.as_slice()).ok();
        if let Some(to_master::Kind::Report(report)) = message.and_then(|message| message.kind) {
            self.rings.remember(slot, &report, &entry.message, 0, true);
        }
    }

    fn replay_presence(&mut self, slot: Option<Slot>, entry: &RedoEntry) {
        let stored = entry
            .presence
            .and_then(|stored| StoredPresence::try_from(stored).ok());
        if let (Some(slot), Some(stored)) = (slot, stored) {
            let slave = &mut self.slaves[slot];
            slave.leaving = None;
            let shown = slave.shown_mut();
            shown.presence = stored.into();
            shown.since_ms = entry.wall_ms;
            self.gathering.touch(slave, slot);
        }
    }

    fn replay_message(
        &mut self,
        id: SlaveId,
        known: Option<Slot>,
        message: ToMaster,
        entry: &RedoEntry,
    ) {
        let stamp = Stamp {
            at: Moment::ZERO,
            wall_ms: entry.wall_ms,
        };
        let payload = &entry.message;
        match (message.kind, known) {
            (Some(to_master::Kind::Hello(hello)), _) => {
                self.accept_hello(id, &hello, payload, entry.peer.parse().ok(), stamp);
            }
            (Some(to_master::Kind::Report(report)), Some(slot)) => {
                // What was refused was never written, so the replay refuses nothing.
                let _ = self.handle_report(slot, report, payload, stamp);
            }
            (Some(to_master::Kind::Gap(gap)), Some(slot)) => {
                let _ = self.handle_gap(slot, &gap, payload, stamp);
            }
            (Some(to_master::Kind::Goodbye(goodbye)), Some(slot)) => {
                self.handle_goodbye(slot, &goodbye, payload, stamp);
            }
            _ => {}
        }
    }
}

/// Whether a record can be read, and the group that it was written with.
pub(crate) fn inspect_record(blob: &[u8]) -> Result<u64, String> {
    let record = SlaveRecord::decode(blob).map_err(|error| error.to_string())?;
    Ok(record.group)
}

/// Whether a group's redo can be read, and how many inputs it holds.
pub(crate) fn inspect_redo(mut blob: &[u8]) -> Result<usize, String> {
    let mut inputs = 0;
    while !blob.is_empty() {
        let entry = RedoEntry::decode_length_delimited(&mut blob);
        let entry = entry.map_err(|error| error.to_string())?;
        ToMaster::decode(entry.message.as_slice()).map_err(|error| error.to_string())?;
        inputs += 1;
    }
    Ok(inputs)
}

fn decode<M: Message + Default>(blob: &[u8], what: impl Fn() -> String) -> Result<M, Unreadable> {
    M::decode(blob).map_err(|source| Unreadable {
        what: what(),
        source,
    })
}
