//! Whether the program in the file can take over: asked of it, and of nobody else.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_os::systemd::store::hide_manager;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::oneshot;

use super::Program;

/// For reading a large store on a slow disk.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Of what the program says, so much of the end is told.
const TOLD_BYTES_MAX: usize = 2048;

/// The program that is to take over, while it says whether it can. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Check {
    program: PathBuf,
    verdict: oneshot::Receiver<Result<String, Refused>>,
    /// The thread sees its end.
    _wanted: PipeWriter,
}

/// The program can't take over, which was told.
#[derive(Debug)]
pub(crate) struct Told;

/// Why the program can't take over.
#[derive(Debug)]
enum Refused {
    /// It could not be run.
    NotRun(io::Error),
    /// It has said so.
    Ended(ExitStatus, String),
    /// It can, but what this master has in hand can't be stored now.
    Degraded,
    /// It has not come to an end.
    TooLong(Duration, String),
    /// Nobody wants to know any more.
    Unwanted,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRun(error) => write!(f, "it cannot be run: {error}"),
            Self::Ended(status, said) if said.is_empty() => write!(f, "{status}"),
            Self::Ended(status, said) => write!(f, "{status}: {said}"),
            Self::Degraded => f.write_str(
                "the store can't write at present, and what has come must be on disk first; see /readyz",
            ),
            Self::TooLong(time, said) => {
                write!(f, "it has not ended within {time:?}")?;
                if said.is_empty() {
                    return Ok(());
                }
                write!(f, "; it said: {said}")
            }
            Self::Unwanted => f.write_str("nobody wants to know"),
        }
    }
}

impl Check {
    /// Begins. `None` if it can't, which was told.
    pub(crate) fn start(program: &Program) -> Option<Self> {
        let path = program.path();
        tracing::info!(event = "upgrade_checking", program = %path.display(), "SIGUSR2: the program is asked whether it can take over");
        let mut command = program.command(path);
        command.arg("--selfcheck");
        match Self::of(path, command, TIME_MAX) {
            Ok(check) => Some(check),
            Err(error) => {
                tell_refused(path, &Refused::NotRun(error));
                None
            }
        }
    }

    fn of(program: &Path, mut command: Command, limit: Duration) -> io::Result<Self> {
        hide_manager(&mut command);
        let (unwanted, wanted) = io::pipe()?;
        let (sender, verdict) = oneshot::channel();
        // Neither starting the program nor waiting for it may hold up the reactor.
        thread::Builder::new()
            .name("selfcheck".to_owned())
            .spawn(move || {
                // If nobody waits any more, nobody has to know.
                let _ = sender.send(ask(command, limit, &unwanted));
            })?;
        Ok(Self {
            program: program.to_owned(),
            verdict,
            _wanted: wanted,
        })
    }

    /// Waits until it is known whether the program of `check` can take over from this master, which
    /// `is_degraded` or not; for ever if there is none. Cancel safe.
    ///
    /// # Errors
    /// If it can't.
    pub(crate) async fn verdict(
        check: &mut Option<Self>,
        is_degraded: impl Fn() -> bool,
    ) -> Result<(), Told> {
        let Some(check) = check else {
            return std::future::pending().await;
        };
        let verdict = match (&mut check.verdict).await {
            Ok(verdict) => verdict,
            Err(_panicked) => Err(Refused::NotRun(io::Error::other("its thread panicked"))),
        };
        let verdict = match verdict {
            Ok(_) if is_degraded() => Err(Refused::Degraded),
            verdict => verdict,
        };
        match verdict {
            Ok(said) => {
                let program = check.program.display();
                tracing::info!(event = "upgrade_checked", program = %program, found = said, "the program can take over");
                Ok(())
            }
            Err(refused) => {
                tell_refused(&check.program, &refused);
                Err(Told)
            }
        }
    }
}

fn tell_refused(program: &Path, refused: &Refused) {
    tracing::error!(event = "upgrade_refused", program = %program.display(), reason = %refused, "the program can't take over; the one that runs goes on");
}

/// Runs the program to its end, and returns what it has said.
fn ask(mut command: Command, limit: Duration, unwanted: &PipeReader) -> Result<String, Refused> {
    let (child, said) = start(&mut command).map_err(Refused::NotRun)?;
    // It holds the end that the program writes to.
    drop(command);
    let mut asked = Asked {
        child,
        said,
        tail: VecDeque::new(),
    };
    let status = asked.wait(limit, unwanted);
    // No process stays behind, whatever it was in the middle of.
    let _ = asked.child.kill();
    let _ = asked.child.wait();
    asked.listen();
    let said = asked.told();
    match status {
        Ok(Some(status)) if status.success() => Ok(said),
        Ok(Some(status)) => Err(Refused::Ended(status, said)),
        Ok(None) => Err(Refused::TooLong(limit, said)),
        Err(refused) => Err(refused),
    }
}

