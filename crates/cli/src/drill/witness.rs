//! What the drill has seen with its own eyes: reports on the wire and in the slaves' spools, acks on
//! the wire, and how long slaves went without an ack.
//!
//! Nothing in here comes from what a daemon says of itself.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use prost::Message;
use rollcall_protocol::Moment;
use rollcall_protocol::wire::{Hello, Mark, Report};

/// A slave's identity.
pub(super) type SlaveId = [u8; 16];
/// A report among all of all slaves: its stream and its sequence.
pub(super) type Place = (u64, u64);

/// How a daemon is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blow {
    /// SIGKILL.
    Killed,
    /// SIGTERM, and time to end.
    Planned,
}

/// One stream, as it was seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// Whose it is.
    pub(super) slave: SlaveId,
    /// Its place among the streams in the order of their births, over all slaves.
    pub(super) born: usize,
    /// Its reports: a digest of each one's content.
    pub(super) reports: BTreeMap<u64, u64>,
    /// What the slave said that it had to give up.
    pub(super) given_up: Vec<(u64, u64)>,
    /// Up to where the master has acked it.
    pub(super) acked: u64,
}

/// Something in a spool.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Spooled {
    /// A report.
    Report(Box<Report>),
    /// The receipt for reports that were given up.
    Gap {
        /// Of which stream.
        stream: u64,
        /// The first one.
        first: u64,
        /// The last one.
        last: u64,
    },
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Witness {
    pub(super) streams: HashMap<u64, Seen>,
    /// By slave: since when it has waited for an ack, and what for.
    waiting: HashMap<SlaveId, (Moment, Blow)>,
    /// By name.
    pub(super) names: BTreeMap<String, SlaveId>,
    /// How long slaves went without an ack after the master had ended.
    pub(super) blackouts: Vec<(Blow, Duration)>,
    /// Reports that came with another content under a place that was taken.
    pub(super) altered: BTreeSet<Place>,
    /// Reports that were not acked and not in the spool either when the slave was down.
    pub(super) unspooled: BTreeSet<Place>,
    /// Acks of what was never sent.
    pub(super) baseless_acks: u64,
    /// Acks that have passed.
    pub(super) acks: u64,
    /// Reports sent again.
    pub(super) resent: u64,
    /// Bytes of reports on their way to the master that runs.
    pub(super) bytes_to_master: u64,
}

