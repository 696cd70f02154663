mod claims;
mod datagrams;
mod identity;
mod presence;

use std::time::Duration;

use prost::Message;
use rollcall_protocol::Moment;
use rollcall_protocol::api::Presence;
use rollcall_protocol::session::Refusal;
use rollcall_protocol::wire::{
    Check, ErrorCode, Gap, GapReason, Hello, Mark, Mode, Pending, Report, Status, ToMaster,
    to_master::Kind,
};

use super::*;

const RULES: PresenceRules = PresenceRules {
    late_after: 1.5,
    missing_after: 3.0,
    reconnect_window: Duration::from_secs(60),
};

const RINGS: RingRules = RingRules {
    reports_max: 5,
    bytes_max: 1 << 20,
};

fn at(milliseconds: u64) -> Stamp {
    Stamp {
        at: Moment::new(Duration::from_millis(milliseconds)),
        wall_ms: 1_000_000 + i64::try_from(milliseconds).unwrap(),
    }
}

fn payload(kind: Kind) -> Vec<u8> {
    ToMaster { kind: Some(kind) }.encode_to_vec()
}

/// What a restart would find on disk: every group that was taken.
#[derive(Default)]
struct Disk {
    records: BTreeMap<SlaveId, Vec<u8>>,
    redo: Vec<(u64, Vec<u8>)>,
    next_group: u64,
    next_event: i64,
}

impl Disk {
    fn write(&mut self, gathered: Gathered) -> Vec<String> {
        let group = gathered.group;
        self.next_group = group.id + 1;
        if !group.redo.is_empty() {
            self.redo.push((group.id, group.redo));
        }
        for record in group.records {
            self.records.insert(record.id, record.blob);
        }
        for id in group.forgotten {
            self.records.remove(&id);
        }
        if let Some(below) = group.forget_redo_below {
            self.redo.retain(|(id, _)| *id >= below);
        }
        self.next_event = group
            .events
            .last()
            .map_or(self.next_event, |event| event.id + 1);
        let line = |event: rollcall_protocol::api::EventRow| {
            let word = |word: Option<String>| word.unwrap_or_else(|| "-".into());
            let replayed = if event.replayed { " replayed" } else { "" };
            format!(
                "{:?} {} {}>{}{replayed}",
                event.kind,
                word(event.subject),
                word(event.from),
                word(event.to)
            )
        };
        group.events.into_iter().map(line).collect()
    }

    fn restore(&self, now: Stamp) -> Roll {
        let durable = Durable {
            records: self.records.clone().into_iter().collect(),
            redo: self.redo.clone(),
            next_group: self.next_group,
            next_event: self.next_event,
        };
        Roll::restore(durable, RULES, RINGS, now.at).unwrap()
    }
}

/// A slave that talks to a roll.
struct Talker {
    id: u8,
    stream: u64,
    session: SessionId,
    slot: Slot,
}

impl Talker {
    fn hello(&self, next_sequence: u64, pending: &[(u64, u64)]) -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            slave_id: vec![self.id; 16],
            name: format!("web-{}", self.id),
            stream: self.stream,
            next_sequence,
            interval_ms: 1000,
            mode: Mode::Pooled.into(),
            pending: pending
                .iter()
                .map(|&(stream, first)| Pending { stream, first })
                .collect(),
            ..Hello::default()
        }
    }

    fn greet(&self, roll: &mut Roll, hello: Hello, now: Stamp) -> Result<Greeting, Refusal> {
        let bytes = payload(Kind::Hello(hello.clone()));
        roll.handle_hello(
            &hello,
            &bytes,
            "127.0.0.1:5".parse().unwrap(),
            self.session,
            now,
        )
    }

    fn connect(roll: &mut Roll, id: u8, stream: u64, now: Stamp) -> Self {
        let session = u64::try_from(now.at.since_origin().as_nanos()).unwrap() + u64::from(id);
        let mut talker = Self {
            id,
            stream,
            session,
            slot: 0,
        };
        let hello = talker.hello(1, &[(stream, 1)]);
        match talker.greet(roll, hello, now).unwrap() {
            Greeting::Welcome { slot, .. } => talker.slot = slot,
            other => panic!("{other:?}"),
        }
        talker
    }

    fn report(
        &self,
        roll: &mut Roll,
        sequence: u64,
        state: i32,
        lane: &str,
        now: Stamp,
    ) -> Result<Taken, Refusal> {
        let check = Check {
            name: "disk".into(),
            state,
            ..Check::default()
        };
        let report = Report {
            stream: self.stream,
            sequence,
            time_ms: 500 + i64::try_from(sequence).unwrap(),
            live: lane != "backlog",
            preview: lane == "preview",
            health: state,
            status: Some(Status {
                checks: vec![check],
            }),
            ..Report::default()
        };
        let bytes = payload(Kind::Report(report.clone()));
        roll.handle_report(self.slot, report, &bytes, now)
    }
}

fn row(roll: &mut Roll, name: &str) -> rollcall_protocol::api::SlaveRow {
    let slot = roll.names[name];
    roll.slaves[slot].shown.to_row()
}

