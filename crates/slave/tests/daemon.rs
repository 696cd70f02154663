//! The slave's executable by itself: configuration, signals, exit codes. No master is there.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_rollcall-slave");

/// Everything that is waited for has to come within this.
const PATIENCE: Duration = Duration::from_secs(20);

/// A state folder and a configuration of its own.
struct Host(TempDir);

impl Host {
    fn new(extra: &str) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.configure(extra);
        host
    }

    fn configure(&self, extra: &str) {
        self.write(extra, "");
    }

    fn configure_connection(&self, connection: &str) {
        self.write("", connection);
    }

    /// Port 9 is the discard service: nobody is there.
    fn write(&self, extra: &str, connection: &str) {
        let state = self.0.path().join("state");
        let text = format!(
            "name = \"host\"\ninterval = \"100ms\"\n{extra}\n[state]\ndirectory = {state:?}\n[connection]\nmasters = [\"127.0.0.1:9\"]\n{connection}\n"
        );
        fs::write(self.config(), text).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("slave.toml")
    }

    fn start(&self) -> Slave {
        let mut child = Command::new(BINARY)
            .arg("--config")
            .arg(self.config())
            .args(["--log-format", "json", "--log-level", "debug"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stdout.take().unwrap());
        let (line, lines) = channel();
        // Ends with the log, or when the test no longer reads.
        thread::spawn(move || {
            log.lines()
                .map_while(Result::ok)
                .try_for_each(|text| line.send(text))
        });
        Slave { child, lines }
    }
}

struct Slave {
    child: Child,
    lines: Receiver<String>,
}

impl Slave {
    /// Reads the log up to this event.
    fn until(&self, event: &str) -> String {
        let wanted = format!("\"event\":\"{event}\"");
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line.contains(&wanted) => return line,
                Ok(_) => {}
                Err(error) => panic!("no {event} in the log: {error}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    fn stop(mut self) {
        self.signal(Signal::TERM);
        self.until("slave_stopped");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Slave {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn check(config: &Path) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("--check").arg("--config").arg(config);
    command.output().unwrap()
}

#[test]
fn check_prints_the_resolved_configuration() {
    let host = Host::new("");
    let output = check(&host.config());
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "name = \"host\"",
        "interval = \"100ms\"",
        "bytes_max = \"64 MiB\"",
        "[probe.load]",
    ] {
        assert!(text.contains(line), "{line} of {text}");
    }
}

#[test]
fn all_faults_of_a_file_are_told_with_their_place() {
    let host = Host::new("");
    fs::write(
        host.config(),
        "intervall = \"10s\"\n[spool]\nbytes_max = 1\nage_max = \"soon\"\n[connection]\nmode = \"pool\"\n",
    )
    .unwrap();
    let output = check(&host.config());
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    for part in [
        "slave.toml:1:1",
        "\"interval\"",
        "spool.bytes_max",
        "spool.age_max",
        "connection.mode",
    ] {
        assert!(text.contains(part), "{part} of {text}");
    }
}

#[test]
fn a_second_slave_on_the_same_state_is_told_who_has_it() {
    let host = Host::new("");
    let first = host.start();
    first.until("slave_ready");
    let second = Command::new(BINARY)
        .arg("--config")
        .arg(host.config())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(74));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(
        text.contains(&format!("pid {}", first.child.id())),
        "{text}"
    );
    first.stop();
}

#[test]
fn what_was_not_acked_is_there_after_a_stop_and_after_a_kill() {
    let host = Host::new("");
    host.configure_connection("mode = \"per-message\"");
    let mut slave = host.start();
    // In this mode nothing is connected to before there is a report to send.
    slave.until("master_unreachable");
    assert_ne!(rows(&host.0.path().join("state/spool.db")), 0);
    slave.signal(Signal::KILL);
    slave.child.wait().unwrap();
    let slave = host.start();
    let ready = slave.until("slave_ready");
    assert!(!ready.contains("\"backlog\":0"), "{ready}");
    slave.signal(Signal::TERM);
    slave.until("backlog_kept");
    slave.stop();
}

fn rows(database: &Path) -> i64 {
    let connection = rusqlite::Connection::open(database).unwrap();
    let count = connection.query_row("SELECT count(*) FROM entries", [], |row| row.get(0));
    count.unwrap_or(0)
}

#[test]
fn signals_reload_and_change_the_log_level() {
    let host = Host::new("");
    let slave = host.start();
    slave.until("slave_ready");
    slave.signal(Signal::USR1);
    slave.until("log_level_changed");
    host.configure("[spool]\nbytes_max = \"1 MiB\"\n[log]\nformat = \"pretty\"");
    slave.signal(Signal::HUP);
    let line = slave.until("reloaded_in_part");
    assert!(line.contains("\"keys\":\"log.format\""), "{line}");
    host.configure("nonsense = 1");
    slave.signal(Signal::HUP);
    let line = slave.until("reload_failed");
    assert!(line.contains("nonsense"), "{line}");
    slave.stop();
}

#[test]
fn a_damaged_spool_does_not_stop_the_start() {
    let host = Host::new("");
    let slave = host.start();
    slave.until("slave_ready");
    slave.stop();
    let database = host.0.path().join("state/spool.db");
    fs::write(&database, "garbage".repeat(10_000)).unwrap();
    let slave = host.start();
    let line = slave.until("spool_set_aside");
    assert!(line.contains("spool.db.damaged-"), "{line}");
    slave.until("slave_ready");
    slave.stop();
}
