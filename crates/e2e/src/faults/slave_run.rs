//! A slave at a collector, from a given state folder, through a fault, to the check after it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, ensure};
use rusqlite::Connection;
use rustix::process::Signal;
use tempfile::TempDir;
use toml::{Table, Value};

use super::End;
use super::collector::{Collector, Record};
use super::strace::{self, Fault, Trace};
use super::{audit, bytes};
use crate::binaries;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::ports::Reservation;
use crate::wait::{PATIENCE, poll_until, wait_until};

/// Reports of its own stream that a slave sends before it is stopped.
const OWN_REPORTS: u64 = 10;
/// Slow enough that under strace, on a busy machine, a run has nearly the same calls each time.
const INTERVAL: &str = "40ms";

/// A slave and the collector that it reports to.
#[derive(Debug)]
pub struct SlaveRun {
    /// Its files.
    pub folder: TempDir,
    /// What stands in for the master.
    pub collector: Collector,
}

impl SlaveRun {
    /// One whose state folder is a copy of `state`, or new.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn new(state: Option<&Path>, mode: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let collector = Collector::start();
        if let Some(state) = state {
            bytes::copy_folder(state, &slave_state(folder.path()));
        }
        slave_config(folder.path(), collector.address(), mode, INTERVAL);
        Self { folder, collector }
    }

    /// Where its spool is.
    pub fn state(&self) -> PathBuf {
        slave_state(self.folder.path())
    }

    /// Starts it, under strace if there is something to do to it.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(&self, trace: Option<&Trace>) -> Daemon {
        let program = binaries::path(binaries::SLAVE);
        let folder = self.folder.path();
        let config = config_file(folder);
        match trace {
            Some(trace) => strace::spawn("slave", &program, &config, folder, trace),
            None => plain(&program, &config, folder),
        }
    }

    /// Runs it until it has sent all that it has and some of its own, then stops it.
    ///
    /// # Panics
    /// If it does not send, or does not end.
    pub fn to_the_end(&self, trace: &Trace) -> (Record, ExitStatus) {
        let before = self.collector.record().own;
        let mut daemon = self.start(Some(trace));
        self.let_it_send(&mut daemon, before, |_| true);
        let status = strace::insist_on_end(&mut daemon);
        (self.collector.record(), status)
    }

    /// Waits until the slave has ended, or sends reports of a stream of its own and `is_enough`.
    /// `before` is the one of its last run.
    ///
    /// # Panics
    /// If neither comes.
    #[track_caller]
    pub fn let_it_send(
        &self,
        daemon: &mut Daemon,
        before: Option<u64>,
        is_enough: impl Fn(&Record) -> bool,
    ) {
        let sent = poll_until(PATIENCE, || {
            let record = self.collector.record();
            let own = record.own.filter(|_| record.own != before);
            let own = own.is_some_and(|own| record.has(own, OWN_REPORTS));
            let ended = daemon.ended().is_some();
            (ended || (own && is_enough(&record))).then_some(())
        });
        let record = self.collector.record();
        assert!(sent.is_some(), "the slave does not send: {record:?}");
    }

    /// A run with a fault, and the check after it.
    ///
    /// # Errors
    /// If a promise is broken.
    pub fn suffer(&self, faults: &[Fault]) -> anyhow::Result<End> {
        let (record, status) = self.to_the_end(&Trace::Inject(faults.to_vec()));
        let end = End::of(status, true)
            .with_context(|| bytes::last_words(self.folder.path(), "slave"))?;
        let spooled = spooled(&self.state())?;
        for (stream, sequence) in record.reports.keys() {
            let acked = record.acked.get(stream);
            let acked = acked.is_some_and(|acked| acked >= sequence);
            let kept = spooled
                .iter()
                .any(|(of, first, last)| of == stream && (first..=last).contains(&sequence));
            ensure!(
                acked || kept,
                "LOST: {sequence} of {stream:x} was sent, not acked, and is not in the spool"
            );
        }
        self.survive(&spooled, status.code())?;
        Ok(end)
    }

    /// Starts it until it is up, as a supervisor would: a check plugin that was about to be started
    /// when the slave was killed holds the folder's lock for a moment more.
    fn restart(&self) -> Daemon {
        wait_until(PATIENCE, "the slave to be up again", || {
            let mut daemon = self.start(None);
            wait_until(PATIENCE, "the slave to be ready or to end", || {
                let ready = !daemon.log().events("slave_ready").is_empty();
                (ready || daemon.ended().is_some()).then_some(())
            });
            let is_held = daemon.stderr().contains("is in use by");
            (!is_held).then_some(daemon)
        })
    }

    /// Starts it again, without a fault: all that is `spooled` must come, in order.
    fn survive(&self, spooled: &[(u64, u64, u64)], code: Option<i32>) -> anyhow::Result<()> {
        let folder = self.folder.path();
        let stderr = std::fs::read_to_string(folder.join("slave.err"))?;
        let silent = matches!(code, None | Some(0));
        ensure!(stderr.is_empty() == silent, "{code:?}, stderr: {stderr}");
        let before = self.collector.record().own;
        let mut daemon = self.restart();
        self.let_it_send(&mut daemon, before, |record| {
            spooled.iter().all(|(of, _, last)| record.has(*of, *last))
        });
        let status = daemon.terminate();
        ensure!(status.success(), "the survivor ended with {status}");
        let record = self.collector.record();
        ensure!(record.breaches.is_empty(), "{:?}", record.breaches);
        ensure!(record.goodbyes >= 1, "no goodbye");
        let log = std::fs::read_to_string(folder.join("slave.log"))?;
        for bad in ["\"panic\"", "spool_set_aside", "spool_entry_damaged"] {
            ensure!(!log.contains(bad), "{bad} in the log");
        }
        audit::integrity(&self.state().join("spool.db"))
    }
}

