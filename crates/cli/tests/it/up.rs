//! `rollcall up` with daemons made of shell scripts, whose HTTP side is the test's.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rollcall_os::clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::fake::{self, FakeMaster, ok, slave, slaves, stream, text};

const PATIENCE: Duration = Duration::from_secs(20);
/// A daemon that says in `ends` that it was asked to end.
const WILLING: &str = "trap 'echo NAME >>HERE/ends; exit 0' TERM; echo $$ >HERE/NAME.pid; while :; do sleep 0.05; done";

/// A folder with the program under test and two daemons beside it.
struct Trial {
    scratch: tempfile::TempDir,
}

impl Trial {
    fn new(master: &str, slave: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let trial = Self { scratch };
        install(
            Path::new(env!("CARGO_BIN_EXE_rollcall")),
            &trial.file("rollcall"),
        );
        for (name, script) in [("master", master), ("slave", slave)] {
            let here = trial.scratch.path().to_str().unwrap();
            let script = script.replace("HERE", here).replace("NAME", name);
            let source = trial.file(&format!("{name}.sh"));
            fs::write(&source, format!("#!/bin/sh\n{script}\n")).unwrap();
            install(&source, &trial.file(&format!("rollcall-{name}")));
        }
        trial
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.file("rollcall"));
        command
            .args(["up", "--free-ports", "--dir"])
            .arg(self.file("dir"))
            .args(arguments)
            .env_remove("ROLLCALL_MASTER")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts `up`, plays the master's HTTP side, and waits until both are up.
    fn up(&self, arguments: &[&str]) -> Up {
        let child = self.command(arguments).spawn().unwrap();
        let mut up = Up {
            lines: Vec::new(),
            stdout: None,
            child,
        };
        up.stdout = up.child.stdout.take().map(BufReader::new);
        let http = "HTTP on http://";
        up.wait_for_line(http);
        let (_, address) = up.lines.last().unwrap().split_once(http).unwrap();
        let address: SocketAddr = address.trim().parse().unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let asks = Arc::clone(&asked);
        // The roll is that of an earlier run at first.
        let last_seen_ms = move || match asks.fetch_add(1, Ordering::SeqCst) {
            0..3 => 1,
            _ => clock::wall_ms(),
        };
        FakeMaster::serve(TcpListener::bind(address).unwrap(), move |request| {
            let path = request.target.split('?').next();
            match path {
                Some("/readyz") => ok(r#"{"ready":true,"reason":null}"#),
                Some("/v1/slaves") => ok(&slaves(&[slave("web-1", "up", last_seen_ms())])),
                _ => stream(&fake::message(1, "hello")),
            }
        });
        up.wait_for_line("up in ");
        assert!(
            asked.load(Ordering::SeqCst) > 3,
            "up by an old roll: {:#?}",
            up.lines
        );
        self.wait_for_pids();
        up
    }

    /// Until both daemons have written down their pids, after which they can be asked to end.
    fn wait_for_pids(&self) {
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        let written = inotify::WatchFlags::CLOSE_WRITE;
        inotify::add_watch(&changes, self.scratch.path(), written).unwrap();
        while self.pid("master").is_none() || self.pid("slave").is_none() {
            wait_for("both pids", &changes);
            rustix::io::read(&changes, &mut [0; 4096]).unwrap();
        }
    }

    fn pid(&self, name: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.file(&format!("{name}.pid"))).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    /// In which order the daemons were asked to end.
    fn ends(&self) -> Vec<String> {
        let text = fs::read_to_string(self.file("ends")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

struct Up {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    lines: Vec<String>,
}

impl Up {
    fn wait_for_line(&mut self, part: &str) {
        while !self.lines.iter().any(|line| line.contains(part)) {
            let mut line = String::new();
            let length = self.stdout.as_mut().unwrap().read_line(&mut line).unwrap();
            assert!(length > 0, "no {part:?} in {:#?}", self.lines);
            self.lines.push(line);
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(mut self) -> (ExitStatus, String) {
        let stdout = self.stdout.take().unwrap();
        let reader =
            thread::spawn(move || stdout.lines().map_while(Result::ok).collect::<Vec<_>>());
        let out = self.child.wait_with_output().unwrap();
        let mut all = self.lines.concat();
        all.push_str(&reader.join().unwrap().join("\n"));
        all.push_str(&text(&out.stderr));
        (out.status, all)
    }
}

/// Copies a program. Another process does it: a descriptor that is open for writing here would be
/// inherited by what another test starts meanwhile, and the copy could not be run ("text file busy").
fn install(from: &Path, to: &Path) {
    let mut install = Command::new("install");
    let status = install.args(["-m", "755"]).args([from, to]).status();
    assert!(status.unwrap().success());
}

/// Until the descriptor can be read.
fn wait_for(what: &str, descriptor: &OwnedFd) {
    let limit = Timespec::try_from(PATIENCE).unwrap();
    let mut descriptors = [PollFd::new(descriptor, PollFlags::IN)];
    assert_eq!(
        poll(&mut descriptors, Some(&limit)),
        Ok(1),
        "still no {what}"
    );
}

#[test]
fn both_are_ended_in_order_by_each_signal() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let trial = Trial::new(WILLING, WILLING);
        let mut up = trial.up(&[]);
        up.wait_for_line("hello");
        up.wait_for_line("web-1  up");
        up.signal(signal);
        let (status, output) = up.end();
        assert!(status.success(), "{signal:?}: {output}");
        assert_eq!(trial.ends(), ["slave", "master"], "{signal:?}: {output}");
    }
}

#[test]
fn the_time_may_be_set() {
    let trial = Trial::new(WILLING, WILLING);
    let (status, output) = trial.up(&["--for", "100ms"]).end();
    assert!(status.success(), "{output}");
    assert_eq!(trial.ends(), ["slave", "master"], "{output}");
}

#[test]
fn a_daemon_that_dies_ends_the_other_and_shows_its_log() {
    let trial = Trial::new(WILLING, &format!("echo disk on fire; {WILLING}"));
    let up = trial.up(&[]);
    kill_process(trial.pid("slave").unwrap(), Signal::KILL).unwrap();
    let (status, output) = up.end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(
        output.contains("the slave was ended by signal 9"),
        "{output}"
    );
    assert!(output.contains("disk on fire"), "{output}");
    assert_eq!(trial.ends(), ["master"], "{output}");
}

#[test]
fn a_daemon_that_ends_badly_when_asked_to_is_told() {
    let bad = WILLING.replace("exit 0", "echo spool torn; exit 74");
    let trial = Trial::new(WILLING, &bad);
    let up = trial.up(&[]);
    up.signal(Signal::INT);
    let (status, output) = up.end();
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(output.contains("the slave ended with code 74"), "{output}");
    assert!(output.contains("spool torn"), "{output}");
    assert_eq!(trial.ends(), ["slave", "master"], "{output}");
}

#[test]
fn a_master_that_does_not_start_is_told_with_its_log() {
    let trial = Trial::new("echo 'bad key' >&2; exit 78", WILLING);
    let out = trial.command(&[]).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    let stderr = text(&out.stderr);
    assert!(stderr.contains("the master ended with code 78"), "{stderr}");
    assert!(stderr.contains("bad key"), "{stderr}");
    assert!(trial.ends().is_empty() && trial.pid("slave").is_none());
}

#[test]
fn a_port_that_was_lost_meanwhile_is_replaced() {
    let script = format!("test -e HERE/tried || {{ touch HERE/tried; exit 69; }}; {WILLING}");
    let trial = Trial::new(&script, WILLING);
    let mut child = trial.command(&[]).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
    let told = stdout.find(|line| line.as_ref().unwrap().contains("trying again"));
    assert!(told.is_some());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

#[test]
fn the_daemons_do_not_outlive_a_killed_up() {
    let trial = Trial::new(WILLING, WILLING);
    let up = trial.up(&[]);
    let daemons = ["slave", "master"]
        .map(|name| pidfd_open(trial.pid(name).unwrap(), PidfdFlags::empty()).unwrap());
    up.signal(Signal::KILL);
    let (status, output) = up.end();
    assert!(!status.success(), "{output}");
    for daemon in &daemons {
        wait_for("end of a daemon", daemon);
    }
    // A shell that is just forking may run its trap in both processes.
    let ends: BTreeSet<_> = trial.ends().into_iter().collect();
    assert_eq!(ends.len(), 2, "{ends:?}");
}

#[test]
fn one_folder_is_for_one() {
    let trial = Trial::new(WILLING, WILLING);
    let up = trial.up(&[]);
    let second = trial.command(&[]).output().unwrap();
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let stderr = text(&second.stderr);
    assert!(
        stderr.contains(&format!("(pid {})", up.child.id())),
        "{stderr}"
    );
    assert!(stderr.contains("--dir"), "{stderr}");
    up.signal(Signal::INT);
    assert!(up.end().0.success());
}

#[test]
fn absent_daemons_are_named_with_the_remedy() {
    let trial = Trial::new(WILLING, WILLING);
    fs::remove_file(trial.file("rollcall-slave")).unwrap();
    let out = trial.command(&[]).output().unwrap();
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    let stderr = text(&out.stderr);
    assert!(
        stderr.contains("rollcall-slave") && stderr.contains("cargo build"),
        "{stderr}"
    );
}
