//! When to look at which slave next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rollcall_protocol::Moment;

use super::Slot;

/// A heap with one valid entry for each armed slave. Hearing from a slave touches nothing here: an
/// entry that has come up finds the deadline moved and is put back.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    heap: BinaryHeap<Reverse<(Moment, Slot)>>,
    /// By slot: the moment of its valid entry.
    armed: Vec<Option<Moment>>,
}

impl Deadlines {
    /// Looks at `slot` at `due`, unless that is to happen earlier anyway.
    pub(crate) fn arm(&mut self, slot: Slot, due: Moment) {
        if self.armed.len() <= slot {
            self.armed.resize(slot + 1, None);
        }
        if self.armed[slot].is_none_or(|armed| due < armed) {
            self.armed[slot] = Some(due);
            self.heap.push(Reverse((due, slot)));
        }
    }

    /// The next slot to look at, if its moment has come by `now`; it is disarmed.
    pub(crate) fn pop_due(&mut self, now: Moment) -> Option<Slot> {
        while let Some(&Reverse((due, slot))) = self.heap.peek() {
            if due > now {
                return None;
            }
            self.heap.pop();
            if self.armed[slot] == Some(due) {
                self.armed[slot] = None;
                return Some(slot);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds))
    }

    #[test]
    fn slots_come_up_in_order_and_once() {
        let mut deadlines = Deadlines::default();
        deadlines.arm(0, at(5));
        deadlines.arm(1, at(3));
        assert_eq!(deadlines.pop_due(at(2)), None);
        assert_eq!(deadlines.pop_due(at(9)), Some(1));
        assert_eq!(deadlines.pop_due(at(9)), Some(0));
        assert_eq!(deadlines.pop_due(at(9)), None);
    }

    #[test]
    fn an_earlier_deadline_replaces_a_later_one() {
        let mut deadlines = Deadlines::default();
        deadlines.arm(0, at(50));
        deadlines.arm(0, at(5));
        deadlines.arm(0, at(70));
        assert_eq!(deadlines.pop_due(at(6)), Some(0));
        assert_eq!(deadlines.pop_due(at(100)), None);
        deadlines.arm(0, at(101));
        assert_eq!(deadlines.pop_due(at(101)), Some(0));
    }
}