#[test]
fn reports_are_applied_once_and_survive_a_restart() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 77, at(0));
    assert_eq!(
        talker.report(&mut roll, 1, 0, "live", at(10)).unwrap(),
        Taken::Applied
    );
    assert_eq!(
        talker.report(&mut roll, 1, 0, "live", at(20)).unwrap(),
        Taken::Duplicate
    );
    assert_eq!(
        talker.report(&mut roll, 2, 2, "live", at(30)).unwrap(),
        Taken::Applied
    );
    let hole = talker.report(&mut roll, 4, 0, "live", at(40)).unwrap_err();
    assert_eq!(hole.code, ErrorCode::Hole);

    let events = disk.write(roll.take_group(0));
    assert_eq!(
        events,
        [
            "Enrolled - ->-",
            "Presence - expected>up",
            "Health - ->ok",
            "Health - ok>critical",
            "Check disk ok>critical",
        ]
    );
    let before = row(&mut roll, "web-1");
    let mut restored = disk.restore(at(100));
    assert!(!restored.has_group(), "a replay tells and writes nothing");
    let mut after = row(&mut restored, "web-1");
    assert_eq!(
        (before.applied, before.sequence, before.duplicates),
        (2, 2, 1)
    );
    // A report that came again changes nothing that must survive.
    after.duplicates = before.duplicates;
    after.connected_since_ms = before.connected_since_ms;
    assert_eq!(before, after);
}

#[test]
fn records_and_redo_together_restore_the_same_roll_at_every_slice() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let talkers: Vec<_> = (0..200)
        .map(|id| Talker::connect(&mut roll, id, 5, at(0)))
        .collect();
    disk.write(roll.take_group(0));
    // A restart makes the next group begin a snapshot; reports go on between its slices.
    let mut roll = disk.restore(at(0));
    for round in 1..=6_u64 {
        for talker in &talkers[..150] {
            talker
                .report(&mut roll, round, 0, "live", at(round))
                .unwrap();
        }
        disk.write(roll.take_group(0));
        let mut restored = disk.restore(at(0));
        for id in 0..200 {
            let name = format!("web-{id}");
            let (mut now, was) = (row(&mut roll, &name), row(&mut restored, &name));
            now.connected_since_ms = None;
            assert_eq!(now, was, "round {round}");
        }
    }
    assert_eq!(disk.records.len(), 200);
    assert!(disk.redo.len() <= 7, "the snapshot took the old redo away");
}

#[test]
fn a_slave_is_behind_from_its_preview_until_it_has_caught_up() {
    let mut roll = Disk::default().restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    let mut behind = |sequence, lane| {
        talker.report(&mut roll, sequence, 0, lane, at(1)).unwrap();
        roll.is_behind(talker.slot)
    };
    // Unacked reports that nothing overtook are no backlog.
    assert!(!behind(1, "backlog"));
    assert!(behind(4, "preview"));
    assert!(behind(2, "backlog") && behind(3, "backlog"));
    assert!(behind(6, "preview") && behind(4, "backlog") && behind(5, "backlog"));
    assert!(!behind(6, "backlog"));
    assert!(!behind(7, "live"));
    assert!(behind(9, "preview") && !behind(8, "live"));
}

#[test]
fn live_reports_run_ahead_and_the_backlog_fills_history_only() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    talker.report(&mut roll, 1, 0, "live", at(0)).unwrap();
    disk.write(roll.take_group(0));

    assert_eq!(
        talker.report(&mut roll, 4, 2, "preview", at(10)).unwrap(),
        Taken::Previewed
    );
    let shown = row(&mut roll, "web-1");
    assert_eq!(
        (shown.applied, shown.sequence),
        (1, 1),
        "a preview is not counted"
    );
    assert_eq!(shown.health, Some(rollcall_protocol::api::Health::Critical));
    // A crash in the middle of catching up changes nothing.
    let told = disk.write(roll.take_group(0));
    assert_eq!(told, ["Health - ok>critical", "Check disk ok>critical"]);
    let mut roll = disk.restore(at(20));

    talker
        .greet(&mut roll, talker.hello(5, &[(7, 2)]), at(20))
        .unwrap();
    talker.report(&mut roll, 2, 0, "backlog", at(21)).unwrap();
    talker.report(&mut roll, 3, 1, "backlog", at(22)).unwrap();
    talker.report(&mut roll, 4, 2, "backlog", at(23)).unwrap();
    talker.report(&mut roll, 5, 2, "live", at(24)).unwrap();
    let told = disk.write(roll.take_group(0));
    assert_eq!(
        told,
        [
            "Health - ok>warning replayed",
            "Check disk ok>warning replayed"
        ],
        "what the preview told is not told again"
    );
    let shown = row(&mut roll, "web-1");
    assert_eq!((shown.applied, shown.sequence), (5, 5));
    assert!(roll.slaves[0].catching_up.is_none());
}

