//! What the next group will make durable, and what readers will see once it is.

use std::sync::Arc;

use prost::Message;
use rollcall_protocol::api::{EventKind, EventRow, Health};

use super::record::RedoEntry;
use super::slave::Slave;
use super::{Roll, Slot, Stamp};
use crate::store::{Group, Record};
use crate::view::SlaveView;

/// Records written beside one group while a snapshot is under way: little enough that the group's
/// reports hardly wait for them.
const RECORDS_PER_GROUP: usize = 256;
/// Redo after which the next snapshot begins, in bytes: what a restart reads back.
const REDO_BYTES_PER_SNAPSHOT: usize = 16 * 1024 * 1024;

/// A change to tell of.
pub(super) struct Change {
    pub(super) kind: EventKind,
    pub(super) subject: Option<String>,
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
    pub(super) text: String,
    pub(super) time_ms: i64,
    pub(super) replayed: bool,
}

/// A group that is ready to be committed.
#[derive(Debug)]
pub(crate) struct Gathered {
    /// For the store.
    pub(crate) group: Group,
    /// Its events once more, for those who follow them.
    pub(crate) events: Vec<Arc<EventRow>>,
}

/// The roll for readers, by name.
pub(crate) type Published = Vec<Arc<SlaveView>>;

#[derive(Debug)]
pub(super) struct Gathering {
    next_group: u64,
    next_event: i64,
    redo: Vec<u8>,
    events: Vec<EventRow>,
    forgotten: Vec<[u8; 16]>,
    /// Nothing is told or written of what is only replayed.
    replaying: bool,
    /// Slots whose view is old, each once.
    old_views: Vec<Slot>,
    /// Slots whose record is old, each once.
    old_records: Vec<Slot>,
    /// Redo written since the last snapshot began, in bytes.
    redo_bytes: usize,
    snapshot: Option<Snapshot>,
}

/// A snapshot under way: records are written in slices, one a group, while reports go on.
#[derive(Debug)]
struct Snapshot {
    /// Redo before this group is contained in the records once all are written.
    first_group: u64,
    left: Vec<Slot>,
}

impl Gathering {
    pub(super) fn new(next_group: u64, next_event: i64) -> Self {
        Self {
            next_group,
            next_event,
            redo: Vec::new(),
            events: Vec::new(),
            forgotten: Vec::new(),
            replaying: false,
            old_views: Vec::new(),
            old_records: Vec::new(),
            redo_bytes: 0,
            snapshot: None,
        }
    }

    pub(super) fn begin_replay(&mut self) {
        self.replaying = true;
    }

    /// The redo that was replayed is still on disk: the first snapshot takes it away.
    pub(super) fn end_replay(&mut self) {
        self.replaying = false;
        self.redo_bytes = REDO_BYTES_PER_SNAPSHOT;
    }

    pub(super) fn is_replaying(&self) -> bool {
        self.replaying
    }

    /// A group of that number is on disk.
    pub(super) fn skip_group(&mut self, group: u64) {
        self.next_group = self.next_group.max(group.saturating_add(1));
    }

    /// The group that makes durable what comes now; 0 for what is only replayed.
    pub(super) fn group(&self) -> u64 {
        if self.replaying { 0 } else { self.next_group }
    }

    /// Puts an input into the group.
    pub(super) fn redo(&mut self, entry: &RedoEntry) {
        if !self.replaying {
            entry
                .encode_length_delimited(&mut self.redo)
                .expect("a Vec grows as needed");
        }
    }

    /// Puts a message of `slave`, as it came, into the group.
    pub(super) fn message(&mut self, slave: &Slave, stamp: Stamp, payload: &[u8], peer: &str) {
        if !self.replaying {
            let id = &slave.shown.id;
            RedoEntry::append_message(id, stamp.wall_ms, payload, peer, &mut self.redo);
        }
    }

    /// Puts an event of `slave` into the group.
    pub(super) fn event(&mut self, slave: &Slave, stamp: Stamp, change: Change) {
        if self.replaying {
            return;
        }
        self.push_event(Some(slave.shown.name.clone()), stamp, change);
    }

    /// Puts an event into the group.
    pub(super) fn push_event(&mut self, slave: Option<String>, stamp: Stamp, change: Change) {
        self.events.push(EventRow {
            id: self.next_event,
            time_ms: change.time_ms,
            recorded_ms: stamp.wall_ms,
            kind: change.kind,
            slave,
            subject: change.subject,
            from: change.from,
            to: change.to,
            text: change.text,
            replayed: change.replayed,
        });
        self.next_event += 1;
    }

