//! Runs rollcall-bench, the fleet of simulated slaves.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollcall_protocol::api::SlaveRow;
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;

use crate::binaries;
use crate::daemon::Daemon;
use crate::master::Master;
use crate::wait::{PATIENCE, poll_until};

/// A run that goes on. Dropping it kills it.
#[derive(Debug)]
pub struct Bench {
    daemon: Daemon,
    ledger: PathBuf,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it printed with `--json`.
    pub result: Value,
    /// What each slave made and had acked.
    pub ledger: Vec<LedgerLine>,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// One simulated slave at the end of a run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct LedgerLine {
    /// Its name.
    pub name: String,
    /// Its id: 32 hexadecimal digits.
    pub id: String,
    /// Its newest stream: 16 hexadecimal digits.
    pub stream: String,
    /// Reports made, over all streams.
    pub sent: u64,
    /// Highest acked sequence of the newest stream.
    pub acked: u64,
    /// Over all streams, each report once.
    pub distinct_reports_acked: u64,
}

impl Bench {
    /// Starts a run against `master`.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn spawn(folder: &Path, master: SocketAddr, arguments: &[&str]) -> Self {
        let ledger = folder.join("bench.ledger");
        let master = master.to_string();
        let path = ledger.to_string_lossy();
        let fixed = ["--master", &master, "--json", "--ledger", &path];
        let arguments = fixed.iter().chain(arguments);
        let program = binaries::path(binaries::BENCH);
        Self {
            daemon: Daemon::spawn("bench", &program, arguments, folder),
            ledger,
        }
    }

    /// Whether the run has come to its end.
    pub fn has_ended(&mut self) -> bool {
        self.daemon.ended().is_some()
    }

    /// Has the run make no more reports: it ends when all are acked.
    ///
    /// # Panics
    /// If it can't be told.
    #[track_caller]
    pub fn stop(&self) {
        self.daemon.signal(Signal::INT);
    }

    /// Waits for the end of the run.
    ///
    /// # Panics
    /// If it takes longer than `limit`.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Outcome {
        let status = self.daemon.wait(limit);
        let ledger = fs::read_to_string(&self.ledger).unwrap_or_default();
        Outcome {
            code: status.code(),
            result: serde_json::from_str(&self.daemon.log().text()).unwrap_or_default(),
            ledger: ledger
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect(),
            stderr: self.daemon.stderr(),
        }
    }
}

impl Outcome {
    /// Whatever each slave has made was acked and is on the roll, once; and in order, since the master's
    /// ledger takes reports in no other way. Returns the roll.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn assert_on_the_roll_of(&self, master: &Master) -> Vec<SlaveRow> {
        let names: BTreeSet<&str> = self.ledger.iter().map(|line| &*line.name).collect();
        let mut rows = Vec::new();
        // What readers see may be a tenth of a second old.
        poll_until(PATIENCE, || {
            rows = master.api().slaves().ok()?;
            let own = rows.iter().filter(|row| names.contains(&*row.name));
            let applied: u64 = own.map(|row| row.applied).sum();
            (applied >= self.number("/acked")).then_some(())
        });
        let by_name: BTreeMap<&str, &SlaveRow> = rows.iter().map(|row| (&*row.name, row)).collect();
        assert!(!self.ledger.is_empty(), "no ledger; {}", self.stderr);
        for line in &self.ledger {
            let Some(row) = by_name.get(&*line.name) else {
                panic!("{} is not on the roll", line.name);
            };
            let on_the_roll = LedgerLine {
                name: row.name.clone(),
                id: row.id.clone(),
                stream: row.stream.clone(),
                sent: row.applied,
                acked: row.sequence,
                distinct_reports_acked: row.applied,
            };
            assert_eq!((on_the_roll, row.gaps), (line.clone(), 0), "{row:#?}");
        }
        rows
    }

    /// A number of the result, by its pointer, for example `/acked`.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn number(&self, pointer: &str) -> u64 {
        match self.result.pointer(pointer).and_then(Value::as_u64) {
            Some(number) => number,
            None => panic!("no {pointer} in {}; {}", self.result, self.stderr),
        }
    }
}