/// A report that ran ahead was told against what the roll showed then; in its place it may be a change
/// that nobody has told.
#[test]
fn what_a_preview_could_not_tell_is_told_in_its_place() {
    for lane in ["backlog", "live"] {
        let mut disk = Disk::default();
        let mut roll = disk.restore(at(0));
        let talker = Talker::connect(&mut roll, 1, 7, at(0));
        talker.report(&mut roll, 1, 0, "live", at(0)).unwrap();
        disk.write(roll.take_group(0));
        talker.report(&mut roll, 3, 0, "preview", at(10)).unwrap();
        assert!(disk.write(roll.take_group(0)).is_empty(), "{lane}");
        talker.report(&mut roll, 2, 2, "backlog", at(11)).unwrap();
        talker.report(&mut roll, 3, 0, lane, at(12)).unwrap();
        assert_eq!(
            disk.write(roll.take_group(0)),
            [
                "Health - ok>critical replayed",
                "Check disk ok>critical replayed",
                "Health - critical>ok replayed",
                "Check disk critical>ok replayed",
            ],
            "{lane}"
        );
    }
}

#[test]
fn a_gap_is_counted_once() {
    let disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    let gap = Gap {
        stream: 7,
        first: 1,
        last: 12,
        reason: GapReason::SpoolFull.into(),
        from_ms: 12 * 3_600_000,
        to_ms: 12 * 3_600_000 + 40 * 60_000,
    };
    let bytes = payload(Kind::Gap(gap));
    roll.take_group(0);
    assert_eq!(
        roll.handle_gap(0, &gap, &bytes, at(1)).unwrap(),
        Taken::Applied
    );
    let told = roll.take_group(0).events.remove(0);
    assert_eq!(told.text, "gap: 12 reports, 12:00-12:40, spool full");
    assert_eq!(told.from.as_deref(), Some("1970-01-01T12:00:00.000Z"));
    assert_eq!(told.to.as_deref(), Some("1970-01-01T12:40:00.000Z"));
    assert_eq!((told.time_ms, told.replayed), (gap.from_ms, true));
    assert_eq!(
        roll.handle_gap(0, &gap, &bytes, at(2)).unwrap(),
        Taken::Duplicate
    );
    talker.report(&mut roll, 13, 0, "live", at(3)).unwrap();
    let shown = row(&mut roll, "web-1");
    assert_eq!((shown.gaps, shown.applied, shown.sequence), (12, 1, 13));
}

/// The sequences of the reports that are remembered.
fn remembered(roll: &Roll, durable: u64) -> Vec<u64> {
    let reports = roll.reports("web-1", durable).unwrap();
    let sequence = |message: &[u8]| match ToMaster::decode(message).unwrap().kind {
        Some(Kind::Report(report)) => report.sequence,
        other => panic!("{other:?}"),
    };
    reports.messages().map(sequence).collect()
}

#[test]
fn the_newest_reports_are_remembered_in_their_order_each_once_and_after_a_restart() {
    let mut disk = Disk::default();
    let mut roll = disk.restore(at(0));
    let talker = Talker::connect(&mut roll, 1, 7, at(0));
    talker.report(&mut roll, 1, 0, "live", at(1)).unwrap();
    let gathered = roll.take_group(0);
    let first_group = gathered.group.id;
    disk.write(gathered);
    talker.report(&mut roll, 5, 0, "preview", at(2)).unwrap();
    assert_eq!(remembered(&roll, first_group), [1], "not durable yet");
    for sequence in 2..=5 {
        talker
            .report(&mut roll, sequence, 0, "backlog", at(3))
            .unwrap();
    }
    assert_eq!(remembered(&roll, u64::MAX), [1, 2, 3, 4, 5]);
    talker.report(&mut roll, 6, 0, "live", at(4)).unwrap();
    assert_eq!(remembered(&roll, u64::MAX), [2, 3, 4, 5, 6]);
    disk.write(roll.take_group(0));
    assert_eq!(remembered(&disk.restore(at(9)), 0), [2, 3, 4, 5, 6]);

    // A record that contains the redo does not hide it, for as long as it is there.
    let mut roll = disk.restore(at(9));
    let redo = disk.redo.clone();
    disk.write(roll.take_group(0));
    assert_eq!(disk.records.len(), 1);
    disk.redo = redo;
    assert_eq!(remembered(&disk.restore(at(9)), 0), [2, 3, 4, 5, 6]);
    assert!(roll.reports("nobody", 0).is_none() && roll.reports_bytes() > 0);
}

#[test]
fn groups_go_on_behind_what_the_records_contain() {
    let mut disk = Disk {
        next_group: 41,
        ..Disk::default()
    };
    let mut roll = disk.restore(at(0));
    Talker::connect(&mut roll, 1, 7, at(0));
    let gathered = roll.take_group(0);
    let newest = gathered.group.id;
    assert!(newest > 40 && gathered.group.records.len() == 1);
    disk.write(gathered);
    // The store was rescued and does not know how far it had come.
    disk.next_group = 1;
    assert_eq!(disk.restore(at(0)).take_group(0).group.id, newest + 1);
}
