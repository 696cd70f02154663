//! The daemons as children of `rollcall up`, and how they are kept from outliving it.
//!
//! Every way out of this program ends them in order: the main thread owns them, and dropping one
//! ends it. That leaves the ways on which no code of ours runs any more (SIGKILL, abort). For
//! those each daemon asks the kernel for SIGTERM at the end of its parent (PR_SET_PDEATHSIG,
//! prctl(2)). The setting must be made in the child and survives execve(2), so the child is first
//! this program again, as `rollcall up-child`, which makes the setting and then becomes the
//! daemon: that needs no code between fork and exec, which could only be unsafe.
//!
//! The kernel takes the *thread* that made the child for its parent: daemons are started on the
//! main thread only. Each is in a process group of its own, so that Ctrl-C reaches this program
//! alone, which ends the slave before the master.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, kill_process_group, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

use super::log_tail;
use super::watch::Happening;
use crate::args::UpChildArgs;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Keeps the roll.
    Master,
    /// Reports.
    Slave,
}

impl Role {
    /// In messages and names of files.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Slave => "slave",
        }
    }

    /// The name of its executable.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Master => "rollcall-master",
            Self::Slave => "rollcall-slave",
        }
    }
}

/// How a daemon that was asked to end did so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    status: ExitStatus,
    was_killed: bool,
}

impl Ending {
    /// Whether it ended as asked: by itself and well, or by SIGTERM before it listened to signals.
    pub(super) fn is_clean(self) -> bool {
        let is_early = self.status.signal() == Some(Signal::TERM.as_raw());
        !self.was_killed && (self.status.success() || is_early)
    }
}

/// A daemon that was started here. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Daemon {
    role: Role,
    child: Child,
    // Names the process for as long as it is open, also when the pid is given to another one.
    pidfd: Arc<OwnedFd>,
    log: PathBuf,
    ended: Option<Ending>,
}

impl Daemon {
    /// Starts `program` with `--config config`; all that it prints goes to `log`. To be called on
    /// the main thread.
    pub(super) fn start(
        role: Role,
        program: &Path,
        config: &Path,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let output = fresh_log(log).with_context(|| format!("can't write {}", log.display()))?;
        let own = std::env::current_exe().context("can't find out where this program is")?;
        let parent = std::process::id().to_string();
        let mut child = Command::new(own)
            .args(["up-child", "--parent", &parent, "--"].map(OsStr::new))
            .args([
                program.as_os_str(),
                OsStr::new("--config"),
                config.as_os_str(),
            ])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("can't share a log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("can't start {}", program.display()))?;
        match open_pidfd(&child) {
            Ok(pidfd) => Ok(Self {
                role,
                child,
                pidfd: Arc::new(pidfd),
                log: log.to_owned(),
                ended: None,
            }),
            Err(error) => {
                // Without the descriptor there is no orderly way to end it, so not a step further.
                child.kill().and_then(|()| child.wait())?;
                Err(error).context("can't watch a child: pidfd_open(2) fails")
            }
        }
    }

    /// Which one it is.
    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// Its process id.
    pub(super) fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_nonzero().get()
    }

    /// Tells `tell` when it ends.
    pub(super) fn watch(&self, tell: Sender<Happening>) -> io::Result<()> {
        let role = self.role;
        let pidfd = Arc::clone(&self.pidfd);
        thread::Builder::new()
            .name(format!("{}-watch", role.word()))
            .spawn(move || {
                if wait_readable(&pidfd, None).is_ok() {
                    // Nobody listens any more when this program ends.
                    drop(tell.send(Happening::Ended(role)));
                }
            })
            .map(drop)
    }

    /// Whether it is known to have ended.
    pub(super) fn has_ended(&mut self) -> bool {
        self.ended.is_some()
    }

    /// Waits for the end of a daemon that is ending by itself.
    pub(super) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.reap(false).map(|ending| ending.status)
    }

    /// Asks it to end (SIGTERM), and ends it (SIGKILL, with its process group) when that takes
    /// longer than `patience`.
    pub(super) fn stop(&mut self, patience: Duration) -> io::Result<Ending> {
        if let Some(ending) = self.ended {
            return Ok(ending);
        }
        self.signal(Signal::TERM)?;
        // One that was stopped to watch it turn late hears SIGTERM only when it goes on.
        self.signal(Signal::CONT)?;
        let has_ended = wait_readable(&self.pidfd, Some(clock::boot() + patience))?;
        if !has_ended {
            // It is not reaped yet, so the group's number is still its own.
            kill_process_group(Pid::from_child(&self.child), Signal::KILL)?;
        }
        self.reap(!has_ended)
    }

    /// Why it is not there any more, with the end of its log.
    pub(super) fn obituary(&mut self) -> String {
        let how = match self.reap(false) {
            Ok(Ending {
                was_killed: true, ..
            }) => "did not end when asked to, and was killed".to_owned(),
            Ok(Ending { status, .. }) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with code {code}"),
                (None, Some(signal)) => format!("was ended by signal {signal}"),
                (None, None) => "ended".to_owned(),
            },
            Err(error) => format!("ended, and can't be waited for ({error})"),
        };
        format!(
            "the {} {how}; the end of {}:\n{}",
            self.role.word(),
            self.log.display(),
            log_tail::tail(&self.log)
        )
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&*self.pidfd, signal) {
            // It has ended, and waits to be reaped.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn reap(&mut self, was_killed: bool) -> io::Result<Ending> {
        if let Some(ending) = self.ended {
            return Ok(ending);
        }
        let ending = Ending {
            status: self.child.wait()?,
            was_killed,
        };
        self.ended = Some(ending);
        Ok(ending)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // There is nobody left to tell; what can't be ended gets SIGTERM at this program's end.
        drop(self.stop(super::STOP_MAX));
    }
}

