//! What must be there in the end: each report that was spooled, once and in its place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rollcall_e2e::{Master, Slave};
use rollcall_protocol::api::{EventKind, Presence, SlaveRow};
use rusqlite::{Connection, OpenFlags};

/// A report by its stream, as the master prints it, and its sequence.
type Place = (String, u64);

/// What the spool of a slave that is down holds.
fn spooled(folder: &Path, slave: &str) -> BTreeSet<Place> {
    let path = folder.join(format!("{slave}-state/spool.db"));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags).expect("a spool");
    let sql = "SELECT stream, first, last, gap IS NOT NULL FROM entries";
    let mut rows = database.prepare(sql).expect("a table");
    let rows = rows.query_map([], |row| {
        let stream: i64 = row.get(0)?;
        let is_gap: bool = row.get(3)?;
        assert!(!is_gap, "the spool had to give way");
        Ok((stream.cast_unsigned(), row.get::<_, i64>(1)?))
    });
    let places = rows.expect("rows").map(|row| {
        let (stream, sequence) = row.expect("a row");
        (format!("{stream:016x}"), sequence.unsigned_abs())
    });
    places.collect()
}

/// What a slave's processes have spooled: how far each of their streams had come.
#[derive(Debug, Default)]
pub(crate) struct Streams(BTreeMap<String, u64>);

impl Streams {
    /// The process is dead, and its last report is still in its spool.
    pub(crate) fn killed(&mut self, folder: &Path, slave: &Slave) {
        let spooled = spooled(folder, slave.name());
        assert!(!spooled.is_empty(), "it was to be killed with a backlog");
        for (stream, sequence) in spooled {
            let last = self.0.entry(stream).or_default();
            *last = sequence.max(*last);
        }
    }

    /// The process is stopped in order: all that it had is acked.
    pub(crate) fn stopped(&mut self, master: &Master, slave: &mut Slave) -> SlaveRow {
        assert!(slave.terminate().success());
        let row = master.wait_for_row(slave.name(), "gone", |row| row.presence == Presence::Left);
        let kept = slave.log().events("backlog_kept");
        assert!(kept.is_empty(), "all was to be sent: {kept:?}");
        self.0.insert(row.stream.clone(), row.sequence);
        row
    }

    /// How many reports there were in all.
    pub(crate) fn count(&self) -> u64 {
        self.0.values().sum()
    }

    pub(crate) fn contain(&self, stream: &str) -> bool {
        self.0.contains_key(stream)
    }

    /// Stops the slave; the master must have applied each report of each stream once: in order, as
    /// its ledger takes them in no other way.
    pub(crate) fn check(&mut self, master: &Master, slave: &mut Slave) -> SlaveRow {
        let row = self.stopped(master, slave);
        assert_eq!(
            (row.applied, row.gaps),
            (self.count(), 0),
            "{self:#?} {row:#?}"
        );
        row
    }
}

/// Nobody was taken for two, nor for a copy of himself.
pub(crate) fn assert_no_conflict(master: &Master) {
    let events = master.api().events().expect("events");
    let wrong: Vec<_> = events
        .iter()
        .filter(|event| matches!(event.kind, EventKind::Conflict | EventKind::Resync))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
