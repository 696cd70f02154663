//! The keeper at work: what it waits for, and what it does then. When, [`Watch`] says.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rollcall_os::clock;
use rollcall_os::exit::{Exit, ExitError, ExitWith};
use rollcall_os::limits;
use rollcall_os::lock::{Lock, LockError};
use rollcall_os::log::LogHandle;
use rollcall_os::parking;
use rollcall_os::systemd::manager::{Held, NotifySocket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::child;
use super::watch::{Action, Next, Watch};
use crate::args::Args;
use crate::config::Config;
use crate::upgrade::Program;

/// In the state directory: held by the one keeper of that state.
const LOCK: &str = "keeper.lock";
/// In the state directory: what the master tells.
const SOCKET: &str = "keeper.sock";
/// Longest path of a socket, unix(7).
const PATH_BYTES_MAX: usize = 107;
/// Descriptors that the store takes besides shards: listeners.
const DESCRIPTORS_RESERVED: u64 = 32;
/// Descriptors that the store takes at most.
const DESCRIPTORS_MAX: u64 =
    (parking::SHARDS_MAX * parking::DESCRIPTORS_PER_SHARD) as u64 + DESCRIPTORS_RESERVED;
/// Of the descriptors that this process may have, the part that the store takes at most: there is a
/// second copy of each while a master is started.
const DESCRIPTORS_PART: u64 = 4;
/// A master that was asked to end has so much longer than it takes itself, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// The longest sleep while there is something to wait for.
const SLEEP_MAX: Duration = Duration::from_secs(5);
/// Whoever has slept so much longer was stopped, and its master perhaps, too.
const LAG_MAX: Duration = Duration::from_secs(1);
/// Messages that are taken in a row.
const MESSAGES_MAX: usize = 1000;

pub(super) struct Keeper<'a> {
    args: &'a Args,
    stop_deadline: Duration,
    log: LogHandle,
    program: Program,
    arguments: Vec<OsString>,
    signals: SignalDelivery<UnixStream, SignalOnly>,
    socket: NotifySocket,
    held: Held,
    watch: Watch,
    child: Option<Pid>,
    _lock: Lock,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(args: &'a Args, config: &Config, log: LogHandle) -> anyhow::Result<Self> {
        let program = Program::of_this_process().context("can't find out where this program is")?;
        let files = limits::raise_open_files().context("can't raise the limit of open files")?;
        let (read, write) = UnixStream::pair().context("can't make a pipe for signals")?;
        let wanted = [SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD];
        let signals = SignalDelivery::with_pipe(read, write, SignalOnly, wanted)
            .context("can't handle signals")?;
        let directory = std::path::absolute(&config.state_directory).exit_with(Exit::Store)?;
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("can't make {}", directory.display()))
            .exit_with(Exit::Store)?;
        let lock = lock(&directory).exit_with(Exit::Store)?;
        let socket = bind(directory.join(SOCKET)).exit_with(Exit::Store)?;
        Ok(Self {
            args,
            stop_deadline: config.shutdown_deadline,
            log,
            program,
            arguments: child::arguments(),
            signals,
            socket,
            held: Held::new(descriptors_max(files)),
            watch: Watch::new(clock::boot()),
            child: None,
            _lock: lock,
        })
    }

    /// Says that it begins.
    pub(super) fn tell(&self) {
        tracing::info!(
            event = "keeper_started",
            program = %self.program.path().display(),
            descriptors_max = self.held.max(),
            version = env!("CARGO_PKG_VERSION"),
            "connections outlive the master in this process"
        );
    }

    /// Returns at the end.
    pub(super) fn run(&mut self) -> anyhow::Result<()> {
        loop {
            self.sleep().context("can't wait for the master")?;
            // First of all: whether an end was asked for.
            if self.take_signals() && self.child.is_none() {
                return self.finish(None);
            }
            self.take_messages()?;
            if let Some(status) = self.reap() {
                // What it said last counts.
                self.take_messages()?;
                self.child = None;
                if let Some(end) = self.handle_end(status) {
                    return end;
                }
            }
            match self.watch.poll(clock::boot()) {
                Some(Action::Start) => self.start(),
                Some(Action::Kill(reason)) => self.kill(reason),
                None => {}
            }
        }
    }

    /// Sleeps until something has happened or is due.
    fn sleep(&mut self) -> io::Result<()> {
        let began = clock::boot();
        let left = self.watch.wake_at().map(|at| at.saturating_since(began));
        let left = left.map(|left| left.min(SLEEP_MAX));
        let limit = left.and_then(|left| Timespec::try_from(left).ok());
        let mut sources = [
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::new(self.signals.get_read(), PollFlags::IN),
        ];
        match poll(&mut sources, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let now = clock::boot();
        if left.is_some_and(|left| now.saturating_since(began + left) > LAG_MAX) {
            self.watch.handle_lag(now);
        }
        Ok(())
    }

    /// Does what signals ask for. Returns whether all is to end.
    fn take_signals(&mut self) -> bool {
        let arrived: Vec<_> = self.signals.pending().collect();
        for signal in arrived {
            match signal {
                SIGTERM => self.stop("SIGTERM"),
                SIGINT => self.stop("SIGINT"),
                SIGHUP => self.pass_on(Signal::HUP),
                SIGUSR2 => self.pass_on(Signal::USR2),
                SIGUSR1 => {
                    self.log.toggle_debug();
                    self.pass_on(Signal::USR1);
                }
                // SIGCHLD only wakes.
                _ => {}
            }
        }
        self.watch.is_stopping()
    }

    /// Whatever the keeper is asked by, it is for good: the master is restarted by signals to itself.
    fn stop(&mut self, signal: &'static str) {
        if self.watch.is_stopping() {
            return;
        }
        tracing::info!(
            event = "keeper_stopping",
            signal,
            "the master is to end for good"
        );
        // It may have been changed by a reload.
        if let Ok(config) = Config::load(self.args.config.as_deref()) {
            self.stop_deadline = config.shutdown_deadline;
        }
        let by = clock::boot() + self.stop_deadline + STOP_GRACE;
        if self.watch.handle_stop(by) {
            self.send(Signal::INT);
        }
    }

    fn pass_on(&mut self, signal: Signal) {
        if self.watch.handle_signal(signal) {
            self.send(signal);
        }
    }

    fn send(&self, signal: Signal) {
        if let Some(child) = self.child {
            // It has not been waited for, so the pid is its own; if it has ended, that is told next.
            let _ = kill_process(child, signal);
        }
    }

    fn kill(&self, reason: &str) {
        let pid = self.child.map(Pid::as_raw_pid);
        tracing::error!(
            event = "keeper_master_killed",
            pid,
            reason,
            "the master is killed"
        );
        self.send(Signal::KILL);
    }

    fn take_messages(&mut self) -> anyhow::Result<()> {
        for _ in 0..MESSAGES_MAX {
            let received = self.socket.receive();
            let Some(message) = received.context("can't hear the master")? else {
                break;
            };
            let sender = message.sender();
            if sender.is_none() || sender != self.child {
                let pid = sender.map(Pid::as_raw_pid);
                tracing::debug!(
                    event = "keeper_message_strange",
                    pid,
                    "a process other than the master tells something; it is not heard"
                );
                continue;
            }
            for signal in self
                .watch
                .handle_word(clock::boot(), |word| message.says(word))
            {
                self.send(signal);
            }
            if let Err(error) = self.held.handle(message) {
                tracing::error!(event = "keeper_descriptor_refused", error = %error, "a descriptor of the master is not kept: what belongs to it does not outlive the master");
            }
        }
        Ok(())
    }

    /// How the master ended, if it has. As process 1 of a container this is where orphans end, too.
    fn reap(&self) -> Option<ExitStatus> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if Some(pid) == self.child {
                ended = Some(ExitStatus::from_raw(status.as_raw()));
            }
        }
        ended
    }

    fn start(&mut self) {
        let path = self.program.path();
        let started = child::start(path, &self.arguments, &self.held, &self.socket);
        match started {
            Ok(pid) => {
                self.child = Some(pid);
                self.watch.handle_start(clock::boot());
                tracing::info!(
                    event = "keeper_master_started",
                    pid = pid.as_raw_pid(),
                    descriptors = self.held.names().len(),
                    "a master was started"
                );
            }
            Err(error) => {
                let again_in_ms = self.pause_after(None).map(millis);
                tracing::error!(event = "keeper_master_unstartable", error = %error, again_in_ms, "no master can be started");
            }
        }
    }

    /// The pause before the next start, if there is one.
    fn pause_after(&mut self, status: Option<ExitStatus>) -> Option<Duration> {
        match self.watch.handle_end(clock::boot(), status) {
            Next::Again(pause) => Some(pause),
            Next::Over => None,
        }
    }

    /// Returns how the keeper itself is to end, if it is.
    fn handle_end(&mut self, status: ExitStatus) -> Option<anyhow::Result<()>> {
        let Some(pause) = self.pause_after(Some(status)) else {
            return Some(self.finish(Some(status)));
        };
        tracing::warn!(
            event = "keeper_master_ended",
            status = %status,
            again_in_ms = millis(pause),
            "the master has ended and is started again; its connections are kept"
        );
        None
    }

    /// The keeper ends with its last master, if there is one.
    fn finish(&self, status: Option<ExitStatus>) -> anyhow::Result<()> {
        let asked = self.watch.is_stopping();
        let told = status.map(|status| status.to_string());
        tracing::info!(
            event = "keeper_stopped",
            status = told,
            asked,
            "the keeper ends, and what it held is closed"
        );
        status.map_or(Ok(()), |status| end_of(status, asked))
    }
}

