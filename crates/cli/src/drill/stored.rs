//! What the master has on disk, read past its own code: each group of its redo, and the events.
//!
//! The master takes redo away once it has begun anew or has written 16 MiB of it. So the redo is
//! read again and again, and always while the master is down: what was read once is not forgotten,
//! and the drill restarts the master before it could take away what nobody has read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use prost::Message;
use rollcall_protocol::wire::{Report, ToMaster, to_master};

use super::spool::{ReadError, open};
use super::witness::{Place, SlaveId, Witness, digest};

/// The check whose changes are followed into the history.
pub(super) const CHECK: &str = "drill";

/// An entry of the master's redo: of its fields those that matter here.
#[derive(Clone, PartialEq, Message)]
struct RedoEntry {
    #[prost(bytes = "vec", tag = "1")]
    slave_id: Vec<u8>,
    /// A message as it came; empty for a change of presence.
    #[prost(bytes = "vec", tag = "3")]
    message: Vec<u8>,
}

/// A stream on disk.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Up to where it was applied.
    pub(super) highest: u64,
    /// Its reports: a digest of each one's content.
    pub(super) reports: BTreeMap<u64, u64>,
    /// What it was told to be without.
    given_up: Vec<(u64, u64)>,
}

/// A slave on disk.
#[derive(Debug, Default)]
pub(super) struct Slave {
    /// Reports applied.
    pub(super) applied: u64,
    /// Reports that will not come.
    pub(super) given_up: u64,
    /// The birth of the stream that its newest report belongs to.
    newest_born: Option<usize>,
    /// The state and the text of its [`CHECK`] in the newest report.
    check: Option<(i32, String)>,
    /// The texts with which that state has changed, in order.
    pub(super) changes: Vec<String>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Stored {
    newest_group: i64,
    pub(super) streams: HashMap<u64, Stream>,
    pub(super) slaves: HashMap<SlaveId, Slave>,
    /// Applied more than once.
    pub(super) doubled: BTreeSet<Place>,
    /// Applied after one that was made later.
    pub(super) reordered: BTreeSet<Place>,
    /// Acked, and not on disk when the master was down.
    pub(super) acked_unstored: BTreeSet<Place>,
}

impl Stored {
    /// Takes in what the redo at `path` has beyond what was read before.
    ///
    /// # Errors
    /// [`ReadError`]
    pub(super) fn read(&mut self, path: &Path) -> Result<Vec<Group>, ReadError> {
        let Some(connection) = open(path, "redo")? else {
            return Ok(Vec::new());
        };
        let sql = "SELECT group_id, reports FROM redo WHERE group_id > ?1 ORDER BY group_id";
        let rows = connection.prepare(sql).and_then(|mut statement| {
            statement
                .query_map([self.newest_group], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<Vec<(i64, Vec<u8>)>, _>>()
        });
        let rows = rows.map_err(|source| ReadError::Sqlite {
            path: path.to_owned(),
            source,
        })?;
        let mut groups = Vec::with_capacity(rows.len());
        for (id, blob) in rows {
            groups.push(Group::decode(&blob).map_err(|source| ReadError::Content {
                what: format!("group {id}"),
                path: path.to_owned(),
                source,
            })?);
            self.newest_group = id;
        }
        Ok(groups)
    }

    /// Judges what was read. Whatever is in it was seen on the wire before.
    pub(super) fn take(&mut self, groups: Vec<Group>, witness: &Witness) {
        for (slave, kind) in groups.into_iter().flat_map(|group| group.0) {
            match kind {
                to_master::Kind::Report(report) if !report.preview => {
                    self.report(slave, &report, witness);
                }
                to_master::Kind::Gap(gap) => {
                    let stream = self.streams.entry(gap.stream).or_default();
                    let lost = gap.last.saturating_sub(stream.highest.max(gap.first - 1));
                    stream.given_up.push((gap.first, gap.last));
                    stream.highest = stream.highest.max(gap.last);
                    self.slaves.entry(slave).or_default().given_up += lost;
                }
                _ => {}
            }
        }
    }

    /// The master is down, and all that it has said was heard: what is acked must be here.
    pub(super) fn check_acks(&mut self, witness: &Witness) {
        for (stream, seen) in &witness.streams {
            let stored = self.streams.get(stream);
            let highest = stored.map_or(0, |stored| stored.highest);
            if seen.acked > highest {
                let unstored = seen.reports.range(highest + 1..=seen.acked);
                self.acked_unstored
                    .extend(unstored.map(|(at, _)| (*stream, *at)));
            }
        }
    }

    /// Number of reports on disk, each once.
    pub(super) fn count(&self) -> u64 {
        let count: usize = self
            .streams
            .values()
            .map(|stream| stream.reports.len())
            .sum();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    fn report(&mut self, slave: SlaveId, report: &Report, witness: &Witness) {
        let place = (report.stream, report.sequence);
        let stream = self.streams.entry(report.stream).or_default();
        let content = digest(report);
        if stream.reports.insert(report.sequence, content).is_some() {
            self.doubled.insert(place);
            return;
        }
        let born = witness.streams.get(&report.stream).map(|seen| seen.born);
        let slave = self.slaves.entry(slave).or_default();
        if report.sequence <= stream.highest || born < slave.newest_born {
            self.reordered.insert(place);
        }
        stream.highest = stream.highest.max(report.sequence);
        slave.newest_born = slave.newest_born.max(born);
        slave.note_check(report);
        slave.applied += 1;
    }
}

impl Slave {
    /// The history tells a first report by its health alone, and a change by the state.
    fn note_check(&mut self, report: &Report) {
        let checks = report.status.as_ref().map(|status| &status.checks);
        let now = checks
            .and_then(|checks| checks.iter().find(|check| check.name == CHECK))
            .map(|check| (check.state, check.text.clone()));
        if let Some((state, text)) = &now
            && self.applied > 0
            && self.check.as_ref().map(|(before, _)| before) != Some(state)
        {
            self.changes.push(text.clone());
        }
        self.check = now;
    }
}

/// The messages of one group, in the order in which they were applied.
#[derive(Debug)]
pub(super) struct Group(Vec<(SlaveId, to_master::Kind)>);

impl Group {
    fn decode(mut blob: &[u8]) -> Result<Self, prost::DecodeError> {
        let mut messages = Vec::new();
        while !blob.is_empty() {
            let entry = RedoEntry::decode_length_delimited(&mut blob)?;
            let Ok(slave) = SlaveId::try_from(entry.slave_id.as_slice()) else {
                continue;
            };
            let message = ToMaster::decode(entry.message.as_slice())?;
            messages.extend(message.kind.map(|kind| (slave, kind)));
        }
        Ok(Self(messages))
    }
}

/// What the history of the store tells that matters here.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Changes of presence for the worse: the slave, the state, and the line for people.
    pub(super) alarms: Vec<(String, String, String)>,
    /// Changes of [`CHECK`]: how often each (slave, from, to, text, replayed) is told.
    pub(super) changes: BTreeMap<Told, u32>,
    /// The slave and the text of each new state.
    pub(super) told: BTreeSet<(String, String)>,
}

/// One event as it is told: slave, state before, state after, text, replayed.
pub(super) type Told = (String, Option<String>, Option<String>, String, bool);

impl History {
    /// The history of the store at `path`.
    ///
    /// # Errors
    /// [`ReadError`]
    pub(super) fn read(path: &Path) -> Result<Self, ReadError> {
        let mut history = Self::default();
        let Some(connection) = open(path, "events")? else {
            return Ok(history);
        };
        let sql = "SELECT coalesce(slave, ''), from_state, to_state, text, replayed, kind, subject
                   FROM events WHERE kind IN ('presence', 'check') ORDER BY id";
        let rows = connection.prepare(sql).and_then(|mut statement| {
            let told = statement.query_map([], |row| {
                let told: Told = (
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                );
                Ok((told, row.get(5)?, row.get(6)?))
            })?;
            told.collect::<Result<Vec<(Told, String, Option<String>)>, _>>()
        });
        let rows = rows.map_err(|source| ReadError::Sqlite {
            path: path.to_owned(),
            source,
        })?;
        for (told, kind, subject) in rows {
            if kind == "check" && subject.as_deref() == Some(CHECK) {
                if told.2.is_some() {
                    history.told.insert((told.0.clone(), told.3.clone()));
                }
                *history.changes.entry(told).or_default() += 1;
            } else if let (slave, _, Some(to), text, _) = told
                && kind == "presence"
                && ["late", "missing"].contains(&&*to)
            {
                history.alarms.push((slave, to, text));
            }
        }
        Ok(history)
    }
}

/// A group of one slave's reports.
#[cfg(test)]
pub(super) fn group(slave: SlaveId, reports: &[Report]) -> Group {
    let kinds = reports.iter().cloned().map(to_master::Kind::Report);
    Group(kinds.map(|kind| (slave, kind)).collect())
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::wire::{Check, Gap, Hello, Mark, Status};
    use rusqlite::Connection;

    use super::*;

    const A: SlaveId = [1; 16];

    fn report(stream: u64, sequence: u64, state: i32) -> Report {
        let check = Check {
            name: CHECK.to_owned(),
            state,
            text: format!("run {sequence}"),
            ..Check::default()
        };
        Report {
            stream,
            sequence,
            status: Some(Status {
                checks: vec![check],
            }),
            ..Report::default()
        }
    }

    fn group(reports: &[Report]) -> Group {
        super::group(A, reports)
    }

    fn witness(streams: &[u64]) -> Witness {
        let mut witness = Witness::default();
        for stream in streams {
            let hello = Hello {
                stream: *stream,
                ..Hello::default()
            };
            witness.hello(A, &hello);
        }
        witness
    }

    #[test]
    fn what_comes_in_order_is_counted_once_and_its_changes_are_known() {
        let mut stored = Stored::default();
        let preview = Report {
            preview: true,
            ..report(7, 4, 2)
        };
        let all = [
            report(7, 1, 0),
            report(7, 2, 0),
            preview,
            report(7, 3, 1),
            report(7, 4, 2),
            report(8, 1, 2),
        ];
        stored.take(vec![group(&all)], &witness(&[7, 8]));
        assert_eq!((stored.count(), stored.slaves[&A].applied), (5, 5));
        assert!(stored.doubled.is_empty() && stored.reordered.is_empty());
        assert_eq!(stored.slaves[&A].changes, ["run 3", "run 4"]);
    }

    #[test]
    fn what_is_applied_twice_or_out_of_order_is_found() {
        let mut stored = Stored::default();
        let all = [
            report(7, 1, 0),
            report(7, 1, 0),
            report(7, 3, 0),
            report(7, 2, 0),
            report(8, 1, 0),
            report(7, 4, 0),
        ];
        stored.take(vec![group(&all)], &witness(&[7, 8]));
        assert_eq!(stored.doubled, BTreeSet::from([(7, 1)]));
        assert_eq!(stored.reordered, BTreeSet::from([(7, 2), (7, 4)]));
    }

    #[test]
    fn an_ack_without_its_report_on_disk_is_found() {
        let mut stored = Stored::default();
        let mut witness = witness(&[7]);
        for sequence in 1..=3 {
            witness.report(A, &report(7, sequence, 0), 1);
        }
        stored.take(vec![group(&[report(7, 1, 0)])], &witness);
        let mark = Mark {
            stream: 7,
            sequence: 2,
        };
        witness.durable(A, &mark);
        stored.check_acks(&witness);
        assert_eq!(stored.acked_unstored, BTreeSet::from([(7, 2)]));
    }

    #[test]
    fn a_gap_is_counted_by_what_it_adds() {
        let mut stored = Stored::default();
        let gap = |first, last| {
            let gap = Gap {
                stream: 7,
                first,
                last,
                ..Gap::default()
            };
            Group(vec![(A, to_master::Kind::Gap(gap))])
        };
        let witness = witness(&[7]);
        stored.take(
            vec![group(&[report(7, 1, 0)]), gap(2, 5), gap(4, 6)],
            &witness,
        );
        assert_eq!(stored.slaves[&A].given_up, 5);
        assert_eq!(stored.streams[&7].highest, 6);
    }

    #[test]
    fn redo_is_read_once_and_what_is_no_redo_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("master.db");
        let mut stored = Stored::default();
        assert!(stored.read(&path).unwrap().is_empty());
        let writer = Connection::open(&path).unwrap();
        let table = "CREATE TABLE redo (group_id INTEGER PRIMARY KEY, reports BLOB)";
        writer.execute(table, []).unwrap();
        let message = ToMaster {
            kind: Some(to_master::Kind::Report(report(7, 1, 0))),
        };
        let entry = RedoEntry {
            slave_id: A.to_vec(),
            message: message.encode_to_vec(),
        };
        let insert = "INSERT INTO redo VALUES (?1, ?2)";
        let blob = entry.encode_length_delimited_to_vec();
        writer.execute(insert, (5, blob)).unwrap();
        let groups = stored.read(&path).unwrap();
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].0.len(), 1);
        assert!(stored.read(&path).unwrap().is_empty());
        writer.execute(insert, (6, vec![9, 9])).unwrap();
        let error = stored.read(&path).unwrap_err().to_string();
        assert!(error.contains("group 6"), "{error}");
    }
}
