//! Exactly once: which sequences of a slave's streams have been applied.

use alloc::vec::Vec;

use crate::limits::STREAMS_MAX;
use crate::wire::{Hello, Mark};

/// What to do with one sequence of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is the next one: apply it.
    Apply,
    /// It has been applied: ack it, and do not apply it again.
    Duplicate,
    /// It lies ahead of the stream; all from `expected` on must come first.
    Ahead {
        /// The next sequence of the stream.
        expected: u64,
    },
}

/// How a slave's Hello fits what is known of its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The streams go on from here.
    Open,
    /// More has been applied of the slave's own stream than the slave has ever assigned: it runs on
    /// a copy or an older state of its disk.
    Backwards {
        /// The highest sequence applied.
        applied: u64,
    },
}

/// The high-water mark of each stream of one slave. Pure bookkeeping: what was applied here becomes
/// durable with the group that it is committed in.
///
/// The [`STREAMS_MAX`] streams that were used last are remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Least recently used first.
    marks: Vec<Mark>,
}

impl Ledger {
    /// The ledger that [`Self::marks`] described.
    pub fn from_marks(marks: Vec<Mark>) -> Self {
        Self { marks }
    }

    /// All marks, the stream that was used last at the end.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// The highest sequence of `stream` that was applied; `None` if the stream is not known.
    pub fn mark(&self, stream: u64) -> Option<u64> {
        self.find(stream).map(|at| self.marks[at].sequence)
    }

    /// Takes in the streams that a Hello announces.
    ///
    /// A stream that is not known begins at the first sequence that the slave still has: what came
    /// before was acked by another master, or by this one before it lost its state.
    pub fn open(&mut self, hello: &Hello) -> Opening {
        if let Some(applied) = self.mark(hello.stream)
            && applied >= hello.next_sequence
        {
            return Opening::Backwards { applied };
        }
        for pending in &hello.pending {
            let at = self.touch(pending.stream, pending.first.saturating_sub(1));
            debug_assert_eq!(self.marks[at].stream, pending.stream);
        }
        Opening::Open
    }

    /// Whether `sequence` of `stream` is to be applied; if so, it counts as applied from now on.
    pub fn admit(&mut self, stream: u64, sequence: u64) -> Admission {
        self.admit_range(stream, sequence, sequence)
    }

    /// The same for all from `first` to `last`: a gap fills its sequences. A range that was applied
    /// in part is applied: the part that is new counts.
    pub fn admit_range(&mut self, stream: u64, first: u64, last: u64) -> Admission {
        let at = self.touch(stream, 0);
        let mark = &mut self.marks[at];
        let applied = mark.sequence;
        if last <= applied {
            Admission::Duplicate
        } else if first.saturating_sub(applied) > 1 {
            let expected = applied + 1;
            Admission::Ahead { expected }
        } else {
            mark.sequence = last;
            Admission::Apply
        }
    }

    /// Moves `stream` to the end, or begins it at `mark` and forgets the oldest if there are too many.
    fn touch(&mut self, stream: u64, mark: u64) -> usize {
        let last = self.marks.len().saturating_sub(1);
        match self.find(stream) {
            Some(at) if at == last => {}
            Some(at) => self.marks[at..].rotate_left(1),
            None => {
                if self.marks.len() == STREAMS_MAX {
                    self.marks.remove(0);
                }
                let sequence = mark;
                self.marks.push(Mark { stream, sequence });
            }
        }
        self.marks.len() - 1
    }

    /// The stream in use is the last one, so the search begins there.
    fn find(&self, stream: u64) -> Option<usize> {
        self.marks.iter().rposition(|mark| mark.stream == stream)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::wire::Pending;

    fn hello(stream: u64, next_sequence: u64, pending: &[(u64, u64)]) -> Hello {
        Hello {
            stream,
            next_sequence,
            pending: pending
                .iter()
                .map(|&(stream, first)| Pending { stream, first })
                .collect(),
            ..Hello::default()
        }
    }

    #[test]
    fn each_sequence_is_applied_once_and_in_order() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.admit(1, 1), Admission::Apply);
        assert_eq!(ledger.admit(1, 1), Admission::Duplicate);
        assert_eq!(ledger.admit(1, 3), Admission::Ahead { expected: 2 });
        assert_eq!(ledger.admit(1, 2), Admission::Apply);
        assert_eq!(ledger.admit(1, 3), Admission::Apply);
        assert_eq!(ledger.admit(1, 1), Admission::Duplicate);
        assert_eq!(ledger.mark(1), Some(3));
    }

    #[test]
    fn a_gap_fills_its_range_once() {
        let mut ledger = Ledger::default();
        ledger.admit(1, 1);
        assert_eq!(
            ledger.admit_range(1, 3, 9),
            Admission::Ahead { expected: 2 }
        );
        assert_eq!(ledger.admit_range(1, 2, 9), Admission::Apply);
        assert_eq!(ledger.admit_range(1, 2, 9), Admission::Duplicate);
        assert_eq!(ledger.admit(1, 10), Admission::Apply);
        assert_eq!(ledger.admit_range(1, 5, 12), Admission::Apply);
        assert_eq!(ledger.mark(1), Some(12));
    }

    #[test]
    fn an_unknown_stream_begins_where_the_slave_still_has_it() {
        let mut ledger = Ledger::default();
        let opening = ledger.open(&hello(1, 501, &[(9, 40), (1, 500)]));
        assert_eq!(opening, Opening::Open);
        assert_eq!(ledger.mark(9), Some(39));
        assert_eq!(ledger.admit(1, 500), Admission::Apply);
        // A known one stays where it is.
        ledger.open(&hello(1, 501, &[(1, 400)]));
        assert_eq!(ledger.mark(1), Some(500));
    }

    #[test]
    fn a_sequence_that_runs_backwards_is_seen() {
        let mut ledger = Ledger::default();
        ledger.open(&hello(1, 1, &[(1, 1)]));
        for sequence in 1..=5 {
            ledger.admit(1, sequence);
        }
        // All five were sent and the acks were lost: not backwards.
        assert_eq!(ledger.open(&hello(1, 6, &[(1, 1)])), Opening::Open);
        let backwards = Opening::Backwards { applied: 5 };
        assert_eq!(ledger.open(&hello(1, 5, &[(1, 5)])), backwards);
    }

    #[test]
    fn the_streams_used_last_are_remembered() {
        let mut ledger = Ledger::default();
        for stream in 1..=(STREAMS_MAX as u64) {
            ledger.admit(stream, 1);
        }
        ledger.admit(1, 2);
        ledger.admit(1000, 1);
        assert_eq!(ledger.marks().len(), STREAMS_MAX);
        assert_eq!(ledger.mark(1), Some(2));
        assert_eq!(ledger.mark(2), None);
        assert_eq!(ledger.marks().last().map(|mark| mark.stream), Some(1000));
        let copy = Ledger::from_marks(vec![Mark {
            stream: 5,
            sequence: 6,
        }]);
        assert_eq!(copy.mark(5), Some(6));
    }
}
