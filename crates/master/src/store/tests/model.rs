//! The roll and the store together against a simple model of what a master holds: whatever comes in
//! whatever order, with crashes and a full disk in between, each sequence counts once, and what was
//! committed is there.

mod ops;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prost::Message;
use rollcall_protocol::Moment;
use rollcall_protocol::session::Refusal;
use rollcall_protocol::wire::{
    Check, ErrorCode, Gap, GapReason, Hello, Pending, Report, Status, ToMaster, to_master::Kind,
};
use rusqlite::TransactionBehavior;

use ops::{Op, ops};

use super::super::schema::Database;
use super::super::{salvage, thread};
use super::*;
use crate::roll::{Durable, Greeting, PresenceRules, RingRules, Roll, Stamp, Taken};
use crate::view::SlaveView;

const SLAVES: usize = 3;
/// Slaves that only say Hello: more than one slice of a snapshot.
const CROWD: usize = 300;
const RULES: PresenceRules = PresenceRules {
    late_after: 1.5,
    missing_after: 3.0,
    reconnect_window: Duration::from_secs(60),
};
const RINGS: RingRules = RingRules {
    reports_max: 4,
    bytes_max: 1 << 20,
};

/// What the master must hold of one slave.
#[derive(Clone, Debug, Default, PartialEq)]
struct Held {
    marks: BTreeMap<u64, u64>,
    applied: u64,
    lost: u64,
    gaps: i64,
}

/// What the slave itself knows: no crash of the master takes it away.
#[derive(Clone, Debug)]
struct Sender {
    stream: u64,
    /// The highest sequence that it has ever given.
    given: u64,
    /// Where it stands on the roll, while it is connected.
    slot: Option<usize>,
    /// Whether it has sent a live report on this connection.
    is_up: bool,
}

/// How often things happened that must happen now and then.
#[derive(Debug, Default)]
struct Seen {
    crashes: Cell<u32>,
    full: Cell<u32>,
    holes: Cell<u32>,
    resyncs: Cell<u32>,
    clones: Cell<u32>,
    overlaps: Cell<u32>,
}

fn count(of: &Cell<u32>) {
    of.set(of.get() + 1);
}

struct World<'a> {
    directory: tempfile::TempDir,
    database: Option<Database>,
    roll: Roll,
    shown: Vec<Arc<SlaveView>>,
    now: Stamp,
    held: Vec<Held>,
    durable: Vec<Held>,
    senders: Vec<Sender>,
    streams: u64,
    sessions: u64,
    seen: &'a Seen,
}

fn payload(kind: Kind) -> Vec<u8> {
    ToMaster { kind: Some(kind) }.encode_to_vec()
}

