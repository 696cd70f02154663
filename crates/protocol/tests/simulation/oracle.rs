//! What must hold, kept by a bystander that trusts neither end: a log of what the master applied, how
//! much of it is durable, and what every slave has spooled, sent and let go.

use std::collections::{BTreeMap, BTreeSet};

use rollcall_protocol::limits::PER_MESSAGE_FRAMES_MAX;
use rollcall_protocol::wire::{GapReason, Mark, ToMaster, ToSlave, to_master, to_slave};

use crate::network::ConnId;
use crate::spool::{Body, Entry, Spool};

/// How often what has happened.
#[derive(Debug, Default)]
pub(crate) struct Counts(pub(crate) BTreeMap<&'static str, u64>);

impl Counts {
    pub(crate) fn add(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}

/// One change of a slave's stream at the master.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applied {
    pub(crate) slave: u8,
    pub(crate) stream: u64,
    pub(crate) what: What,
}

/// See [`Applied`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// The stream begins: all up to here is not the master's business.
    Begin(u64),
    /// A report with its sequence and its number.
    Report(u64, u64),
    /// First and last sequence of a gap.
    Gap(u64, u64),
}

type StreamId = (u8, u64);
type Place = (u8, u64, u64);

/// What was seen on one connection.
#[derive(Debug, Default)]
struct Tap {
    per_message: bool,
    window: Option<usize>,
    /// Streams and last sequences that were sent and not acked.
    unacked: BTreeSet<(u64, u64)>,
    /// The newest report that went out as live.
    live: u64,
    reports: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) counts: Counts,
    log: Vec<Applied>,
    durable_len: usize,
    /// Of the whole log, and of its durable part.
    marks: BTreeMap<StreamId, u64>,
    durable_marks: BTreeMap<StreamId, u64>,
    /// What was durable at any time: reports by their number, gaps as none.
    ever_durable: BTreeMap<Place, BTreeSet<Option<u64>>>,
    /// Durable once, and lost with the master's disk.
    lost: BTreeSet<Place>,
    /// Every report: where it was last seen, and whether its slave still has to get rid of it.
    reports: BTreeMap<u64, (Place, Fate)>,
    /// Reports that are spooled as parts of gaps.
    given_up: BTreeMap<Place, u64>,
    restored: BTreeSet<u8>,
    taps: BTreeMap<ConnId, Tap>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Spooled,
    /// Spooled as a part of a gap.
    GivenUp,
    LetGo,
    /// Gone with a disk that was rolled back.
    Destroyed,
}

/// The master's side.
impl Oracle {
    /// The master applies something: each sequence once, in order, without a hole.
    pub(crate) fn applied(&mut self, mut applied: Applied) {
        if let What::Gap(first, last) = applied.what {
            // What of a gap was applied before it came is no part of it.
            let mark = self.marks.get(&(applied.slave, applied.stream));
            let new = mark.map_or(first, |mark| first.max(mark + 1));
            if new > first {
                self.counts.add("gaps_applied_in_part");
            }
            applied.what = What::Gap(new, last);
        }
        check_order(&mut self.marks, applied);
        self.log.push(applied);
    }

    pub(crate) fn log_len(&self) -> usize {
        self.log.len()
    }

    /// The log is durable up to `len`.
    pub(crate) fn committed(&mut self, len: usize) {
        for applied in &self.log[self.durable_len..len] {
            check_order(&mut self.durable_marks, *applied);
            for (sequence, number) in applied.contents() {
                let place = (applied.slave, applied.stream, sequence);
                self.ever_durable.entry(place).or_default().insert(number);
            }
        }
        self.durable_len = len;
    }

    /// What was not durable is gone.
    pub(crate) fn crashed(&mut self) {
        self.log.truncate(self.durable_len);
        self.marks = self.durable_marks.clone();
    }

    /// The master's disk is one of an earlier time, when the log had `len` entries.
    pub(crate) fn disk_replaced(&mut self, len: usize) {
        for applied in self.log.drain(len..) {
            let places = applied.contents();
            self.lost
                .extend(places.map(|(sequence, _)| (applied.slave, applied.stream, sequence)));
        }
        self.durable_len = len;
        self.durable_marks.clear();
        for applied in &self.log {
            check_order(&mut self.durable_marks, *applied);
        }
        self.marks = self.durable_marks.clone();
    }

    /// The master tells a slave that all of `mark` is durable.
    pub(crate) fn acks(&mut self, slave: u8, mark: Mark) {
        let durable = self.durable_marks.get(&(slave, mark.stream)).copied();
        assert!(
            durable >= Some(mark.sequence),
            "slave {slave}: {mark:?} is acked and {durable:?} is durable"
        );
        self.counts.add("acks");
    }
}