/// `rollcall up-child`: asks for SIGTERM at the end of the parent, and becomes the daemon.
pub(crate) fn become_child(args: &UpChildArgs) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))
        .context("can't ask for a signal at the parent's end")?;
    // The parent may have gone before the request: then nobody will send it.
    if getppid() != Pid::from_raw(args.parent) {
        bail!("`rollcall up` has ended meanwhile");
    }
    let [program, arguments @ ..] = args.command.as_slice() else {
        bail!("no daemon is named");
    };
    // exec only returns when it fails.
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("can't start {}", Path::new(program).display()))
}

/// An empty log; that of the run before is kept beside it.
fn fresh_log(path: &Path) -> io::Result<File> {
    match fs::rename(path, path.with_extension("log.old")) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    File::options().create(true).append(true).open(path)
}

fn open_pidfd(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// Whether the process of `pidfd` has ended, waiting until `deadline` for it.
fn wait_readable(pidfd: &OwnedFd, deadline: Option<Moment>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_since(clock::boot()));
        let left = left.map(Timespec::try_from).transpose();
        let left = left.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    fn daemon(scratch: &Path, script: &str) -> Daemon {
        let child = Command::new("/bin/sh")
            .args(["-c", script])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Daemon {
            role: Role::Slave,
            pidfd: Arc::new(open_pidfd(&child).unwrap()),
            child,
            log: scratch.join("slave.log"),
            ended: None,
        }
    }

    /// Waits until the script has printed a line: until its traps are set.
    fn wait_for_line(daemon: &mut Daemon) {
        let mut byte = [0];
        let stdout = daemon.child.stdout.as_mut().unwrap();
        io::Read::read_exact(stdout, &mut byte).unwrap();
    }

    #[test]
    fn a_willing_daemon_ends_by_itself() {
        let scratch = tempfile::tempdir().unwrap();
        let mut daemon = daemon(
            scratch.path(),
            "trap 'exit 0' TERM; echo; while :; do sleep 0.05; done",
        );
        wait_for_line(&mut daemon);
        assert!(daemon.stop(LONG).unwrap().is_clean());
    }

    #[test]
    fn one_that_was_stopped_is_woken_to_end() {
        let scratch = tempfile::tempdir().unwrap();
        let mut daemon = daemon(
            scratch.path(),
            "trap 'exit 0' TERM; echo; while :; do sleep 0.05; done",
        );
        wait_for_line(&mut daemon);
        daemon.signal(Signal::STOP).unwrap();
        assert!(daemon.stop(LONG).unwrap().is_clean());
    }

    #[test]
    fn an_unwilling_daemon_is_killed_after_the_deadline_only() {
        let scratch = tempfile::tempdir().unwrap();
        let mut daemon = daemon(
            scratch.path(),
            "trap '' TERM; echo; while :; do sleep 0.05; done",
        );
        wait_for_line(&mut daemon);
        let from = clock::boot();
        let ending = daemon.stop(Duration::from_millis(200)).unwrap();
        assert!(clock::boot().saturating_since(from) >= Duration::from_millis(200));
        assert!(!ending.is_clean());
        assert!(daemon.obituary().contains("was killed"));
    }

    #[test]
    fn the_end_is_told_with_its_code_and_log() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("slave.log"), "no config\n").unwrap();
        let mut daemon = daemon(scratch.path(), "exit 78");
        let (tell, told) = mpsc::channel();
        daemon.watch(tell).unwrap();
        assert!(matches!(
            told.recv_timeout(LONG),
            Ok(Happening::Ended(Role::Slave))
        ));
        let text = daemon.obituary();
        assert!(text.contains("ended with code 78"), "{text}");
        assert!(text.contains("no config"), "{text}");
    }

    #[test]
    fn dropping_ends() {
        let scratch = tempfile::tempdir().unwrap();
        let daemon = daemon(scratch.path(), "exec sleep 600");
        let pidfd = Arc::clone(&daemon.pidfd);
        drop(daemon);
        assert!(wait_readable(&pidfd, Some(clock::boot())).unwrap());
    }

    #[test]
    fn the_log_of_the_run_before_is_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("slave.log");
        fs::write(&path, "before").unwrap();
        fresh_log(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        assert_eq!(
            fs::read_to_string(scratch.path().join("slave.log.old")).unwrap(),
            "before"
        );
    }
}
