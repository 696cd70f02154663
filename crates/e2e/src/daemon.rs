//! A running process.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::log::{Log, LogLine};
use crate::wait::{PATIENCE, poll_until, wait_until};

/// Lines of a log that a failed test shows.
const SHOWN: usize = 40;

/// A process whose standard output and error go to files. Dropping it kills it; if the test is
/// failing, the ends of both files are shown.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: Log,
    stderr: Log,
}

impl Daemon {
    /// Starts `program`. Its standard output is added to `NAME.log` in `folder`, its standard error
    /// to `NAME.err`.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn spawn<A: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        folder: &Path,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(arguments);
        Self::spawn_command(name, command, folder)
    }

    /// The same for a command that is not only a program and its arguments.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn spawn_command(name: &str, mut command: Command, folder: &Path) -> Self {
        let paths = ["log", "err"].map(|ending| folder.join(format!("{name}.{ending}")));
        let [log, stderr] = paths.each_ref().map(|path| Log::at_end_of(path));
        let mut start = || -> io::Result<Child> {
            command
                .env_remove("ROLLCALL_MASTER")
                .stdin(Stdio::null())
                .stdout(append(&paths[0])?)
                .stderr(append(&paths[1])?)
                .spawn()
        };
        match start() {
            Ok(child) => Self {
                name: name.to_owned(),
                child,
                log,
                stderr,
            },
            Err(error) => panic!("can't start {command:?}: {error}"),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log since this start.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// What it wrote to standard error since this start.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If the process has ended and was waited for.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = kill_process(Pid::from_child(&self.child), signal) {
            panic!("can't send {signal:?} to the {}: {error}", self.name);
        }
    }

    /// kill -9, without waiting for the end.
    #[track_caller]
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// If the system can't tell.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        match self.child.try_wait() {
            Ok(status) => status,
            Err(error) => panic!("can't wait for the {}: {error}", self.name),
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it goes on for longer than `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of the {}", self.name);
        wait_until(limit, &what, || self.ended())
    }

    /// Asks it to end by SIGTERM, and waits.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(PATIENCE)
    }

    /// Waits for a line with this event, and returns the first one since the start.
    ///
    /// # Panics
    /// If the process ends first, or none comes.
    #[track_caller]
    pub fn wait_for_event(&mut self, event: &str) -> LogLine {
        self.wait_for_events(event, 1).remove(0)
    }

    /// Waits until there are `count` lines with this event.
    ///
    /// # Panics
    /// If the process ends first, or they do not come.
    #[track_caller]
    pub fn wait_for_events(&mut self, event: &str, count: usize) -> Vec<LogLine> {
        let what = format!("{count} × \"{event}\" in the log of the {}", self.name);
        wait_until(PATIENCE, &what, || {
            let ended = self.ended();
            let found = self.log.events(event);
            assert!(
                ended.is_none() || found.len() >= count,
                "the {} has ended, and {what} was waited for: {ended:?} {}",
                self.name,
                self.stderr()
            );
            (found.len() >= count).then_some(found)
        })
    }

    /// Its resident memory in KiB (VmRSS, proc_pid_status(5)).
    ///
    /// # Panics
    /// If it does not run.
    pub fn rss_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let figure = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok());
        match figure {
            Some(figure) => figure,
            None => panic!("no VmRSS in {path}: has the {} ended?", self.name),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let ended = self.child.try_wait();
        if matches!(ended, Ok(None)) {
            // It is our child and not waited for, so the pid is its own.
            let _ = self.child.kill();
            poll_until(PATIENCE, || self.child.try_wait().ok().flatten());
        }
        if std::thread::panicking() {
            if let Ok(Some(status)) = ended {
                eprintln!("--- the {} had ended: {status}", self.name);
            }
            for (kind, log) in [("log", &self.log), ("stderr", &self.stderr)] {
                let text = log.text();
                let lines: Vec<_> = text.lines().collect();
                let shown = &lines[lines.len().saturating_sub(SHOWN)..];
                eprintln!("--- {kind} of the {}:\n{}", self.name, shown.join("\n"));
            }
        }
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