/// The slaves' side.
impl Oracle {
    pub(crate) fn spooled(&mut self, slave: u8, stream: u64, sequence: u64, number: u64) {
        let place = (slave, stream, sequence);
        self.reports.insert(number, (place, Fate::Spooled));
        self.counts.add("reports");
    }

    /// The report has become part of a gap.
    pub(crate) fn given_up(&mut self, number: u64) {
        if let Some((place, fate)) = self.reports.get_mut(&number) {
            *fate = Fate::GivenUp;
            self.given_up.insert(*place, number);
        }
    }

    /// What was left of the stream `old` has become the stream `new`; each move tells first and last
    /// sequence in the old one and first in the new one.
    pub(crate) fn restreamed(
        &mut self,
        slave: u8,
        (old, new): (u64, u64),
        moves: &[(u64, u64, u64)],
        spool: &Spool,
    ) {
        for &(first, last, now_first) in moves {
            for sequence in first..=last {
                if let Some(number) = self.given_up.remove(&(slave, old, sequence)) {
                    let place = (slave, new, now_first + sequence - first);
                    self.given_up.insert(place, number);
                    self.reports.insert(number, (place, Fate::GivenUp));
                }
            }
        }
        self.spool_changed(slave, spool);
    }

    /// The spool is that of an earlier time.
    pub(crate) fn rolled_back(&mut self, slave: u8, spool: &Spool) {
        self.restored.insert(slave);
        let in_gap = |place: &Place| {
            spool.entries().any(|entry| {
                matches!(entry.body, Body::Gap(_))
                    && entry.stream == place.1
                    && (entry.first..=entry.last).contains(&place.2)
            })
        };
        self.given_up
            .retain(|place, _| place.0 != slave || in_gap(place));
        self.spool_changed(slave, spool);
    }

    fn spool_changed(&mut self, slave: u8, spool: &Spool) {
        let mut now = BTreeMap::new();
        for entry in spool.entries() {
            if let Body::Report(number) = entry.body {
                now.insert(number, (slave, entry.stream, entry.first));
            }
        }
        for (number, (place, fate)) in &mut self.reports {
            let in_gap = self.given_up.get(place) == Some(number);
            match (now.get(number), *fate) {
                _ if place.0 != slave => {}
                (Some(&at), _) => (*place, *fate) = (at, Fate::Spooled),
                (None, Fate::Spooled) => *fate = Fate::Destroyed,
                (None, Fate::GivenUp) if !in_gap => *fate = Fate::Destroyed,
                (None, _) => {}
            }
        }
    }

    /// A slave lets go of what was acked: it must have been durable under its place.
    pub(crate) fn lets_go(&mut self, slave: u8, entry: &Entry) {
        for sequence in entry.first..=entry.last {
            let place = (slave, entry.stream, sequence);
            let Some(known) = self.ever_durable.get(&place) else {
                panic!("slave {slave} lets go of {place:?}, which was never durable: {entry:?}");
            };
            let number = match entry.body {
                Body::Report(number) => number,
                Body::Gap(_) => match self.given_up.get(&place) {
                    Some(&number) => number,
                    None => continue,
                },
            };
            if !known.contains(&Some(number)) && !known.contains(&None) {
                // A restored machine has used the sequences once more and overtaken the master's
                // mark before it said Hello: from outside that looks like lost acks.
                assert!(
                    self.restored.contains(&slave),
                    "slave {slave}: {place:?} was durable as {known:?}, and {number} is let go"
                );
                self.counts.add("known_limit_swallowed_after_restore");
                self.lost.insert(place);
            }
            self.reports.insert(number, (place, Fate::LetGo));
        }
    }
}

