//! The newest reports of each slave, as they came, for a glance back.
//!
//! They live in memory only, within one bound for all. A slave that has sent nothing costs a pointer.
//! When all rings together reach the bound, every slave's share is the same: rings above it lose their
//! oldest reports first, whoever they belong to, and rings below it lose nothing. The work for one
//! report is bounded, so a crowd of newcomers shrinks the others in passing.

use std::collections::VecDeque;

use rollcall_protocol::wire::Report;

use super::{Roll, Slot};

/// Rings of others that are looked at for one report.
const RINGS_TRIMMED_MAX: usize = 32;
/// Bytes that a reader is given at most, the newest: what is copied without holding up anybody.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Bytes before a message: its length, its group, its time, its stream and its sequence.
const HEAD_BYTES: usize = 4 + 4 * 8;
/// Bytes around a message: what is before it, and its length once more behind it.
const OVERHEAD_BYTES: usize = HEAD_BYTES + 4;
/// The first bytes of a ring.
const RING_BYTES_MIN: usize = 512;

/// How much is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingRules {
    /// Reports of one slave; 0 remembers none.
    pub(crate) reports_max: usize,
    /// Bytes of all slaves' reports together.
    pub(crate) bytes_max: usize,
}

/// What stands before a message.
#[derive(Clone, Copy, Debug)]
struct Head {
    message_bytes: usize,
    /// The group that makes it durable.
    group: u64,
    time_ms: i64,
    stream: u64,
    sequence: u64,
}

impl Head {
    fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..4].copy_from_slice(&length(self.message_bytes));
        bytes[4..12].copy_from_slice(&self.group.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.time_ms.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.stream.to_le_bytes());
        bytes[28..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; HEAD_BYTES]) -> Self {
        let eight = |at: usize| std::array::from_fn(|byte| bytes[at + byte]);
        Self {
            message_bytes: from_length(std::array::from_fn(|byte| bytes[byte])),
            group: u64::from_le_bytes(eight(4)),
            time_ms: i64::from_le_bytes(eight(12)),
            stream: u64::from_le_bytes(eight(20)),
            sequence: u64::from_le_bytes(eight(28)),
        }
    }
}

/// A message is a frame's payload: its length fits.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

fn from_length(bytes: [u8; 4]) -> usize {
    usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX)
}

/// One slave's reports by time of origin, one behind the other in one piece of memory.
#[derive(Debug, Default)]
struct Ring {
    bytes: VecDeque<u8>,
    reports: usize,
    newest_ms: i64,
}

impl Ring {
    /// Where the report belongs, as an offset; none if it is there. Only a report that may have come
    /// before, as a preview, is looked for.
    fn place(&self, report: &Report, may_repeat: bool) -> Option<usize> {
        let is_last = match may_repeat {
            true => report.time_ms > self.newest_ms,
            false => report.time_ms >= self.newest_ms,
        };
        let mut end = self.bytes.len();
        if is_last {
            return Some(end);
        }
        let mut place = end;
        while end > 0 {
            let (start, head) = self.before(end);
            if head.time_ms < report.time_ms {
                break;
            }
            if head.time_ms > report.time_ms {
                place = start;
            } else if head.sequence == report.sequence && head.stream == report.stream {
                return None;
            }
            end = start;
        }
        Some(place)
    }

    /// The report that ends at the offset `end`: where it begins, and its head.
    fn before(&self, end: usize) -> (usize, Head) {
        let message_bytes = from_length(self.array(end - 4));
        let start = end - OVERHEAD_BYTES - message_bytes;
        (start, Head::from_bytes(self.array(start)))
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|byte| self.bytes[at + byte])
    }

    fn insert(&mut self, place: usize, head: Head, message: &[u8], reports_max: usize) {
        let needed = OVERHEAD_BYTES + message.len();
        if self.bytes.capacity() - self.bytes.len() < needed {
            // Twice as much, but no more than what a full ring of such reports takes.
            let mean = (self.bytes.len() / self.reports.max(1)).max(needed);
            let full = mean.saturating_mul(reports_max);
            let room = self.bytes.capacity().max(RING_BYTES_MIN);
            let left = full.saturating_sub(self.bytes.len());
            self.bytes.reserve_exact(room.min(left).max(needed));
        }
        let later: Vec<u8> = self.bytes.drain(place..).collect();
        self.bytes.extend(&head.to_bytes());
        self.bytes.extend(message);
        self.bytes.extend(&length(message.len()));
        self.bytes.extend(&later);
        self.reports += 1;
        self.newest_ms = self.newest_ms.max(head.time_ms);
    }

    /// Drops the oldest report and says how many bytes it had.
    fn drop_oldest(&mut self) -> usize {
        let bytes = OVERHEAD_BYTES + from_length(self.array(0));
        self.bytes.drain(..bytes);
        self.reports -= 1;
        bytes
    }
}

/// What was remembered of one slave when it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    bytes: Vec<u8>,
    durable: u64,
}