fn plain(program: &Path, config: &Path, folder: &Path) -> Daemon {
    let arguments = [
        "--config".as_ref(),
        config.as_os_str(),
        "--log-format".as_ref(),
        "json".as_ref(),
    ];
    Daemon::spawn("slave", program, arguments, folder)
}

fn slave_state(folder: &Path) -> PathBuf {
    folder.join("slave-state")
}

fn config_file(folder: &Path) -> PathBuf {
    folder.join("slave.toml")
}

/// A slave with large reports, a small spool, and nothing of this host in them.
fn slave_config(folder: &Path, master: SocketAddr, mode: &str, interval: &str) {
    let state = slave_state(folder).to_string_lossy().into_owned();
    let mut config = Config::default();
    config
        .set("name", "doomed")
        .set("interval", interval)
        .set("connection.masters", vec![master.to_string()])
        .set("connection.mode", mode)
        .set("connection.retry_first", "10ms")
        .set("connection.retry_longest", "1s")
        .set("state.directory", state)
        .set("spool.bytes_max", "64 KiB");
    let probes = "load cpu memory swap disk network uptime processes systemd";
    for probe in probes.split(' ') {
        config.set(&format!("probe.{probe}.enable"), false);
    }
    let command: Vec<Value> = vec!["/bin/echo".into(), "x".repeat(900).into()];
    let check = Table::from_iter([
        ("name".to_owned(), Value::from("bulk")),
        ("command".to_owned(), command.into()),
        ("interval".to_owned(), "1h".into()),
    ]);
    config.push("check", check);
    config.write(&config_file(folder));
}

/// What the spool in `state` of a slave that does not run holds: stream, first and last of each
/// entry. A copy is read: SQLite would recover the original.
///
/// # Errors
/// If it can't be read.
pub fn spooled(state: &Path) -> anyhow::Result<Vec<(u64, u64, u64)>> {
    if !state.exists() {
        return Ok(Vec::new());
    }
    let copy = tempfile::tempdir()?;
    bytes::copy_folder(state, copy.path());
    let database = copy.path().join("spool.db");
    if !database.exists() {
        return Ok(Vec::new());
    }
    let connection = Connection::open(database)?;
    let has_tables: bool = connection.query_row(
        "SELECT count(*) > 0 FROM sqlite_schema WHERE name = 'entries'",
        [],
        |row| row.get(0),
    )?;
    if !has_tables {
        return Ok(Vec::new());
    }
    let mut statement =
        connection.prepare("SELECT stream, first, last FROM entries ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        let sequence = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
        Ok((sequence(0)?, sequence(1)?, sequence(2)?))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The state folder of a slave that found no master until its spool was full, and was ended by
/// `signal`.
///
/// # Panics
/// If that can't be had.
pub fn outage(signal: Signal) -> TempDir {
    let state = tempfile::tempdir().expect("a folder");
    let folder = tempfile::tempdir().expect("a folder");
    let nobody = Reservation::new();
    slave_config(folder.path(), nobody.address(), "pooled", "10ms");
    let program = binaries::path(binaries::SLAVE);
    let mut daemon = plain(&program, &config_file(folder.path()), folder.path());
    daemon.wait_for_event("spool_gave_way");
    daemon.signal(signal);
    daemon.wait(PATIENCE);
    bytes::copy_folder(&slave_state(folder.path()), state.path());
    state
}
