//! The newest reports of each slave, as they came, for a glance back.
//!
//! They live in memory only, within one bound for all. A slave that has sent nothing costs a pointer.
//! When all rings together reach the bound, every slave's share is the same: rings above it lose their
//! oldest reports first, whoever they belong to, and rings below it lose nothing. The work for one
//! report is bounded, so a crowd of newcomers shrinks the others in passing.

use std::collections::VecDeque;
use std::sync::Arc;

use rollcall_protocol::wire::Report;

use super::{Roll, Slot};

/// Rings of others that are looked at for one report.
const RINGS_TRIMMED_MAX: usize = 32;
/// What a report costs beyond its encoded bytes: its entry, the count of its readers, the allocator's own.
const OVERHEAD_BYTES: usize = size_of::<Kept>() + 32;

/// How much is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingRules {
    /// Reports of one slave; 0 remembers none.
    pub(crate) reports_max: usize,
    /// Bytes of all slaves' reports together.
    pub(crate) bytes_max: usize,
}

/// A report: the message as it came, shared with who reads it.
#[derive(Debug)]
struct Kept {
    time_ms: i64,
    stream: u64,
    sequence: u64,
    /// The group that makes it durable.
    group: u64,
    message: Arc<[u8]>,
}

impl Kept {
    fn cost(&self) -> usize {
        OVERHEAD_BYTES + self.message.len()
    }

    fn is(&self, report: &Report) -> bool {
        self.sequence == report.sequence && self.stream == report.stream
    }
}

/// One slave's reports, by time of origin.
#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Kept>,
    bytes: usize,
}

impl Ring {
    /// Where the report belongs; none if it is there. Only a report that may have come before, as a
    /// preview, is looked for.
    fn place(&self, report: &Report, may_repeat: bool) -> Option<usize> {
        let is_newest = |last: &Kept| report.time_ms >= last.time_ms;
        if !may_repeat && self.kept.back().is_none_or(is_newest) {
            return Some(self.kept.len());
        }
        let at = self
            .kept
            .partition_point(|kept| kept.time_ms <= report.time_ms);
        let same_time = self.kept.range(..at).rev();
        let is_there = same_time
            .take_while(|kept| kept.time_ms == report.time_ms)
            .any(|kept| kept.is(report));
        (!is_there).then_some(at)
    }

    fn drop_oldest(&mut self) -> usize {
        let cost = self.kept.pop_front().map_or(0, |kept| kept.cost());
        self.bytes -= cost;
        cost
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
        let Some(mut at) = ring.place(report, may_repeat) else {
            return;
        };
        if ring.kept.len() >= self.rules.reports_max {
            if at == 0 {
                return;
            }
            self.bytes -= ring.drop_oldest();
            at -= 1;
        }
        let kept = Kept {
            time_ms: report.time_ms,
            stream: report.stream,
            sequence: report.sequence,
            group,
            message: Arc::from(message),
        };
        self.filled += usize::from(ring.bytes == 0);
        ring.bytes += kept.cost();
        self.bytes += kept.cost();
        ring.kept.insert(at, kept);
        if self.bytes > self.rules.bytes_max {
            self.shrink(slot);
        }
    }

    /// The durable reports of a slave, oldest first: those of groups up to `durable`.
    fn of(&self, slot: Slot, durable: u64) -> Vec<Arc<[u8]>> {
        let ring = self.by_slot.get(slot).and_then(Option::as_ref);
        ring.into_iter()
            .flat_map(|ring| &ring.kept)
            .filter(|kept| kept.group <= durable)
            .map(|kept| Arc::clone(&kept.message))
            .collect()
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
        let held = self.by_slot[grown].as_ref().map_or(0, |ring| ring.bytes);
        self.trim(grown, held.saturating_sub(surplus));
    }

    /// Drops a ring's oldest reports until it has at most `share` bytes.
    fn trim(&mut self, slot: Slot, share: usize) {
        let Some(ring) = &mut self.by_slot[slot] else {
            return;
        };
        while ring.bytes > share {
            self.bytes -= ring.drop_oldest();
        }
        if ring.kept.is_empty() {
            self.by_slot[slot] = None;
            self.filled -= 1;
        }
    }
}

impl Roll {
    /// The remembered reports of a slave, oldest first, each the encoded message as it came; none if
    /// there is no such slave. What only groups after `durable` contain is left out.
    pub(crate) fn reports(&self, name: &str, durable: u64) -> Option<Vec<Arc<[u8]>>> {
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

    fn rings(reports_max: usize, reports_in_all: usize) -> Rings {
        Rings::new(RingRules {
            reports_max,
            bytes_max: reports_in_all * (OVERHEAD_BYTES + 1),
        })
    }

    fn put(rings: &mut Rings, slot: Slot, time_ms: u8, may_repeat: bool) {
        let report = report(time_ms.into(), time_ms.into());
        rings.remember(slot, &report, &[time_ms], 0, may_repeat);
        let sum: usize = rings.by_slot.iter().flatten().map(|ring| ring.bytes).sum();
        let filled = rings.by_slot.iter().flatten();
        assert_eq!((rings.bytes, rings.filled), (sum, filled.count()));
        assert!(rings.bytes <= rings.rules.bytes_max);
    }

    fn of(rings: &Rings, slot: Slot) -> Vec<u8> {
        rings.of(slot, 0).iter().map(|message| message[0]).collect()
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
        assert_eq!(rings.of(0, 7).len(), 1);
        assert_eq!(rings.of(0, 8).len(), 2);
    }

    #[test]
    fn none_are_kept_if_none_are_wanted() {
        let mut rings = rings(0, 50);
        put(&mut rings, 0, 1, false);
        assert!(rings.by_slot.is_empty());
    }
}