impl Remembered {
    /// The reports that are durable, oldest first, each the encoded message as it came.
    pub(crate) fn messages(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.bytes.as_slice();
        let all = std::iter::from_fn(move || {
            let (head, behind) = rest.split_first_chunk()?;
            let head = Head::from_bytes(*head);
            let (message, behind) = behind.split_at_checked(head.message_bytes)?;
            rest = behind.get(4..)?;
            Some((head.group, message))
        });
        all.filter(|(group, _)| *group <= self.durable)
            .map(|(_, message)| message)
    }
}

/// The rings of all slaves.
#[derive(Debug)]
pub(super) struct Rings {
    rules: RingRules,
    by_slot: Vec<Option<Box<Ring>>>,
    /// Rings that hold something.
    filled: usize,
    bytes: usize,
    /// The slot that was looked at last for something to drop.
    hand: Slot,
}

impl Rings {
    pub(super) fn new(rules: RingRules) -> Self {
        Self {
            rules,
            by_slot: Vec::new(),
            filled: 0,
            bytes: 0,
            hand: 0,
        }
    }

    /// Remembers a report that becomes durable with `group`; `message` is as it came. `may_repeat`:
    /// it may have been remembered when it ran ahead of the backlog.
    pub(super) fn remember(
        &mut self,
        slot: Slot,
        report: &Report,
        message: &[u8],
        group: u64,
        may_repeat: bool,
    ) {
        if self.rules.reports_max == 0 {
            return;
        }
        if self.by_slot.len() <= slot {
            self.by_slot.resize_with(slot + 1, || None);
        }
        let ring = self.by_slot[slot].get_or_insert_default();
        let Some(mut place) = ring.place(report, may_repeat) else {
            return;
        };
        if ring.reports >= self.rules.reports_max {
            if place == 0 {
                return;
            }
            let dropped = ring.drop_oldest();
            self.bytes -= dropped;
            place -= dropped;
        }
        self.filled += usize::from(ring.reports == 0);
        let head = Head {
            message_bytes: message.len(),
            group,
            time_ms: report.time_ms,
            stream: report.stream,
            sequence: report.sequence,
        };
        ring.insert(place, head, message, self.rules.reports_max);
        self.bytes += OVERHEAD_BYTES + message.len();
        if self.bytes > self.rules.bytes_max {
            self.shrink(slot);
        }
    }

    /// A copy of a slave's newest reports; of them those of groups up to `durable` are told.
    fn of(&self, slot: Slot, durable: u64) -> Remembered {
        let ring = self.by_slot.get(slot).and_then(Option::as_ref);
        let Some(ring) = ring else {
            return Remembered::default();
        };
        let mut from = 0;
        while ring.bytes.len() - from > ANSWER_BYTES_MAX {
            from += OVERHEAD_BYTES + from_length(ring.array(from));
        }
        let (front, back) = ring.bytes.as_slices();
        let mut bytes = Vec::with_capacity(ring.bytes.len() - from);
        bytes.extend_from_slice(front.get(from..).unwrap_or_default());
        bytes.extend_from_slice(&back[from.saturating_sub(front.len())..]);
        Remembered { bytes, durable }
    }

    /// Gets below the bound after the ring at `grown` has grown.
    fn shrink(&mut self, grown: Slot) {
        let share = self.rules.bytes_max / self.filled.max(1);
        self.trim(grown, share);
        for _ in 0..RINGS_TRIMMED_MAX {
            if self.bytes <= self.rules.bytes_max {
                return;
            }
            self.hand = (self.hand + 1) % self.by_slot.len();
            self.trim(self.hand, share);
        }
        // Nobody near has more than a share. The bound held before the ring grew.
        let surplus = self.bytes.saturating_sub(self.rules.bytes_max);
        let held = self.by_slot[grown]
            .as_ref()
            .map_or(0, |ring| ring.bytes.len());
        self.trim(grown, held.saturating_sub(surplus));
    }

    /// Drops a ring's oldest reports until it has at most `share` bytes.
    fn trim(&mut self, slot: Slot, share: usize) {
        let Some(ring) = &mut self.by_slot[slot] else {
            return;
        };
        while ring.bytes.len() > share {
            self.bytes -= ring.drop_oldest();
        }
        if ring.reports == 0 {
            self.by_slot[slot] = None;
            self.filled -= 1;
        } else if ring.bytes.capacity() / 2 > ring.bytes.len().max(RING_BYTES_MIN) {
            ring.bytes.shrink_to_fit();
        }
    }
}

impl Roll {
    /// The remembered reports of a slave; none if there is no such slave. What only groups after
    /// `durable` contain is left out.
    pub(crate) fn reports(&self, name: &str, durable: u64) -> Option<Remembered> {
        let slot = *self.names.get(name)?;
        Some(self.rings.of(slot, durable))
    }

