//! The ledger against a model that keeps every applied sequence in a set.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use rollcall_protocol::ledger::{Admission, Ledger, Opening};
use rollcall_protocol::limits::STREAMS_MAX;
use rollcall_protocol::wire::{Hello, Pending};

#[derive(Clone, Debug)]
enum Act {
    Open {
        stream: u64,
        next: u64,
        pending: Vec<(u64, u64)>,
    },
    Report(u64, u64),
    Gap(u64, u64, u64),
    /// The ledger is stored and read again.
    Reload,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let stream = 1_u64..5;
    let open = (stream.clone(), 1_u64..20, vec((1_u64..5, 1_u64..15), 0..4)).prop_map(
        |(stream, next, pending)| Act::Open {
            stream,
            next,
            pending,
        },
    );
    let report = (stream.clone(), 1_u64..20).prop_map(|(stream, at)| Act::Report(stream, at));
    let gap = (stream, 1_u64..20, 0_u64..6)
        .prop_map(|(stream, first, more)| Act::Gap(stream, first, first + more));
    vec(
        prop_oneof![1 => open, 6 => report, 2 => gap, 1 => Just(Act::Reload)],
        0..120,
    )
}

/// Which sequences of each stream were applied, or lie before its beginning.
#[derive(Default)]
struct Model {
    streams: BTreeMap<u64, BTreeSet<u64>>,
}

impl Model {
    fn open(&mut self, stream: u64, next: u64, pending: &[(u64, u64)]) -> bool {
        let applied = self.streams.get(&stream);
        if applied.is_some_and(|applied| applied.contains(&next)) {
            return false;
        }
        for &(stream, first) in pending {
            self.streams
                .entry(stream)
                .or_insert_with(|| (0..first).collect());
        }
        true
    }

    /// Applies what is new of the range, if nothing is missing before it.
    fn admit(&mut self, stream: u64, first: u64, last: u64) -> Admission {
        let applied = self.streams.entry(stream).or_insert_with(|| [0].into());
        if (first..=last).all(|sequence| applied.contains(&sequence)) {
            return Admission::Duplicate;
        }
        let missing = (0..first).find(|sequence| !applied.contains(sequence));
        if let Some(expected) = missing {
            return Admission::Ahead { expected };
        }
        applied.extend(first..=last);
        Admission::Apply
    }
}

fn hello(stream: u64, next_sequence: u64, pending: &[(u64, u64)]) -> Hello {
    let pending = pending
        .iter()
        .map(|&(stream, first)| Pending { stream, first });
    Hello {
        stream,
        next_sequence,
        pending: pending.collect(),
        ..Hello::default()
    }
}

proptest! {
    #[test]
    fn the_ledger_is_the_set_of_what_was_applied(acts in acts()) {
        let (mut ledger, mut model) = (Ledger::default(), Model::default());
        for act in acts {
            match act {
                Act::Open { stream, next, pending } => {
                    let applied = ledger.mark(stream);
                    let opening = ledger.open(&hello(stream, next, &pending));
                    if model.open(stream, next, &pending) {
                        prop_assert_eq!(opening, Opening::Open);
                    } else {
                        let applied = applied.unwrap();
                        prop_assert_eq!(opening, Opening::Backwards { applied });
                    }
                }
                Act::Report(stream, sequence) => {
                    let expected = model.admit(stream, sequence, sequence);
                    prop_assert_eq!(ledger.admit(stream, sequence), expected);
                }
                Act::Gap(stream, first, last) => {
                    let expected = model.admit(stream, first, last);
                    prop_assert_eq!(ledger.admit_range(stream, first, last), expected);
                }
                Act::Reload => ledger = Ledger::from_marks(ledger.marks().to_vec()),
            }
            for (stream, applied) in &model.streams {
                prop_assert_eq!(ledger.mark(*stream), applied.last().copied());
            }
        }
    }

    #[test]
    fn a_hello_keeps_all_its_streams_and_the_ledger_stays_small(
        hellos in vec(vec(1_u64..200, 1..=STREAMS_MAX), 1..12),
    ) {
        let mut ledger = Ledger::default();
        for streams in hellos {
            let pending: Vec<_> = streams.iter().map(|&stream| (stream, 5)).collect();
            let own = *streams.last().unwrap();
            prop_assert_eq!(ledger.open(&hello(own, u64::MAX, &pending)), Opening::Open);
            prop_assert!(ledger.marks().len() <= STREAMS_MAX);
            for stream in streams {
                prop_assert!(ledger.mark(stream) >= Some(4));
            }
            prop_assert_eq!(ledger.marks().last().map(|mark| mark.stream), Some(own));
        }
    }
}

#[test]
fn the_edges_of_the_range_do_not_overflow() {
    let mut ledger = Ledger::default();
    let last = i64::MAX.unsigned_abs();
    ledger.open(&hello(1, last, &[(1, last)]));
    assert_eq!(ledger.admit(1, last), Admission::Apply);
    assert_eq!(ledger.admit(1, last), Admission::Duplicate);
    // What a session never lets through does no harm either.
    assert_eq!(ledger.admit_range(1, 1, u64::MAX), Admission::Apply);
    assert_eq!(ledger.admit(1, u64::MAX), Admission::Duplicate);
    ledger.open(&hello(2, 1, &[(2, 0)]));
    assert_eq!(ledger.mark(2), Some(0));
}