/// On the wire.
impl Oracle {
    /// A slave has written `message`.
    pub(crate) fn sent(&mut self, connection: ConnId, message: &ToMaster) {
        let tap = self.taps.entry(connection).or_default();
        let (place, may_exceed) = match message.kind.as_ref().expect("a kind") {
            to_master::Kind::Hello(hello) => {
                tap.per_message = hello.mode != 0;
                return;
            }
            to_master::Kind::Goodbye(_) => return,
            to_master::Kind::Report(report) => {
                let first = tap.reports == 0;
                tap.reports += 1;
                let number = report.time_ms.unsigned_abs();
                // Unless a newer one has been acked while an older stream still waits.
                let is_known = |((slave, ..), fate): &((u8, u64, u64), Fate)| {
                    let own = self.reports.get(&number).map(|((slave, ..), _)| slave);
                    matches!(fate, Fate::LetGo) && own == Some(slave)
                };
                assert!(
                    !first
                        || report.live
                        || self.reports.range(number..).any(|(_, it)| is_known(it)),
                    "the newest report must go first"
                );
                if report.live {
                    assert!(report.sequence > 0 && report.time_ms.unsigned_abs() > tap.live);
                    tap.live = report.time_ms.unsigned_abs();
                }
                if report.preview {
                    assert!(report.live, "a preview is live");
                    self.counts.add("previews");
                    return;
                }
                ((report.stream, report.sequence), false)
            }
            // What the master has lost is told at once, whatever the window.
            to_master::Kind::Gap(gap) => {
                let owed = gap.reason == i32::from(GapReason::AckedBefore);
                if owed {
                    self.counts.add("gaps_acked_before");
                }
                ((gap.stream, gap.last), owed)
            }
        };
        let limit = match (tap.window, tap.per_message) {
            (Some(window), _) => window,
            (None, true) => usize::try_from(PER_MESSAGE_FRAMES_MAX).expect("small"),
            (None, false) => panic!("{message:?} before Welcome"),
        };
        tap.unacked.insert(place);
        let in_flight = tap.unacked.len();
        assert!(
            may_exceed || in_flight <= limit,
            "{in_flight} in flight, and the window is {limit}"
        );
        if in_flight == limit {
            self.counts.add("window_full");
        }
    }

    /// A slave has read `message`.
    pub(crate) fn received(&mut self, connection: ConnId, message: &ToSlave) {
        let tap = self.taps.entry(connection).or_default();
        match message.kind.as_ref().expect("a kind") {
            to_slave::Kind::Welcome(welcome) => {
                tap.window = usize::try_from(welcome.window).ok();
            }
            to_slave::Kind::Ack(ack) => tap
                .unacked
                .retain(|&(stream, sequence)| stream != ack.stream || sequence > ack.sequence),
            _ => {}
        }
    }
}

/// At the end.
impl Oracle {
    /// Every report that was spooled is applied, or told as lost, or went down with a disk.
    pub(crate) fn check_end(&mut self) {
        let mut marks = BTreeMap::new();
        let mut contents: BTreeMap<Place, Option<u64>> = BTreeMap::new();
        for applied in &self.log {
            check_order(&mut marks, *applied);
            for (sequence, number) in applied.contents() {
                contents
                    .entry((applied.slave, applied.stream, sequence))
                    .or_insert(number);
            }
        }
        for (number, (place, fate)) in &self.reports {
            match (fate, contents.get(place)) {
                (Fate::Spooled | Fate::GivenUp, _) => {
                    panic!("report {number} at {place:?} is still spooled")
                }
                (Fate::Destroyed, _) => self.counts.add("reports_destroyed_with_a_disk"),
                (Fate::LetGo, Some(Some(applied))) if applied == number => {
                    self.counts.add("reports_applied");
                }
                (Fate::LetGo, Some(None)) => self.counts.add("reports_covered_by_a_gap"),
                (Fate::LetGo, found) => {
                    assert!(
                        self.lost.contains(place),
                        "report {number} at {place:?} is gone: {found:?} is there"
                    );
                    self.counts.add("reports_lost_with_the_masters_disk");
                }
            }
        }
    }
}

impl Applied {
    /// The sequences that this filled, with the report's number if it is one.
    fn contents(self) -> impl Iterator<Item = (u64, Option<u64>)> {
        let (range, number) = match self.what {
            What::Begin(_) => (0..0, None),
            What::Report(sequence, number) => (sequence..sequence + 1, Some(number)),
            What::Gap(first, last) => (first..last + 1, None),
        };
        range.map(move |sequence| (sequence, number))
    }
}

fn check_order(marks: &mut BTreeMap<StreamId, u64>, applied: Applied) {
    let stream = (applied.slave, applied.stream);
    let mark = marks.get(&stream).copied();
    let mark = match applied.what {
        What::Begin(at) => {
            assert_eq!(mark, None, "{applied:?}: the stream has begun already");
            at
        }
        What::Report(sequence, _) => {
            assert_eq!(mark, Some(sequence - 1), "{applied:?} does not follow");
            sequence
        }
        What::Gap(first, last) => {
            let fits = mark.is_some_and(|mark| first == mark + 1 && last > mark);
            assert!(fits, "{applied:?} does not follow {mark:?}");
            last
        }
    };
    marks.insert(stream, mark);
}
