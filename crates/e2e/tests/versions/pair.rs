//! A master and slaves of whichever builds, and the account of what the slaves have reported.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rollcall_e2e::binaries;
use rollcall_e2e::source;
use rollcall_e2e::{Api, Master, Slave};
use rollcall_protocol::api::{EventKind, EventRow, Presence, SlaveHistory, SlaveRow};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use crate::content::{Told, events};

/// A folder with the daemons of an earlier build.
const OLD_BIN_DIR: &str = "ROLLCALL_E2E_OLD_BIN_DIR";
/// The check that changes with each of its turns.
const TURNS: &str = "turns";
/// Reports that a slave delivers before something else happens.
const REPORTS: u64 = 4;

/// A build: the one under test, or the programs in a folder.
pub(crate) type Build<'a> = Option<&'a Path>;

/// The build under test.
pub(crate) const PRESENT: Build<'static> = None;

/// The earlier programs. Without them says that the test `name` tests nothing.
pub(crate) fn earlier_or_tell(name: &str) -> Option<PathBuf> {
    let Some(folder) = env::var_os(OLD_BIN_DIR) else {
        // Not eprintln, which the test runner hides for tests that pass.
        let _ = writeln!(
            io::stderr(),
            "\nNOT TESTED {name}: {OLD_BIN_DIR} names no folder with the programs of an earlier build\n"
        );
        return None;
    };
    let folder = source::root().join(folder);
    for program in [binaries::MASTER, binaries::SLAVE] {
        let path = folder.join(program);
        assert!(
            path.is_file(),
            "{OLD_BIN_DIR}: there is no {}",
            path.display()
        );
    }
    Some(folder)
}

/// How a daemon is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Planned,
    Killed,
}

/// A slave, and how far each of its processes has come.
pub(crate) struct Reporter {
    pub(crate) slave: Slave,
    /// The stream of the process that runs.
    stream: String,
    /// The last sequences of the streams that have ended.
    ended: BTreeMap<String, u64>,
}

/// See the module's documentation.
pub(crate) struct Pair {
    pub(crate) folder: TempDir,
    pub(crate) master: Master,
    pub(crate) reporters: Vec<Reporter>,
}

impl Pair {
    /// Two slaves, a pooled and a per-message one, report every 100 ms.
    pub(crate) fn start(of_master: Build<'_>, of_slaves: Build<'_>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut master = Master::new(folder.path(), "master");
        // 3 s without a report is late: longer than a start takes on a busy machine.
        master
            .config
            .set("presence.late_after", 30.0)
            .set("presence.missing_after", 60.0);
        master.use_programs(of_master);
        master.start();
        let reporters = ["pooled", "per-message"].map(|mode| {
            let mut slave = Slave::new(folder.path(), mode, &[master.address()], "100ms");
            let turn = format!(
                "n=$(($(cat {0} 2>/dev/null || echo 0) + 1)); echo $n >{0}.new; mv {0}.new {0}; echo turn $n; exit $((n % 2))",
                folder.path().join(format!("{mode}.turn")).display()
            );
            slave.config.set("connection.mode", mode);
            slave.add_check(TURNS, &["/bin/sh", "-c", &turn], "250ms");
            slave.use_programs(of_slaves);
            Reporter::start(slave)
        });
        let pair = Self {
            folder,
            master,
            reporters: reporters.into(),
        };
        pair.let_report();
        pair
    }

    /// Waits until all slaves have reported, and are all right.
    pub(crate) fn let_report(&self) {
        for reporter in &self.reporters {
            let name = reporter.slave.name();
            let row = |what: &str, is_as_wanted: &dyn Fn(&SlaveRow) -> bool| {
                self.master.wait_for_row(name, what, is_as_wanted)
            };
            let now = row("on its stream", &|row| row.stream == reporter.stream);
            row("further", &|row| {
                row.sequence >= now.sequence + REPORTS && row.presence == Presence::Up
            });
        }
    }

    /// The rows of the roll.
    fn rows(&self) -> Vec<SlaveRow> {
        self.master.api().slaves().expect("the roll")
    }

    /// Ends the master under running reports and starts it as `build`, or the same again. What it knew,
    /// it still knows.
    pub(crate) fn replace_master(&mut self, build: Build<'_>, end: End) {
        let (rows, told) = (self.rows(), events(&self.master.api()));
        self.end_master(end);
        for reporter in &self.reporters {
            reporter.slave.wait_for_spooled(3);
        }
        self.start_master(build);
        self.assert_still_known(&rows, &told);
        self.let_report();
    }

    /// Ends the master.
    pub(crate) fn end_master(&mut self, end: End) {
        match end {
            End::Planned => assert_eq!(self.master.terminate().code(), Some(0)),
            End::Killed => self.master.kill_and_wait(),
        }
    }

    /// Starts the master as `build`.
    pub(crate) fn start_master(&mut self, build: Build<'_>) {
        self.master.use_programs(build);
        self.master.start();
        assert_eq!(self.master.log().events("store_set_aside"), []);
    }

    fn assert_still_known(&self, rows: &[SlaveRow], told: &[Told]) {
        let now = self.rows();
        for row in rows {
            let now = now.iter().find(|now| now.name == row.name);
            let now = now.unwrap_or_else(|| panic!("{} is forgotten", row.name));
            let kept = now.id == row.id && now.applied >= row.applied && now.gaps == row.gaps;
            assert!(kept, "{row:#?} became {now:#?}");
        }
        let events = events(&self.master.api());
        assert_eq!(events.get(..told.len()), Some(told), "history");
    }

