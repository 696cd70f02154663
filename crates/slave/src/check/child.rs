//! One child process with bounds: its own process group, a timeout, capped output.
//!
//! ```text
//!   start ──> running ── leader exits ───────────────────────> SIGKILL to the group ──> reaped
//!                │                                                   ^
//!                └─ timeout or cancel ──> SIGTERM to the group ── exit or grace
//! ```
//!
//! The leader's exit is seen without reaping it, and the group is killed before it is reaped: as
//! long as the leader is a zombie its number can't be given away, so the signal can't hit a stranger.
//! A process that leaves the group (setsid(2)) is out of reach; systemd's cgroup ends it with the
//! agent.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::group::Group;
use super::output::Drain;

/// How long a group may take to end by itself after SIGTERM.
pub(crate) const TERM_GRACE: Duration = Duration::from_secs(2);
/// How long a process may take to vanish after SIGKILL, or to come into being when it is no longer
/// wanted, before it counts as stuck in the kernel.
const KILL_WAIT: Duration = Duration::from_secs(1);
/// How long to read on when the group is dead: a process that left the group may hold the pipe.
const DRAIN_WAIT: Duration = Duration::from_millis(200);

/// How much later than its children the agent may learn that it is to stop.
const STOP_WAIT: Duration = Duration::from_secs(1);
/// The one variable that a child has of the agent: where systemd has put the passwords that are meant for it
/// (systemd.exec(5), LoadCredential=).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Executable and arguments; no shell is involved. Not empty.
    pub(crate) argv: Vec<String>,
    /// The environment of the child; of the agent's own only [`CREDENTIALS`] is added.
    pub(crate) environment: BTreeMap<String, String>,
    /// The most it may take.
    pub(crate) timeout: Duration,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The leader ended by itself.
    Exited(ExitStatus),
    /// It took longer than this, and its group was ended.
    TimedOut(Duration),
    /// It could not be started or watched.
    Failed(io::Error),
    /// Somebody wanted the run to stop: no result.
    Cancelled,
}

/// A run and what it wrote, capped at [`super::output::BYTES_MAX`] each.
#[derive(Debug)]
pub(crate) struct Run {
    /// How it ended.
    pub(crate) ended: Ended,
    /// What it wrote to standard output.
    pub(crate) stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub(crate) stderr: Vec<u8>,
}

impl Run {
    fn silent(ended: Ended) -> Self {
        Self {
            ended,
            stdout: Vec::new(),
            stderr: Vec::new(),
        }
    }
}

/// A process that outlives SIGKILL, because the kernel holds it (a dead NFS server, a dying disk).
#[derive(Debug)]
pub(crate) enum Remains {
    /// It was not even started: exec itself hangs.
    Starting(oneshot::Receiver<io::Result<Started>>),
    /// It does not end.
    Running(Group, Signals),
}

impl Remains {
    /// Waits until it is gone. Cancel safe.
    pub(crate) async fn gone(&mut self) {
        match self {
            // A child that comes up after all is killed when this value is dropped.
            Self::Starting(started) => drop(started.await),
            Self::Running(group, exits) => group.exited(exits).await,
        }
    }
}

/// Runs `program` to its end, its timeout or `cancel`, whichever is first. When this returns, its
/// whole group is gone, save for [`Remains`]. If the future is dropped, the group is killed.
pub(crate) async fn run(program: &Program, cancel: &CancellationToken) -> (Run, Option<Remains>) {
    if cancel.is_cancelled() {
        return (Run::silent(Ended::Cancelled), None);
    }
    let deadline = Instant::now() + program.timeout;
    // Before the start, so that no exit is missed.
    let exits = match signal(SignalKind::child()) {
        Ok(exits) => exits,
        Err(error) => return (Run::silent(Ended::Failed(error)), None),
    };
    match start_until(program, deadline, cancel).await {
        Ok(started) => watch(program, started, exits, deadline, cancel).await,
        Err((ended, remains)) => (Run::silent(ended), remains),
    }
}

/// The first half of [`run`]: to a started child, or to why there is none.
async fn start_until(
    program: &Program,
    deadline: Instant,
    cancel: &CancellationToken,
) -> Result<Started, (Ended, Option<Remains>)> {
    let mut starting = start(program);
    let in_time = tokio::select! {
        biased;
        started = &mut starting => Some(started),
        () = cancel.cancelled() => None,
        () = sleep_until(deadline) => None,
    };
    let started = match in_time {
        Some(started) => started,
        // It may run already, and is to be ended like any other.
        None => match timeout(KILL_WAIT, &mut starting).await {
            Ok(started) => started,
            Err(_) if cancel.is_cancelled() => {
                return Err((Ended::Cancelled, Some(Remains::Starting(starting))));
            }
            Err(_) => {
                let ended = Ended::TimedOut(program.timeout);
                return Err((ended, Some(Remains::Starting(starting))));
            }
        },
    };
    match started {
        Ok(Ok(started)) => Ok(started),
        Ok(Err(error)) => Err((Ended::Failed(error), None)),
        Err(_) => Err((Ended::Failed(io::Error::other("its thread ended")), None)),
    }
}