/// The program, and where its words come out.
fn start(command: &mut Command) -> io::Result<(Child, PipeReader)> {
    let (said, says) = io::pipe()?;
    ioctl_fionbio(&said, true)?;
    let child = command
        .stdin(Stdio::null())
        .stdout(says.try_clone()?)
        .stderr(says)
        .spawn()?;
    Ok((child, said))
}

/// The program while it runs.
struct Asked {
    child: Child,
    said: PipeReader,
    tail: VecDeque<u8>,
}

impl Asked {
    /// How it ended; `None` if it did not within `limit`.
    fn wait(
        &mut self,
        limit: Duration,
        unwanted: &PipeReader,
    ) -> Result<Option<ExitStatus>, Refused> {
        let pid = Pid::from_child(&self.child);
        let process = pidfd_open(pid, PidfdFlags::empty());
        let process = process.map_err(|error| Refused::NotRun(error.into()))?;
        let give_up = clock::boot() + limit;
        let mut talks = true;
        loop {
            let left = give_up.saturating_since(clock::boot());
            if left.is_zero() {
                return Ok(None);
            }
            let ready = self.ready(&process, unwanted, talks, left);
            let [has_ended, is_unwanted] = ready.map_err(Refused::NotRun)?;
            if is_unwanted {
                return Err(Refused::Unwanted);
            }
            talks = self.listen();
            if has_ended {
                return self.child.wait().map(Some).map_err(Refused::NotRun);
            }
        }
    }

    /// Waits for its end, for words of it, or until nobody wants to know; says whether the first or the
    /// last is the case.
    fn ready(
        &self,
        process: &OwnedFd,
        unwanted: &PipeReader,
        talks: bool,
        left: Duration,
    ) -> io::Result<[bool; 2]> {
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut sources = vec![
            PollFd::new(process, PollFlags::IN),
            PollFd::new(unwanted, PollFlags::IN),
        ];
        if talks {
            sources.push(PollFd::new(&self.said, PollFlags::IN));
        }
        match poll(&mut sources, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok([0, 1].map(|index: usize| !sources[index].revents().is_empty()))
    }

    /// Takes in what it has said. `false` if nothing more comes.
    fn listen(&mut self) -> bool {
        let mut buffer = [0; 1024];
        loop {
            match self.said.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    self.tail.extend(&buffer[..count]);
                    let excess = self.tail.len().saturating_sub(TOLD_BYTES_MAX);
                    self.tail.drain(..excess);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    /// Its last lines as one.
    fn told(&mut self) -> String {
        let text = String::from_utf8_lossy(self.tail.make_contiguous()).into_owned();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn verdict(script: &str, limit: Duration) -> Result<String, String> {
        let (unwanted, _wanted) = io::pipe().unwrap();
        ask(shell(script), limit, &unwanted).map_err(|refused| refused.to_string())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn what_it_says_is_told() {
        assert_eq!(verdict("echo fine", LONG), Ok("fine".to_owned()));
        let refused = verdict("echo one; echo two >&2; exit 78", LONG);
        assert_eq!(refused, Err("exit status: 78: one; two".to_owned()));
        let refused = verdict("kill -9 $$", LONG).unwrap_err();
        assert!(refused.contains("signal: 9"), "{refused}");
        let (unwanted, _wanted) = io::pipe().unwrap();
        let absent = ask(Command::new("/nowhere/at/all"), LONG, &unwanted);
        let refused = absent.unwrap_err().to_string();
        assert!(refused.starts_with("it cannot be run: "), "{refused}");
    }

    #[test]
    fn of_many_words_the_last_are_told() {
        let script = "i=0; while [ $i -lt 3000 ]; do echo a line of some length; i=$((i+1)); done; echo last";
        let said = verdict(script, LONG).unwrap();
        assert!(said.ends_with("; last"), "{said}");
        assert!(said.len() <= TOLD_BYTES_MAX * 2, "{}", said.len());
    }

    #[test]
    fn one_that_does_not_end_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let script = format!(
            "echo $$ >{}; echo begun; exec sleep 600",
            pid_file.display()
        );
        let refused = verdict(&script, Duration::from_millis(500)).unwrap_err();
        assert!(
            refused.starts_with("it has not ended within 500ms"),
            "{refused}"
        );
        if let Ok(pid) = fs::read_to_string(&pid_file) {
            let process = Path::new("/proc").join(pid.trim());
            assert!(!process.exists(), "it is gone and waited for");
        }
    }

    #[test]
    fn one_that_nobody_waits_for_is_ended() {
        let (unwanted, wanted) = io::pipe().unwrap();
        drop(wanted);
        let refused = ask(shell("exec sleep 600"), LONG, &unwanted);
        assert!(matches!(refused, Err(Refused::Unwanted)), "{refused:?}");
    }

    #[test]
    fn a_grandchild_that_holds_on_to_the_pipe_is_not_waited_for() {
        assert_eq!(verdict("sleep 5 & echo fine", LONG), Ok("fine".to_owned()));
    }
}