    /// An identity that is on the roll no longer.
    pub(super) fn forget(&mut self, id: [u8; 16]) {
        if !self.replaying {
            self.forgotten.push(id);
        }
    }

    /// The slave has changed durably.
    pub(super) fn touch(&mut self, slave: &mut Slave, slot: Slot) {
        self.touch_view(slave, slot);
        if !std::mem::replace(&mut slave.record_is_old, true) {
            self.old_records.push(slot);
        }
    }

    /// The slave has changed in what readers see.
    pub(super) fn touch_view(&mut self, slave: &mut Slave, slot: Slot) {
        if !std::mem::replace(&mut slave.view_is_old, true) {
            self.old_views.push(slot);
        }
    }

    /// A slave that was just put on the roll, with both flags as [`Slave::new`] and
    /// [`Slave::from_record`] set them.
    pub(super) fn touch_new(&mut self, slot: Slot, record_is_old: bool) {
        self.old_views.push(slot);
        if record_is_old {
            self.old_records.push(slot);
        }
    }
}

impl Roll {
    /// Whether there is something to commit.
    pub(crate) fn has_group(&self) -> bool {
        let gathering = &self.gathering;
        !gathering.redo.is_empty()
            || !gathering.events.is_empty()
            || !gathering.forgotten.is_empty()
            || gathering.snapshot.is_some()
    }

    /// Everything since the last call as one group; with it a slice of the snapshot, if one is under
    /// way or due.
    pub(crate) fn take_group(&mut self, listening_at_ms: i64) -> Gathered {
        let id = self.gathering.next_group;
        self.gathering.next_group += 1;
        self.gathering.redo_bytes += self.gathering.redo.len();
        if self.gathering.snapshot.is_none() && self.gathering.redo_bytes >= REDO_BYTES_PER_SNAPSHOT
        {
            self.begin_snapshot(id);
        }
        let (records, forget_redo_below) = self.take_slice(id);
        let gathering = &mut self.gathering;
        let events = std::mem::take(&mut gathering.events);
        // The next group is likely to be as large as this one.
        let room = Vec::with_capacity(gathering.redo.len());
        Gathered {
            events: events.iter().cloned().map(Arc::new).collect(),
            group: Group {
                id,
                redo: std::mem::replace(&mut gathering.redo, room),
                events,
                records,
                forgotten: std::mem::take(&mut gathering.forgotten),
                forget_redo_below,
                listening_at_ms,
            },
        }
    }

    /// The roll for readers; `None` if nothing has changed since `before` was made.
    ///
    /// What it shows must be durable: call it when nothing waits to be committed, or show what it
    /// returns only after the group that is taken next is committed.
    pub(crate) fn publish(&mut self) -> Option<Published> {
        let old = std::mem::take(&mut self.gathering.old_views);
        if old.is_empty() {
            return None;
        }
        for slot in old {
            self.slaves[slot].view_is_old = false;
        }
        let shown = |&slot: &Slot| Arc::clone(&self.slaves[slot].shown);
        Some(self.names.values().map(shown).collect())
    }

    fn begin_snapshot(&mut self, first_group: u64) {
        self.gathering.redo_bytes = 0;
        let left = std::mem::take(&mut self.gathering.old_records);
        self.gathering.snapshot = Some(Snapshot { first_group, left });
    }

    fn take_slice(&mut self, group: u64) -> (Vec<Record>, Option<u64>) {
        let Some(snapshot) = &mut self.gathering.snapshot else {
            return (Vec::new(), None);
        };
        let from = snapshot.left.len().saturating_sub(RECORDS_PER_GROUP);
        let slice = snapshot.left.split_off(from);
        let done = snapshot.left.is_empty().then_some(snapshot.first_group);
        if done.is_some() {
            self.gathering.snapshot = None;
        }
        let records = slice.into_iter().map(|slot| self.record(slot, group));
        (records.collect(), done)
    }

    fn record(&mut self, slot: Slot, group: u64) -> Record {
        let slave = &mut self.slaves[slot];
        slave.record_is_old = false;
        let shown = &slave.shown;
        Record {
            id: shown.id,
            name: shown.name.clone(),
            presence: shown.presence.as_str(),
            health: shown.health.map(Health::as_str),
            last_seen_ms: shown.last_seen_ms,
            blob: slave.to_record(group).encode_to_vec(),
        }
    }
}