    /// Bytes that all remembered reports take.
    pub(crate) fn reports_bytes(&self) -> usize {
        self.rings.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(time_ms: i64, sequence: u64) -> Report {
        Report {
            stream: 1,
            sequence,
            time_ms,
            ..Report::default()
        }
    }

    impl Remembered {
        /// As a roll that remembers these answers.
        pub(crate) fn from_messages(messages: &[&[u8]]) -> Self {
            let mut ring = Ring::default();
            for message in messages {
                let head = Head {
                    message_bytes: message.len(),
                    group: 0,
                    time_ms: 0,
                    stream: 0,
                    sequence: 0,
                };
                ring.insert(ring.bytes.len(), head, message, messages.len());
            }
            Self {
                bytes: ring.bytes.into(),
                durable: 0,
            }
        }
    }

    fn rings(reports_max: usize, reports_in_all: usize) -> Rings {
        Rings::new(RingRules {
            reports_max,
            bytes_max: reports_in_all * (OVERHEAD_BYTES + 1),
        })
    }

    fn put(rings: &mut Rings, slot: Slot, time_ms: u8, may_repeat: bool) {
        let report = report(time_ms.into(), time_ms.into());
        rings.remember(slot, &report, &[time_ms], 0, may_repeat);
        let sum: usize = rings
            .by_slot
            .iter()
            .flatten()
            .map(|ring| ring.bytes.len())
            .sum();
        let filled = rings.by_slot.iter().flatten();
        assert_eq!((rings.bytes, rings.filled), (sum, filled.count()));
        assert!(rings.bytes <= rings.rules.bytes_max);
    }

    fn of(rings: &Rings, slot: Slot) -> Vec<u8> {
        let remembered = rings.of(slot, 0);
        remembered.messages().map(|message| message[0]).collect()
    }

    #[test]
    fn the_newest_are_kept_in_the_order_of_their_origin_each_once() {
        let mut rings = rings(4, 100);
        for time_ms in [10, 40, 20, 30, 40, 20] {
            put(&mut rings, 2, time_ms, true);
        }
        assert_eq!(of(&rings, 2), [10, 20, 30, 40]);
        put(&mut rings, 2, 25, true);
        assert_eq!(of(&rings, 2), [20, 25, 30, 40]);
        put(&mut rings, 2, 5, true);
        put(&mut rings, 2, 50, false);
        assert_eq!(of(&rings, 2), [25, 30, 40, 50]);
        assert_eq!(rings.by_slot.len(), 3);
        assert!(rings.by_slot[0].is_none() && of(&rings, 7).is_empty());
    }

    #[test]
    fn the_bound_is_shared_and_who_has_most_gives() {
        let mut rings = rings(100, 12);
        for time_ms in 1..=12 {
            put(&mut rings, 0, time_ms, false);
        }
        assert_eq!(of(&rings, 0).len(), 12);
        // Two more slaves: everybody comes to a third, and the modest one keeps all it has.
        put(&mut rings, 1, 1, false);
        for time_ms in 1..=50 {
            put(&mut rings, 2, time_ms, false);
            put(&mut rings, 0, 100 + time_ms, false);
        }
        assert_eq!(of(&rings, 1), [1]);
        assert_eq!(of(&rings, 0).last(), Some(&150));
        assert_eq!(of(&rings, 2).last(), Some(&50));
        assert!(of(&rings, 0).len() >= 4 && of(&rings, 2).len() >= 4);
    }

    #[test]
    fn a_crowd_beyond_the_bound_stays_within_it() {
        let mut rings = rings(3, 50);
        for round in 0..3 {
            for slot in 0..500 {
                put(&mut rings, slot, round, false);
            }
        }
        assert!(rings.filled > 0);
    }

    #[test]
    fn what_is_not_durable_is_not_told() {
        let mut rings = rings(3, 50);
        rings.remember(0, &report(1, 1), &[1], 7, false);
        rings.remember(0, &report(2, 2), &[2], 8, false);
        assert_eq!(rings.of(0, 7).messages().count(), 1);
        assert_eq!(rings.of(0, 8).messages().count(), 2);
    }

    #[test]
    fn a_reader_gets_the_newest_if_all_are_too_much() {
        let mut rings = Rings::new(RingRules {
            reports_max: 1000,
            bytes_max: 1 << 30,
        });
        let large = vec![7; 60_000];
        for time_ms in 1..=250 {
            let number = u64::try_from(time_ms).unwrap();
            rings.remember(0, &report(time_ms, number), &large, 0, false);
        }
        let remembered = rings.of(0, 0);
        assert!(remembered.bytes.len() <= ANSWER_BYTES_MAX);
        assert!(remembered.messages().all(|message| message == large));
        assert_eq!(remembered.messages().count(), ANSWER_BYTES_MAX / 60_040);
    }

    #[test]
    fn none_are_kept_if_none_are_wanted() {
        let mut rings = rings(0, 50);
        put(&mut rings, 0, 1, false);
        assert!(rings.by_slot.is_empty());
    }
}