/// What tells two reports apart, whichever way they are told.
pub(super) fn digest(report: &Report) -> u64 {
    let bare = Report {
        stream: 0,
        sequence: 0,
        live: false,
        preview: false,
        ..report.clone()
    };
    let mut hasher = DefaultHasher::new();
    bare.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

impl Witness {
    /// A slave said Hello.
    pub(super) fn hello(&mut self, slave: SlaveId, hello: &Hello) {
        self.names.insert(hello.name.clone(), slave);
        for pending in &hello.pending {
            self.stream(slave, pending.stream);
        }
        self.stream(slave, hello.stream);
    }

    /// A report passed on its way to the master.
    pub(super) fn report(&mut self, slave: SlaveId, report: &Report, bytes: usize) {
        self.bytes_to_master += u64::try_from(bytes).unwrap_or(u64::MAX);
        if !self.produced(slave, report) && !report.preview {
            self.resent += 1;
        }
    }

    /// A receipt for lost reports passed on its way to the master.
    pub(super) fn gap(&mut self, slave: SlaveId, stream: u64, first: u64, last: u64) {
        let given_up = &mut self.stream(slave, stream).given_up;
        if !given_up.contains(&(first, last)) {
            given_up.push((first, last));
        }
    }

    /// The master says that all of the stream up to the mark is durable.
    pub(super) fn durable(&mut self, slave: SlaveId, mark: &Mark) {
        let seen = self.stream(slave, mark.stream);
        if mark.sequence > seen.highest() {
            self.baseless_acks += 1;
        } else {
            seen.acked = seen.acked.max(mark.sequence);
        }
    }

    /// An ack passed on its way to the slave.
    pub(super) fn ack(&mut self, slave: SlaveId, mark: &Mark, now: Moment) {
        self.durable(slave, mark);
        self.acks += 1;
        if let Some((since, blow)) = self.waiting.remove(&slave) {
            self.blackouts.push((blow, now.saturating_since(since)));
        }
    }

    /// The master has been ended: those who do not wait for an ack already do so from `now`.
    pub(super) fn master_ended(&mut self, blow: Blow, now: Moment) {
        for slave in self.names.values() {
            self.waiting.entry(*slave).or_insert((now, blow));
        }
    }

    /// The slave has been ended: its silence tells nothing of the master any more.
    pub(super) fn slave_ended(&mut self, name: &str) {
        if let Some(slave) = self.names.get(name) {
            self.waiting.remove(slave);
        }
    }

    /// What was found in the spool of a slave that is down. Whatever of it is known and not acked
    /// must be there.
    pub(super) fn spool(&mut self, slave: SlaveId, entries: &[Spooled]) {
        let mut held = HashMap::<u64, BTreeSet<u64>>::new();
        for entry in entries {
            match entry {
                Spooled::Report(report) => {
                    self.produced(slave, report);
                    held.entry(report.stream)
                        .or_default()
                        .insert(report.sequence);
                }
                &Spooled::Gap {
                    stream,
                    first,
                    last,
                } => {
                    self.gap(slave, stream, first, last);
                    held.entry(stream).or_default().extend(first..=last);
                }
            }
        }
        let none = BTreeSet::new();
        for (stream, seen) in self.streams.iter().filter(|(_, seen)| seen.slave == slave) {
            let held = held.get(stream).unwrap_or(&none);
            let unacked = seen.reports.range(seen.acked + 1..).map(|(at, _)| *at);
            let absent = unacked.filter(|at| !held.contains(at));
            self.unspooled.extend(absent.map(|at| (*stream, at)));
        }
    }

    /// Number of reports that were ever seen, each once.
    pub(super) fn sent(&self) -> u64 {
        self.streams.values().map(|seen| count(&seen.reports)).sum()
    }

    /// Number of those that are acked.
    pub(super) fn acked(&self) -> u64 {
        let acked = |seen: &Seen| seen.reports.range(..=seen.acked).count();
        let acked: usize = self.streams.values().map(acked).sum();
        u64::try_from(acked).unwrap_or(u64::MAX)
    }

    /// How far each stream goes that was seen so far.
    pub(super) fn ends(&self) -> Vec<Mark> {
        self.ends_where(|_| true)
    }

    /// The same for the streams of one slave.
    pub(super) fn ends_of(&self, slave: SlaveId) -> Vec<Mark> {
        self.ends_where(|seen| seen.slave == slave)
    }

    fn ends_where(&self, is_wanted: impl Fn(&Seen) -> bool) -> Vec<Mark> {
        let wanted = self.streams.iter().filter(|(_, seen)| is_wanted(seen));
        let end = |(&stream, seen): (&u64, &Seen)| Mark {
            stream,
            sequence: seen.highest(),
        };
        wanted.map(end).collect()
    }

    /// How much up to these ends is not acked yet.
    pub(super) fn owed(&self, ends: &[Mark]) -> u64 {
        let owed = |end: &Mark| {
            let acked = self.streams.get(&end.stream).map_or(0, |seen| seen.acked);
            end.sequence.saturating_sub(acked)
        };
        ends.iter().map(owed).sum()
    }

    /// Whether the report is new.
    fn produced(&mut self, slave: SlaveId, report: &Report) -> bool {
        let content = digest(report);
        let seen = self.stream(slave, report.stream);
        match seen.reports.insert(report.sequence, content) {
            None => true,
            Some(before) => {
                if before != content {
                    self.altered.insert((report.stream, report.sequence));
                }
                false
            }
        }
    }

    fn stream(&mut self, slave: SlaveId, stream: u64) -> &mut Seen {
        let born = self.streams.len();
        self.streams.entry(stream).or_insert_with(|| Seen {
            slave,
            born,
            reports: BTreeMap::new(),
            given_up: Vec::new(),
            acked: 0,
        })
    }
}

impl Seen {
    /// The highest sequence that is known of.
    pub(super) fn highest(&self) -> u64 {
        let report = self.reports.last_key_value().map(|(at, _)| *at);
        let gap = self.given_up.iter().map(|(_, last)| *last).max();
        report.max(gap).unwrap_or(0)
    }
}

fn count<T>(reports: &BTreeMap<u64, T>) -> u64 {
    u64::try_from(reports.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::testing::{mark, report};

    const A: SlaveId = [1; 16];

    #[test]
    fn each_report_counts_once_however_often_and_wherever_it_is_seen() {
        let mut witness = Witness::default();
        witness.report(A, &report(1, 5), 10);
        let preview = Report {
            live: true,
            preview: true,
            ..report(3, 7)
        };
        witness.report(A, &preview, 10);
        witness.report(A, &report(1, 5), 10);
        let spooled = [2, 3].map(|at| Spooled::Report(report(at, at.cast_signed() + 4).into()));
        witness.spool(A, &spooled);
        assert_eq!((witness.sent(), witness.resent), (3, 1));
        assert_eq!(witness.altered.len(), 0);
        assert_eq!(witness.bytes_to_master, 30);
        witness.report(A, &report(2, 99), 10);
        assert_eq!(witness.altered, BTreeSet::from([(7, 2)]));
    }

    #[test]
    fn what_is_not_acked_must_be_in_the_spool_of_a_slave_that_is_down() {
        let mut witness = Witness::default();
        for at in 1..=4 {
            witness.report(A, &report(at, 0), 1);
        }
        witness.durable(A, &mark(1));
        let held = Spooled::Report(report(4, 0).into());
        let gap = Spooled::Gap {
            stream: 7,
            first: 2,
            last: 2,
        };
        witness.spool(A, &[gap, held]);
        assert_eq!(witness.unspooled, BTreeSet::from([(7, 3)]));
    }

    #[test]
    fn an_ack_must_be_of_something() {
        let mut witness = Witness::default();
        witness.report(A, &report(1, 0), 1);
        witness.durable(A, &mark(2));
        assert_eq!((witness.baseless_acks, witness.acked()), (1, 0));
        assert_eq!(witness.owed(&witness.ends()), 1);
        witness.durable(A, &mark(1));
        assert_eq!((witness.baseless_acks, witness.acked()), (1, 1));
        assert_eq!(witness.owed(&witness.ends()), 0);
    }

    #[test]
    fn a_blackout_goes_from_the_first_blow_to_the_ack_and_ends_with_the_slave() {
        let at = |ms| Moment::ZERO + Duration::from_millis(ms);
        let mut witness = Witness::default();
        let hello = Hello {
            name: "a".to_owned(),
            stream: 7,
            ..Hello::default()
        };
        witness.hello(A, &hello);
        witness.report(A, &report(1, 0), 1);
        witness.master_ended(Blow::Killed, at(100));
        witness.master_ended(Blow::Planned, at(150));
        witness.ack(A, &mark(1), at(400));
        witness.ack(A, &mark(1), at(500));
        assert_eq!(
            witness.blackouts,
            [(Blow::Killed, Duration::from_millis(300))]
        );
        witness.master_ended(Blow::Killed, at(600));
        witness.slave_ended("a");
        witness.ack(A, &mark(1), at(900));
        assert_eq!(witness.blackouts.len(), 1);
    }
}