impl<'a> World<'a> {
    fn new(crowd: bool, seen: &'a Seen) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let now = Stamp {
            at: Moment::new(Duration::from_secs(1)),
            wall_ms: 1_000_000,
        };
        let (database, roll) = open(directory.path(), now);
        let sender = |number: usize| Sender {
            stream: u64::try_from(number).unwrap() + 1,
            given: 0,
            slot: None,
            is_up: false,
        };
        let mut world = Self {
            directory,
            database: Some(database),
            roll,
            shown: Vec::new(),
            now,
            held: vec![Held::default(); SLAVES],
            durable: vec![Held::default(); SLAVES],
            senders: (0..SLAVES).map(sender).collect(),
            streams: 1000,
            sessions: 0,
            seen,
        };
        if crowd {
            for number in SLAVES..SLAVES + CROWD {
                let hello = world.hello(number, 1, 1, &[]);
                world.greet(&hello).unwrap();
            }
        }
        world
    }

    fn hello(&self, slave: usize, stream: u64, next: u64, previous: &[u64]) -> Hello {
        let acked = self.held.get(slave).map_or(0, |held| mark(held, stream));
        let number = u128::try_from(slave).unwrap() + 1;
        Hello {
            version_min: 1,
            version_max: 1,
            slave_id: number.to_be_bytes().to_vec(),
            name: format!("slave-{slave}"),
            stream,
            next_sequence: next,
            interval_ms: 600_000,
            pending: vec![Pending {
                stream,
                first: (acked + 1).min(next),
            }],
            previous: previous.to_vec(),
            ..Hello::default()
        }
    }

    fn greet(&mut self, hello: &Hello) -> Result<Greeting, Refusal> {
        self.sessions += 1;
        let peer = "127.0.0.1:5".parse().unwrap();
        let bytes = payload(Kind::Hello(hello.clone()));
        self.roll
            .handle_hello(hello, &bytes, peer, self.sessions, self.now)
    }

    /// Has the slave connected; where it stands.
    fn slot(&mut self, slave: usize) -> usize {
        if let Some(slot) = self.senders[slave].slot {
            return slot;
        }
        let Sender { stream, given, .. } = self.senders[slave];
        let hello = self.hello(slave, stream, given + 1, &[]);
        let Greeting::Welcome { slot, marks } = self.greet(&hello).unwrap() else {
            panic!("told to start a new stream");
        };
        assert_eq!(marks[0].sequence, mark(&self.held[slave], stream));
        self.held[slave].marks.entry(stream).or_insert(0);
        self.senders[slave].slot = Some(slot);
        slot
    }

    fn report(
        &mut self,
        slave: usize,
        sequence: u64,
        live: bool,
        preview: bool,
    ) -> Result<Taken, Refusal> {
        let slot = self.slot(slave);
        let sender = &mut self.senders[slave];
        sender.given = sender.given.max(sequence);
        sender.is_up |= live;
        let state = i32::try_from(sequence % 3).unwrap();
        let check = Check {
            name: "disk".to_owned(),
            state,
            // Enough to fill a disk.
            text: "x".repeat(3000),
            ..Check::default()
        };
        let report = Report {
            stream: sender.stream,
            sequence,
            time_ms: i64::try_from(sequence).unwrap(),
            live,
            preview,
            health: state,
            status: Some(Status {
                checks: vec![check],
            }),
            ..Report::default()
        };
        let bytes = payload(Kind::Report(report.clone()));
        self.roll.handle_report(slot, report, &bytes, self.now)
    }

    fn gap(&mut self, slave: usize, first: u64, last: u64) -> Result<Taken, Refusal> {
        let slot = self.slot(slave);
        let sender = &mut self.senders[slave];
        sender.given = sender.given.max(last);
        let gap = Gap {
            stream: sender.stream,
            first,
            last,
            reason: GapReason::SpoolFull.into(),
            ..Gap::default()
        };
        let bytes = payload(Kind::Gap(gap));
        self.roll.handle_gap(slot, &gap, &bytes, self.now)
    }

    fn mark(&self, slave: usize) -> u64 {
        mark(&self.held[slave], self.senders[slave].stream)
    }

    fn advance(&mut self, slave: usize, to: u64) {
        let stream = self.senders[slave].stream;
        self.held[slave].marks.insert(stream, to);
    }

    fn apply(&mut self, op: Op) {
        self.now.at = self.now.at + Duration::from_millis(1);
        self.now.wall_ms += 1;
        match op {
            Op::Report { slave, live } => {
                self.slot(slave);
                let next = self.mark(slave) + 1;
                assert_eq!(
                    self.report(slave, next, live, false).unwrap(),
                    Taken::Applied
                );
                self.held[slave].applied += 1;
                self.advance(slave, next);
            }
            Op::Again(slave) => {
                let mark = self.mark(slave);
                if mark > 0 {
                    let taken = self.report(slave, mark, false, false).unwrap();
                    assert_eq!(taken, Taken::Duplicate);
                }
            }
            Op::Hole(slave) => {
                self.slot(slave);
                let refusal = self.report(slave, self.mark(slave) + 2, false, false);
                assert_eq!(refusal.unwrap_err().code, ErrorCode::Hole);
                count(&self.seen.holes);
            }
            Op::Preview(slave) => {
                self.slot(slave);
                let taken = self.report(slave, self.mark(slave) + 3, true, true);
                assert_eq!(taken.unwrap(), Taken::Previewed);
            }
            Op::Gap {
                slave,
                count,
                overlap,
            } => self.lose(slave, count, overlap),
            Op::Reconnect(slave) => {
                self.senders[slave].slot = None;
                self.slot(slave);
            }
            Op::Restart(slave) => {
                let old = self.senders[slave].stream;
                self.begin_stream(slave);
                let hello = self.hello(slave, self.senders[slave].stream, 1, &[old]);
                self.welcome(slave, &hello);
            }
            Op::Restored(slave) => self.restored(slave),
            Op::Clone(slave) => self.clone(slave),
            Op::Commit => self.commit(false),
            Op::FullDisk => self.commit(true),
            Op::Crash => self.crash(),
        }
    }

    fn lose(&mut self, slave: usize, lost: u64, overlap: bool) {
        self.slot(slave);
        let mark = self.mark(slave);
        let first = if overlap && mark > 0 { mark } else { mark + 1 };
        if first == mark {
            count(&self.seen.overlaps);
        }
        let last = mark + lost;
        assert_eq!(self.gap(slave, first, last).unwrap(), Taken::Applied);
        assert_eq!(self.gap(slave, first, last).unwrap(), Taken::Duplicate);
        self.held[slave].lost += lost;
        self.held[slave].gaps += 1;
        self.advance(slave, last);
    }

    fn begin_stream(&mut self, slave: usize) {
        self.streams += 1;
        let sender = &mut self.senders[slave];
        (sender.stream, sender.given, sender.slot) = (self.streams, 0, None);
    }

    fn welcome(&mut self, slave: usize, hello: &Hello) {
        let Greeting::Welcome { slot, .. } = self.greet(hello).unwrap() else {
            panic!("told to start a new stream");
        };
        self.held[slave].marks.entry(hello.stream).or_insert(0);
        self.senders[slave].slot = Some(slot);
    }

    fn restored(&mut self, slave: usize) {
        let mark = self.mark(slave);
        if mark == 0 {
            return;
        }
        let old = self.senders[slave].stream;
        let hello = self.hello(slave, old, mark, &[]);
        let resync = Greeting::Resync { applied: mark };
        assert_eq!(self.greet(&hello).unwrap(), resync);
        self.begin_stream(slave);
        let hello = self.hello(slave, self.senders[slave].stream, 1, &[old]);
        self.welcome(slave, &hello);
        count(&self.seen.resyncs);
    }

    fn clone(&mut self, slave: usize) {
        let sender = &self.senders[slave];
        if sender.slot.is_none() || !sender.is_up {
            return;
        }
        self.streams += 1;
        let hello = self.hello(slave, self.streams, 1, &[]);
        let refusal = self.greet(&hello).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::IdConflict);
        count(&self.seen.clones);
    }

    fn commit(&mut self, full: bool) {
        let group = self.roll.take_group(self.now.wall_ms).group;
        let connection = &mut self.database.as_mut().unwrap().connection;
        let pages: i64 = connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .unwrap();
        let mut allowed = if full { pages } else { i64::MAX >> 32 };
        loop {
            let pragma = format!("PRAGMA max_page_count = {allowed}");
            connection.query_row(&pragma, [], |_| Ok(())).unwrap();
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .unwrap();
            let written = thread::write(&transaction, &group).and_then(|()| transaction.commit());
            match written {
                Ok(()) => break,
                Err(error) => {
                    let code = error.sqlite_error_code();
                    assert_eq!(code, Some(rusqlite::ErrorCode::DiskFull), "{error}");
                    count(&self.seen.full);
                    allowed = i64::MAX >> 32;
                }
            }
        }
        self.durable.clone_from(&self.held);
    }

    fn crash(&mut self) {
        count(&self.seen.crashes);
        // The next owner of the folder must see what the last one has committed, and no more.
        drop(self.database.take());
        let (database, roll) = open(self.directory.path(), self.now);
        (self.database, self.roll) = (Some(database), roll);
        self.shown.clear();
        self.held.clone_from(&self.durable);
        for sender in &mut self.senders {
            (sender.slot, sender.is_up) = (None, false);
        }
    }

    fn check(&mut self) {
        if let Some(shown) = self.roll.publish() {
            self.shown = shown;
        }
        for (slave, held) in self.held.iter().enumerate() {
            let name = format!("slave-{slave}");
            let view = self.shown.iter().find(|view| view.name == name);
            let Some(view) = view else {
                assert_eq!(held, &Held::default(), "{name} is gone");
                continue;
            };
            let counts = (view.applied, view.gaps, view.sequence);
            let sequence = mark(held, view.stream);
            assert_eq!(counts, (held.applied, held.lost, sequence), "{name}");
        }
    }

    /// The events on disk tell each gap once.
    fn check_events(&self) {
        let connection = &self.database.as_ref().unwrap().connection;
        for (slave, held) in self.durable.iter().enumerate() {
            let told: i64 = connection
                .query_row(
                    "SELECT count(*) FROM events WHERE kind = 'gap' AND slave = ?1",
                    [format!("slave-{slave}")],
                    |row| row.get(0),
                )
                .unwrap();
            assert_eq!(told, held.gaps, "gaps of slave-{slave}");
        }
    }
}

