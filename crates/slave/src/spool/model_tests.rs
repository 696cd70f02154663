//! The spool against a model of it: whatever happens in whatever order, no report is lost without a
//! gap, none comes back after its ack, and all come in order.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rollcall_protocol::wire::{self, GapReason};

use super::queue::{Queue, Room};
use super::tests::{ROOMY, UNBOUNDED};
use super::{BEFORE_ALL, Body, Entry, Folder, SpoolLimits};

#[derive(Clone, Debug)]
enum Op {
    Append {
        health: i32,
        bytes_max: u64,
    },
    /// Acks this share of what a reader is told, in permille.
    Ack(usize),
    Restream,
    GiveUp(usize),
    Flush,
    Reopen,
    /// A reader takes some and goes on from there.
    Read(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let bytes_max = prop_oneof![3 => Just(u64::MAX), 1 => 0..2000_u64];
    let op = prop_oneof![
        6 => (0..2_i32, bytes_max).prop_map(|(health, bytes_max)| Op::Append { health, bytes_max }),
        2 => (0..1000_usize).prop_map(Op::Ack),
        1 => Just(Op::Restream),
        1 => (0..1000_usize).prop_map(Op::GiveUp),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        2 => (1..5_usize).prop_map(Op::Read),
    ];
    prop::collection::vec(op, 1..60)
}

/// Every report ever appended, by its time of origin, which the model uses as its name.
#[derive(Debug, Default)]
struct Model {
    /// Stream and sequence of what is not acked.
    unacked: BTreeMap<i64, (u64, u64)>,
    appended: i64,
    reader: u64,
}

impl Model {
    fn check(&self, queue: &mut Queue) {
        let reader = self.reader;
        let entries = queue.read_after(BEFORE_ALL, 10_000).unwrap();
        let mut explained = Vec::new();
        let mut reports = 0;
        for entry in &entries {
            match &entry.body {
                Body::Report(report) => {
                    reports += 1;
                    let place = (report.stream, report.sequence);
                    assert_eq!(self.unacked.get(&report.time_ms), Some(&place));
                    explained.push(place);
                }
                Body::Gap(gap) => {
                    explained.extend((gap.first..=gap.last).map(|lost| (gap.stream, lost)));
                }
            }
        }
        let expected: Vec<_> = self.unacked.values().copied().collect();
        assert_eq!(explained, expected, "all that is not acked, in order, once");
        assert!(entries.is_sorted_by_key(|entry| entry.id));
        let standing = queue.standing().unwrap();
        assert_eq!(standing.backlog, reports);
        for pending in &standing.pending {
            let first = self
                .unacked
                .values()
                .find(|(stream, _)| *stream == pending.stream);
            let first = first.map_or(standing.next_sequence, |(_, sequence)| *sequence);
            assert_eq!(pending.first, first);
        }
        // The reader goes on where it was.
        queue.read_after(reader, 0).unwrap();
    }

    fn acked(&mut self, stream: u64, mark: u64) {
        self.unacked
            .retain(|_, &mut (of, sequence)| of != stream || sequence > mark);
    }
}

fn last_of(entry: &Entry) -> (u64, u64) {
    match &entry.body {
        Body::Report(report) => (report.stream, report.sequence),
        Body::Gap(gap) => (gap.stream, gap.last),
    }
}

fn apply(queue: &mut Queue, model: &mut Model, op: &Op) {
    match *op {
        Op::Append { health, bytes_max } => {
            queue.set_limits(SpoolLimits {
                bytes_max,
                ..UNBOUNDED
            });
            let standing = queue.standing().unwrap();
            model.appended += 1;
            let report = wire::Report {
                time_ms: model.appended,
                health,
                ..wire::Report::default()
            };
            queue.append(&[report], Room { ..ROOMY }).unwrap();
            let place = (standing.stream, standing.next_sequence);
            model.unacked.insert(model.appended, place);
            let newest = queue
                .newest()
                .unwrap()
                .expect("the newest is never given up");
            assert_eq!(last_of(&newest), place);
        }
        Op::Ack(permille) => {
            let entries = queue.read_after(BEFORE_ALL, 10_000).unwrap();
            queue.read_after(model.reader, 0).unwrap();
            // Acks come in the order of the entries.
            for entry in entries.iter().take(entries.len() * permille / 1000) {
                let (stream, mark) = last_of(entry);
                queue.acked(stream, mark).unwrap();
                model.acked(stream, mark);
            }
        }
        Op::Restream => {
            let old = queue.standing().unwrap().stream;
            let new = queue.restream(old).unwrap();
            let moved = model
                .unacked
                .values_mut()
                .filter(|(stream, _)| *stream == old);
            for ((stream, sequence), renumbered) in moved.zip(1..) {
                (*stream, *sequence) = (new, renumbered);
            }
        }
        Op::GiveUp(permille) => {
            let entries = queue.read_after(BEFORE_ALL, 10_000).unwrap();
            queue.read_after(model.reader, 0).unwrap();
            let newest = queue.newest().unwrap().map(|entry| entry.id);
            let chosen = entries.get(entries.len() * permille / 1000);
            if let Some(entry) = chosen.filter(|entry| Some(entry.id) != newest) {
                queue.give_up(entry.id, GapReason::Unknown).unwrap();
            }
        }
        Op::Flush => queue.flush().unwrap(),
        Op::Reopen => {}
        Op::Read(max) => {
            let entries = queue.read_after(model.reader, max).unwrap();
            model.reader = entries.last().map_or(model.reader, |entry| entry.id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn nothing_is_lost_without_a_receipt(ops in ops()) {
        let directory = tempfile::tempdir().unwrap();
        let mut model = Model::default();
        let open = || {
            let folder = Folder::lock(directory.path()).unwrap();
            Queue::open(folder, UNBOUNDED, ROOMY.now_ms).unwrap()
        };
        let mut queue = open();
        for op in &ops {
            if matches!(op, Op::Reopen) {
                // Acks that are not synced would come back, which does no harm, but is not the model.
                queue.flush().unwrap();
                drop(queue);
                queue = open();
                model.reader = BEFORE_ALL;
            }
            apply(&mut queue, &mut model, op);
            model.check(&mut queue);
        }
    }
}
