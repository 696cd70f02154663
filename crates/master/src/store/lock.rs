//! One master to a state directory: a file lock (flock(2)) that names its holder.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::StoreError;

const LOCK: &str = "master.lock";
/// How long a process that still holds the lock may take to die: a successor is often started
/// right after a kill, while the kernel still takes the old one apart.
const DYING_HOLDER_WAIT: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// Held for as long as this process may write into the directory. The kernel releases it when the
/// process ends, however it ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or says who holds it.
    pub(super) fn take(directory: &Path) -> Result<Self, StoreError> {
        let path = directory.join(LOCK);
        let mut file = open(&path).map_err(|source| fault("open", &path, source))?;
        if !try_lock(&file).map_err(|source| fault("lock", &path, source))? {
            let holder = holder(&mut file);
            let freed = holder.is_some_and(wait_for_end)
                && try_lock(&file).map_err(|source| fault("lock", &path, source))?;
            if !freed {
                return Err(StoreError::InUse {
                    path: directory.to_owned(),
                    holder: describe(holder),
                });
            }
        }
        write_pid(&mut file).map_err(|source| fault("write", &path, source))?;
        Ok(Self { _file: file })
    }
}

fn open(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        // The holder's pid must survive until the lock is ours.
        .truncate(false)
        .open(path)
}

fn fault(what: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::File {
        what,
        path: PathBuf::from(path),
        source,
    }
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
    if holder == rustix::process::getpid() {
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
        || "of unknown pid".to_owned(),
        |pid| format!("pid {}", pid.as_raw_nonzero()),
    )
}

/// The pid is news for people and for the successor, so it need not survive a power loss; on a full
/// disk an old, longer pid must not show through, hence truncate first.
fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    match writeln!(file, "{}", std::process::id()) {
        // The lock itself holds; a full disk must not stop the daemon from starting.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
        other => other,
    }
}