fn mark(held: &Held, stream: u64) -> u64 {
    held.marks.get(&stream).copied().unwrap_or(0)
}

fn open(directory: &Path, now: Stamp) -> (Database, Roll) {
    let (database, loaded) = salvage::open_or_set_aside(&Store::database(directory)).unwrap();
    assert_eq!(loaded.set_aside, None);
    // Whether a sync is asked for is another test's business.
    let pragma = database
        .connection
        .pragma_update(None, "synchronous", "off");
    pragma.unwrap();
    let durable = Durable {
        records: loaded.records,
        redo: loaded.redo,
        next_group: loaded.next_group,
        next_event: loaded.next_event,
    };
    let roll = Roll::restore(durable, RULES, RINGS, now.at).unwrap();
    (database, roll)
}

#[test]
fn each_sequence_counts_once_whatever_happens() {
    let seen = Seen::default();
    let mut runner = TestRunner::new(Config {
        cases: 64,
        source_file: Some(file!()),
        ..Config::default()
    });
    let world = (any::<bool>(), ops());
    let result = runner.run(&world, |(crowd, ops)| {
        let mut world = World::new(crowd, &seen);
        for op in ops {
            world.apply(op);
            world.check();
        }
        world.check_events();
        world.crash();
        world.check();
        Ok(())
    });
    result.unwrap();
    for of in [
        &seen.crashes,
        &seen.full,
        &seen.holes,
        &seen.resyncs,
        &seen.clones,
        &seen.overlaps,
    ] {
        assert!(of.get() > 0, "{seen:?}");
    }
}
