//! The spool against a model of it: whatever happens in whatever order, no report is lost without a
//! gap, none comes back after its ack, and all come in order. Every gap tells from when to when and
//! why.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rollcall_protocol::wire::{self, GapReason};

use super::queue::{Queue, Room};
use super::tests::{NOW_MS, ROOMY, UNBOUNDED};
use super::{BEFORE_ALL, Body, Entry, Folder, SpoolLimits};

/// The longest that a report is kept, where there is a limit.
const AGE_MAX: Duration = Duration::from_secs(3600);
/// Between two reports.
const STEP_MS: i64 = 1000;

#[derive(Clone, Debug)]
enum Op {
    Append {
        health: i32,
        bytes_max: u64,
        /// How many of the reports before this one are young enough, if there is a limit.
        young: Option<u16>,
    },
    /// Acks this share of what a reader is told, in permille.
    Ack(usize),
    Restream,
    GiveUp(usize),
    Flush,
    Reopen,
    /// kill -9: acks that were not synced come back.
    Crash,
    /// The disk is full: nothing of a report is stored, and all else stays.
    FullDisk,
    /// The file is found damaged while it is in use.
    Replace,
    /// A reader takes some and goes on from there.
    Read(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let bytes_max = prop_oneof![3 => Just(u64::MAX), 1 => 0..2000_u64];
    let young = prop_oneof![3 => Just(None), 1 => (0..10_u16).prop_map(Some)];
    let append = (0..2_i32, bytes_max, young).prop_map(|(health, bytes_max, young)| Op::Append {
        health,
        bytes_max,
        young,
    });
    let op = prop_oneof![
        8 => append,
        2 => (0..1000_usize).prop_map(Op::Ack),
        1 => Just(Op::Restream),
        1 => (0..1000_usize).prop_map(Op::GiveUp),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        2 => Just(Op::Crash),
        1 => Just(Op::FullDisk),
        1 => Just(Op::Replace),
        2 => (1..5_usize).prop_map(Op::Read),
    ];
    prop::collection::vec(op, 1..60)
}

/// Every report ever appended, by its time of origin, which the model uses as its name.
#[derive(Debug, Default)]
struct Model {
    /// Stream and sequence of what is not acked.
    unacked: BTreeMap<i64, (u64, u64)>,
    /// Why it was given up, of what was.
    lost: BTreeMap<i64, GapReason>,
    appended: i64,
    reader: u64,
    /// Acked since the last sync.
    unsynced: BTreeMap<i64, (u64, u64)>,
}

impl Model {
    fn check(&mut self, queue: &mut Queue, because: impl Fn(i64) -> GapReason) {
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
                    self.check_gap(gap, &because);
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

    /// The gap tells when its first and its last report were made, and why all of them went; those
    /// that went just now did so for the reason `because` of each.
    fn check_gap(&mut self, gap: &wire::Gap, because: impl Fn(i64) -> GapReason) {
        let covered = |(_, place): &(&i64, &(u64, u64))| {
            place.0 == gap.stream && (gap.first..=gap.last).contains(&place.1)
        };
        let times: Vec<i64> = self
            .unacked
            .iter()
            .filter(covered)
            .map(|(time_ms, _)| *time_ms)
            .collect();
        // A part that was acked before may have told of the time from which on.
        let first = times.first().copied();
        assert!(first.is_some_and(|first| gap.from_ms <= first), "{gap:?}");
        assert_eq!(times.last(), Some(&gap.to_ms), "{gap:?}");
        for time_ms in times {
            let reason = *self.lost.entry(time_ms).or_insert_with(|| because(time_ms));
            assert_eq!(gap.reason(), reason, "of {time_ms} in {gap:?}");
        }
    }

    fn acked(&mut self, stream: u64, mark: u64) {
        let acked = self
            .unacked
            .extract_if(.., |_, (of, sequence)| *of == stream && *sequence <= mark);
        self.unsynced.extend(acked);
    }
}

fn last_of(entry: &Entry) -> (u64, u64) {
    match &entry.body {
        Body::Report(report) => (report.stream, report.sequence),
        Body::Gap(gap) => (gap.stream, gap.last),
    }
}

fn bulky() -> wire::Status {
    let check = wire::Check {
        text: "x".repeat(1 << 20),
        ..wire::Check::default()
    };
    wire::Status {
        checks: vec![check],
    }
}

/// Why `op` would have given up a report of this time.
fn reason(op: &Op, model: &Model, time_ms: i64) -> GapReason {
    match *op {
        Op::Append {
            young: Some(young), ..
        } if time_ms < oldest_ms(model, young) => GapReason::Expired,
        Op::Append { .. } => GapReason::SpoolFull,
        Op::Replace => GapReason::Damaged,
        _ => GapReason::Unknown,
    }
}

/// The time of the oldest of the `young` reports before the newest one.
fn oldest_ms(model: &Model, young: u16) -> i64 {
    NOW_MS + (model.appended - i64::from(young)) * STEP_MS
}

fn append(queue: &mut Queue, model: &mut Model, health: i32, limits: SpoolLimits, now_ms: i64) {
    queue.set_limits(limits);
    let standing = queue.standing().unwrap();
    let time_ms = NOW_MS + model.appended * STEP_MS;
    let report = wire::Report {
        time_ms,
        health,
        ..wire::Report::default()
    };
    queue.append(&[report], Room { now_ms, ..ROOMY }).unwrap();
    let place = (standing.stream, standing.next_sequence);
    model.unacked.insert(time_ms, place);
    let newest = queue
        .newest()
        .unwrap()
        .expect("the newest is never given up");
    assert_eq!(last_of(&newest), place);
}

fn apply(queue: &mut Queue, model: &mut Model, op: &Op) {
    match *op {
        Op::Append {
            health,
            bytes_max,
            young,
        } => {
            model.appended += 1;
            let limits = SpoolLimits {
                bytes_max,
                age_max: young.map_or(UNBOUNDED.age_max, |_| AGE_MAX),
                ..UNBOUNDED
            };
            let age_ms = i64::try_from(AGE_MAX.as_millis()).unwrap();
            let now_ms = young.map_or(ROOMY.now_ms, |young| oldest_ms(model, young) + age_ms);
            append(queue, model, health, limits, now_ms);
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
        Op::Reopen | Op::Crash | Op::Replace => {}
        Op::FullDisk => {
            queue.limit_pages(true);
            let report = wire::Report {
                // More than the free pages of a small database.
                status: Some(bulky()),
                ..wire::Report::default()
            };
            let error = queue.append(&[report], ROOMY).unwrap_err();
            let code = error.sqlite_error_code();
            assert_eq!(code, Some(rusqlite::ErrorCode::DiskFull), "{error}");
            queue.limit_pages(false);
        }
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
            if matches!(op, Op::Reopen | Op::Replace) {
                // In order: acks are synced.
                queue.flush().unwrap();
                model.reader = BEFORE_ALL;
            }
            if matches!(op, Op::Reopen | Op::Crash) {
                drop(queue);
                queue = open();
            } else if matches!(op, Op::Replace) {
                let damage = rusqlite::Error::IntegralValueOutOfRange(0, -1);
                queue = queue.replace(ROOMY.now_ms, &damage).unwrap();
                // What had gone before is told as a part of it.
                model.lost.clear();
            }
            if matches!(op, Op::Crash) {
                model.reader = BEFORE_ALL;
                let again = std::mem::take(&mut model.unsynced);
                model.unacked.extend(again);
            }
            apply(&mut queue, &mut model, op);
            if matches!(op, Op::Append { .. } | Op::Flush | Op::Restream | Op::Reopen | Op::Replace) {
                model.unsynced.clear();
            }
            let appended = Model { appended: model.appended, ..Model::default() };
            model.check(&mut queue, |time_ms| reason(op, &appended, time_ms));
        }
    }
}
