//! One process to a folder: a lock file (flock(2)) that names its holder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

/// How long a process that still holds the lock may take to die: a successor is often started
/// right after a kill, while the kernel still takes the old one apart.
const DYING_HOLDER_WAIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Held for as long as this value lives. The kernel releases it when the process ends, however it
/// ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    /// Of all copies at once: a child between fork(2) and execve(2) has one, and would hold on to it.
    fn drop(&mut self) {
        // If it fails, closing the last copy does it.
        let _ = self.file.unlock();
    }
}

/// The lock can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{} is locked by {holder}", path.display())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// "pid 123", or "a process of unknown pid".
        holder: String,
    },
    /// The lock file can't be used.
    #[error("can't {verb} {}: {source}", path.display())]
    File {
        /// What was tried: "open", "lock" or "write".
        verb: &'static str,
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock of the file at `path`, which is created if it is not there. A holder that is
    /// just dying is waited for, for a second at most.
    ///
    /// # Errors
    /// [`LockError::Held`] says who has it, [`LockError::File`] anything else.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |verb| {
            move |source| LockError::File {
                verb,
                path: path.to_owned(),
                source,
            }
        };
        let mut file = open(path).map_err(failed("open"))?;
        if !try_lock(&file).map_err(failed("lock"))? {
            let holder = holder(&mut file);
            let freed =
                holder.is_some_and(wait_for_end) && try_lock(&file).map_err(failed("lock"))?;
            if !freed {
                let path = path.to_owned();
                let holder = describe(holder);
                return Err(LockError::Held { path, holder });
            }
        }
        note_pid(&mut file).map_err(failed("write"))?;
        Ok(Self { file })
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        // The holder's pid must survive until the lock is ours.
        .truncate(false)
        .open(path)
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn holder(file: &mut File) -> Option<Pid> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

/// Whether the process ended within [`DYING_HOLDER_WAIT`], or is gone already.
fn wait_for_end(holder: Pid) -> bool {
    if holder == getpid() {
        return false;
    }
    match pidfd_open(holder, PidfdFlags::empty()) {
        Ok(process) => {
            let mut fds = [PollFd::new(&process, PollFlags::IN)];
            poll(&mut fds, Some(&DYING_HOLDER_WAIT)).is_ok_and(|ready| ready > 0)
        }
        Err(error) => error == rustix::io::Errno::SRCH,
    }
}

fn describe(holder: Option<Pid>) -> String {
    holder.map_or_else(
        || "a process of unknown pid".to_owned(),
        |pid| format!("pid {}", pid.as_raw_nonzero()),
    )
}

/// The pid is news for people and for the successor, so it need not survive a power loss; on a full
/// disk an old, longer pid must not show through, hence truncate first.
fn note_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    match writeln!(file, "{}", std::process::id()) {
        // The lock itself holds; a full disk must not stop the daemon from starting.
        Err(error) if is_full(&error) => Ok(()),
        other => other,
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_second_holder_is_told_the_first_and_may_follow_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::take(&path).unwrap();
        let error = Lock::take(&path).unwrap_err().to_string();
        let wanted = format!("is locked by pid {}", std::process::id());
        assert!(error.ends_with(&wanted), "{error}");
        drop(first);
        Lock::take(&path).unwrap();
    }

    #[test]
    fn a_lock_that_is_given_back_is_free_whoever_has_a_copy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = Lock::take(&path).unwrap();
        let copy = lock.file.try_clone().unwrap();
        drop(lock);
        Lock::take(&path).unwrap();
        drop(copy);
    }

    #[test]
    fn a_holder_that_is_dying_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        // flock(1) holds it until its child ends, and the file names the child's parent.
        std::fs::write(&path, "").unwrap();
        let Ok(mut child) = Command::new("flock")
            .arg(&path)
            .args(["sh", "-c", "echo $PPID > \"$0\"; sleep 0.2"])
            .arg(&path)
            .spawn()
        else {
            eprintln!("SKIPPED: no flock(1) on this machine");
            return;
        };
        let noted = || std::fs::read_to_string(&path).is_ok_and(|text| !text.trim().is_empty());
        while !noted() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        Lock::take(&path).unwrap();
        child.wait().unwrap();
    }
}