    /// Ends the slaves and starts them as `build` on the same folders. While the master is away, what they
    /// have spooled for it is left to their successors.
    pub(crate) fn replace_slaves(&mut self, build: Build<'_>, master_is_up: bool) {
        for reporter in &mut self.reporters {
            let master = master_is_up.then_some(&self.master);
            reporter.end(master);
            reporter.slave.use_programs(build);
            reporter.begin();
        }
        if master_is_up {
            self.let_report();
        }
    }

    /// Ends the slaves, and asserts that each report was applied, once and in its turn.
    pub(crate) fn settle(&mut self) {
        for reporter in &mut self.reporters {
            reporter.end(Some(&self.master));
            reporter.assert_settled(&self.master);
        }
    }
}

impl Reporter {
    fn start(slave: Slave) -> Self {
        let mut reporter = Self {
            slave,
            stream: String::new(),
            ended: BTreeMap::new(),
        };
        reporter.begin();
        reporter
    }

    fn begin(&mut self) {
        self.slave.start();
        let ready = self.slave.wait_for_event("slave_ready");
        ready.text("stream").clone_into(&mut self.stream);
        assert_eq!(self.slave.log().events("spool_set_aside"), []);
    }

    /// Ends the slave as planned, with its master there or not, and notes how far its stream has come.
    fn end(&mut self, master: Option<&Master>) {
        if master.is_none() {
            self.slave.wait_for_spooled(3);
        }
        let status = self.slave.terminate();
        assert_eq!(status.code(), Some(0), "{}", self.slave.stderr());
        let log = self.slave.log();
        for event in ["spool_entry_damaged", "stream_resync"] {
            assert_eq!(log.events(event), [], "{}", self.slave.name());
        }
        // A master that ends may cut a message short, for a moment.
        for refused in log.events("session_refused") {
            assert_eq!(refused.text("code"), "ERROR_CODE_TIMEOUT", "{refused:?}");
        }
        let stream = std::mem::take(&mut self.stream);
        let left = spooled(&self.slave.state()).get(&stream).copied();
        let applied = master.map(|master| {
            let is_gone = |row: &SlaveRow| row.presence == Presence::Left;
            let row = master.wait_for_row(self.slave.name(), "gone", is_gone);
            assert_eq!(row.stream, stream);
            row.sequence
        });
        // A report that was made in the very end may be left for the next process.
        let last = left.max(applied).expect("nothing was ever sent or spooled");
        self.ended.insert(stream, last);
    }

    fn assert_settled(&self, master: &Master) {
        let name = self.slave.name();
        let api = master.api();
        let row = api.slave(name).expect("a row").row;
        let made: u64 = self.ended.values().sum();
        let left: u32 = self.slave.spooled().expect("the spool");
        assert_eq!(
            (row.applied + u64::from(left), row.gaps),
            (made, 0),
            "lost or doubled: {row:#?} {:?}, {left} left",
            self.ended
        );
        let events = api.events().expect("the events");
        let of_slave = |event: &&EventRow| event.slave.as_deref() == Some(name);
        for event in events.iter().filter(of_slave) {
            let to = event.to.as_deref();
            let is_blamed =
                event.kind == EventKind::Presence && matches!(to, Some("late" | "missing"));
            let is_odd = matches!(
                event.kind,
                EventKind::Conflict | EventKind::Resync | EventKind::Gap
            );
            assert!(!is_blamed && !is_odd, "{event:#?}");
        }
        let turns = |replayed: bool| {
            let turns = events.iter().filter(of_slave).filter(move |event| {
                event.subject.as_deref() == Some(TURNS) && event.replayed == replayed
            });
            turns.filter_map(|event| event.text.strip_prefix("turn ")?.parse::<u64>().ok())
        };
        // The newest report runs ahead of its backlog, and is told ahead of it.
        for lane in [false, true] {
            let lane: Vec<_> = turns(lane).collect();
            assert!(
                lane.is_sorted_by(|one, next| one < next),
                "{name}: {lane:?}"
            );
        }
        assert!(turns(false).count() >= 3, "{name} has told too little");
        assert_reports_in_order(&api, name);
    }
}

/// The newest reports, as far as the master keeps them: early builds kept none.
fn assert_reports_in_order(api: &Api, name: &str) {
    let path = format!("/v1/slaves/{name}/history");
    let (status, body) = api.get(&path).expect("an answer");
    if status == 404 && body.contains("no such path") {
        return;
    }
    assert_eq!(status, 200, "{body}");
    let history: SlaveHistory = serde_json::from_str(&body).expect("a history");
    assert!(!history.reports.is_empty(), "{name} has no reports");
    for pair in history.reports.windows(2) {
        let [one, next] = pair else { unreachable!() };
        let follows = next.stream != one.stream || next.sequence == one.sequence + 1;
        assert!(follows, "{name}: {} after {}", next.sequence, one.sequence);
    }
}

/// The last sequence of each stream in a spool that nobody uses.
fn spooled(state: &Path) -> BTreeMap<String, u64> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(state.join("spool.db"), flags).expect("a spool");
    let mut read = database
        .prepare("SELECT stream, max(last) FROM entries GROUP BY stream")
        .expect("the table of entries");
    let rows = read.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)));
    let rows = rows.expect("the entries").map(|row| row.expect("a row"));
    rows.map(|(stream, last)| (format!("{stream:016x}"), last.cast_unsigned()))
        .collect()
}

/// The layout of a database: what SQLite's `user_version` says.
pub(crate) fn layout(database: &Path) -> i64 {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(database, flags).expect("a database");
    let read = database.pragma_query_value(None, "user_version", |row| row.get(0));
    read.expect("a layout")
}

/// The bytes of a database and of its log.
pub(crate) fn bytes(database: &Path) -> [Vec<u8>; 2] {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    [database, Path::new(&log)].map(|path| std::fs::read(path).unwrap_or_default())
}