/// The keeper's end is the one of its last master.
pub(super) fn end_of(status: ExitStatus, asked: bool) -> anyhow::Result<()> {
    let code = status.code();
    // A master without its handlers yet ends by the signal that asks it to.
    if asked && (code == Some(0) || status.signal() == Some(SIGINT)) {
        return Ok(());
    }
    let exits = [
        Exit::Usage,
        Exit::Bind,
        Exit::Internal,
        Exit::Store,
        Exit::Config,
    ];
    let exit = exits
        .into_iter()
        .find(|exit| code == Some(i32::from(exit.code())));
    let error = anyhow!("the keeper's master has ended: {status}");
    Err(ExitError::new(exit.unwrap_or(Exit::Failure), error).into())
}

fn lock(directory: &Path) -> anyhow::Result<Lock> {
    Lock::take(&directory.join(LOCK)).map_err(|error| match error {
        LockError::Held { holder, .. } => anyhow!(
            "another keeper ({holder}) uses the state directory {}: stop it, or give this one a [state] directory of its own",
            directory.display()
        ),
        error @ LockError::File { .. } => error.into(),
    })
}

fn bind(path: PathBuf) -> anyhow::Result<NotifySocket> {
    NotifySocket::bind(&path).with_context(|| {
        let long = path.as_os_str().len() > PATH_BYTES_MAX;
        let hint = if long {
            ": that is too long for a socket's path; choose another [state] directory"
        } else {
            ""
        };
        format!("can't listen to the master at {}{hint}", path.display())
    })
}

/// The size of the store, if this process may have so many files.
pub(super) fn descriptors_max(files: u64) -> usize {
    let wanted = parking::shard_descriptors(files).saturating_add(DESCRIPTORS_RESERVED);
    let most = (files / DESCRIPTORS_PART).min(DESCRIPTORS_MAX);
    usize::try_from(wanted.min(most)).unwrap_or(usize::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
