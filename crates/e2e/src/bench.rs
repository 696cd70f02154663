//! Runs rollcall-bench, the fleet of simulated slaves.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::binaries;
use crate::daemon::Daemon;

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