/// The second half of [`run`]: a started child to its end.
async fn watch(
    program: &Program,
    started: Started,
    mut exits: Signals,
    deadline: Instant,
    cancel: &CancellationToken,
) -> (Run, Option<Remains>) {
    let mut group = started.group;
    let mut drain = match Drain::new(started.stdout, started.stderr) {
        Ok(drain) => drain,
        Err(error) => return (Run::silent(Ended::Failed(error)), None),
    };
    let early = tokio::select! {
        biased;
        () = group.exited(&mut exits) => None,
        () = cancel.cancelled() => Some(Ended::Cancelled),
        () = sleep_until(deadline) => Some(Ended::TimedOut(program.timeout)),
        never = drain.forever() => match never {},
    };
    if early.is_some() {
        group.signal(Signal::TERM);
        wait(&mut group, &mut exits, &mut drain, TERM_GRACE).await;
    }
    group.signal(Signal::KILL);
    wait(&mut group, &mut exits, &mut drain, KILL_WAIT).await;
    let _ = timeout(DRAIN_WAIT, drain.read_to_end()).await;
    let (stdout, stderr) = drain.into_output();
    let (ended, remains) = match (group.reap(), early) {
        (Ok(Some(status)), None) => (by_itself_or_by_stop(status, cancel).await, None),
        (Err(error), None) => (Ended::Failed(error), None),
        (Ok(Some(_)) | Err(_), Some(early)) => (early, None),
        (Ok(None), early) => (
            early.unwrap_or(Ended::TimedOut(program.timeout)),
            Some(Remains::Running(group, exits)),
        ),
    };
    (
        Run {
            ended,
            stdout,
            stderr,
        },
        remains,
    )
}

/// Whoever stops the agent may send the signal to its children at the same time (systemd does so to
/// all of a unit): an exit by such a signal waits a moment for the agent's own word.
async fn by_itself_or_by_stop(status: ExitStatus, cancel: &CancellationToken) -> Ended {
    let stops = [Signal::HUP, Signal::INT, Signal::TERM].map(|signal| Some(signal.as_raw()));
    if stops.contains(&status.signal()) && timeout(STOP_WAIT, cancel.cancelled()).await.is_ok() {
        return Ended::Cancelled;
    }
    Ended::Exited(status)
}

/// Waits for the leader's exit, for `time` at most, while the pipes are drained.
async fn wait(group: &mut Group, exits: &mut Signals, drain: &mut Drain, time: Duration) {
    tokio::select! {
        biased;
        () = group.exited(exits) => {}
        () = sleep(time) => {}
        never = drain.forever() => match never {},
    }
}

/// A child that has just been started.
#[derive(Debug)]
pub(crate) struct Started {
    group: Group,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Starts the child on a thread of its own: exec reads the program's file, which may hang (a dead
/// NFS server), and must not take the agent with it. If nobody waits for the answer any more, the
/// child is killed.
fn start(program: &Program) -> oneshot::Receiver<io::Result<Started>> {
    let (answer, receiver) = oneshot::channel();
    let program = program.clone();
    let thread = std::thread::Builder::new().name("check-start".to_owned());
    let spawned = thread.spawn(move || {
        // An answer that nobody takes comes back and is dropped, and the group with it.
        drop(answer.send(spawn(&program)));
    });
    match spawned {
        Ok(_) => receiver,
        Err(error) => {
            let (answer, receiver) = oneshot::channel();
            drop(answer.send(Err(error)));
            receiver
        }
    }
}

fn spawn(program: &Program) -> io::Result<Started> {
    let (executable, arguments) = program
        .argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
    let credentials = std::env::var_os(CREDENTIALS).map(|folder| (CREDENTIALS, folder));
    let mut child = Command::new(executable)
        .args(arguments)
        .env_clear()
        .envs(credentials)
        .envs(&program.environment)
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let group = Group::new(child);
    match (stdout, stderr) {
        (Some(stdout), Some(stderr)) => Ok(Started {
            group,
            stdout: stdout.into(),
            stderr: stderr.into(),
        }),
        _ => Err(io::Error::other("the child has no pipes")),
    }
}

#[cfg(test)]
pub(crate) mod tests;
