//! A daemon as a child of this program, and how it is kept from outliving it.
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
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getppid, kill_process_group, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

use super::{Role, STOP_MAX, log_tail};

/// See [`become_child`].
#[derive(Debug, Args)]
pub(crate) struct UpChildArgs {
    /// The process whose end ends the daemon.
    #[arg(long)]
    pub(crate) parent: i32,
    /// The daemon and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// What becomes of the log that an earlier daemon has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// It is kept beside the new one.
    Fresh,
    /// The new one goes on with it.
    Continued,
}

/// How a daemon that was asked to end did so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    status: ExitStatus,
    was_killed: bool,
}

impl Ending {
    /// Whether it ended as asked: by itself and well, or by SIGTERM before it listened to signals.
    pub(crate) fn is_clean(self) -> bool {
        let is_early = self.status.signal() == Some(Signal::TERM.as_raw());
        !self.was_killed && (self.status.success() || is_early)
    }
}

/// A daemon that was started here. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Daemon {
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
    pub(crate) fn start(
        role: Role,
        program: &Path,
        config: &Path,
        log: &Path,
        kept: Log,
    ) -> anyhow::Result<Self> {
        let output =
            open_log(log, kept).with_context(|| format!("can't write {}", log.display()))?;
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
    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_nonzero().get()
    }

    /// Calls `tell` when it ends.
    pub(crate) fn watch(&self, tell: impl FnOnce(Role) + Send + 'static) -> io::Result<()> {
        let role = self.role;
        let pidfd = Arc::clone(&self.pidfd);
        thread::Builder::new()
            .name(format!("{}-watch", role.word()))
            .spawn(move || {
                if wait_readable(&pidfd, None).is_ok() {
                    tell(role);
                }
            })
            .map(drop)
    }

    /// Whether it is known to have ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.ended.is_some()
    }

    /// Whether it has ended by now.
    pub(crate) fn is_gone(&self) -> io::Result<bool> {
        Ok(self.ended.is_some() || wait_readable(&self.pidfd, Some(clock::boot()))?)
    }

    /// Ends it at once (SIGKILL), as a crash would, and waits for its end.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        if self.ended.is_none() {
            self.signal(Signal::KILL)?;
        }
        self.reap(false).map(drop)
    }

    /// Asks it to end (SIGTERM) and does not wait.
    pub(crate) fn ask_to_end(&self) -> io::Result<()> {
        match self.ended {
            Some(_) => Ok(()),
            None => self.signal(Signal::TERM),
        }
    }

    /// Waits for the end of a daemon that is ending by itself.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.reap(false).map(|ending| ending.status)
    }

    /// Asks it to end (SIGTERM), and ends it (SIGKILL, with its process group) when that takes
    /// longer than `patience`.
    pub(crate) fn stop(&mut self, patience: Duration) -> io::Result<Ending> {
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
    pub(crate) fn obituary(&mut self) -> String {
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
        drop(self.stop(STOP_MAX));
    }
}

/// `rollcall up-child`: asks for SIGTERM at the end of the parent, and becomes the daemon.
pub(crate) fn become_child(args: &UpChildArgs) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))
        .context("can't ask for a signal at the parent's end")?;
    // The parent may have gone before the request: then nobody will send it.
    if getppid() != Pid::from_raw(args.parent) {
        bail!("the program that started it has ended meanwhile");
    }
    let [program, arguments @ ..] = args.command.as_slice() else {
        bail!("no daemon is named");
    };
    // exec only returns when it fails.
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("can't start {}", Path::new(program).display()))
}

/// The log to write to.
fn open_log(path: &Path, kept: Log) -> io::Result<File> {
    if kept == Log::Fresh {
        match fs::rename(path, path.with_extension("log.old")) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
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
        daemon.watch(move |role| tell.send(role).unwrap()).unwrap();
        assert_eq!(told.recv_timeout(LONG), Ok(Role::Slave));
        assert!(daemon.is_gone().unwrap());
        let text = daemon.obituary();
        assert!(text.contains("ended with code 78"), "{text}");
        assert!(text.contains("no config"), "{text}");
    }

    #[test]
    fn a_kill_leaves_no_time_for_an_end_of_its_own() {
        let scratch = tempfile::tempdir().unwrap();
        let mut daemon = daemon(scratch.path(), "trap '' TERM; echo; exec sleep 600");
        wait_for_line(&mut daemon);
        assert!(!daemon.is_gone().unwrap());
        daemon.kill().unwrap();
        assert!(daemon.is_gone().unwrap());
        assert!(daemon.obituary().contains("signal 9"));
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
        let append = |kept| io::Write::write_all(&mut open_log(&path, kept).unwrap(), b" it");
        append(Log::Continued).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before it");
        append(Log::Fresh).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), " it");
        assert_eq!(
            fs::read_to_string(scratch.path().join("slave.log.old")).unwrap(),
            "before it"
        );
    }
}
