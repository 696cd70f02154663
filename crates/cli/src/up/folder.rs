//! The folder of one `rollcall up`: configuration, state, logs, and the lock that keeps a second
//! one out.

use std::env;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::daemons::Role;

const LOCK: &str = "up.lock";

/// A folder that this process holds; the kernel lets go of it when the process ends.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: File,
}

/// The folder can't be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    /// Nothing says where a user's state belongs.
    #[error("neither XDG_STATE_HOME nor HOME says where state belongs; name a folder with --dir")]
    NoHome,
    /// Its name can't stand in a configuration file.
    #[error("{} is not UTF-8; name another folder with --dir", path.display())]
    NotUtf8 {
        /// The folder.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("can't {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another one works there.
    #[error(
        "another `rollcall up`{} works in {}\n  end it, or name another folder with --dir",
        holder.as_ref().map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        path.display()
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Its pid, if the lock file tells it.
        holder: Option<u32>,
    },
}

impl Folder {
    /// Makes the folder if need be, and takes it.
    pub(super) fn open(asked_for: Option<&Path>) -> Result<Self, FolderError> {
        let path = match asked_for {
            Some(path) => path.to_owned(),
            None => default_path(env::var_os("XDG_STATE_HOME"), env::var_os("HOME"))?,
        };
        let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
        make(&path).map_err(|source| fault("make the folder", &path, source))?;
        // The daemons must find it whatever their working directory is.
        let path =
            fs::canonicalize(&path).map_err(|source| fault("find the folder", &path, source))?;
        if path.to_str().is_none() {
            return Err(FolderError::NotUtf8 { path });
        }
        let lock = take_lock(&path)?;
        for role in [Role::Master, Role::Slave] {
            let state = path.join(role.word());
            make(&state).map_err(|source| fault("make the folder", &state, source))?;
        }
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration of a daemon.
    pub(super) fn config(&self, role: Role) -> PathBuf {
        self.path.join(format!("{}.toml", role.word()))
    }

    /// The log of a daemon.
    pub(super) fn log(&self, role: Role) -> PathBuf {
        self.path.join(format!("{}.log", role.word()))
    }

    /// The state of a daemon.
    pub(super) fn state(&self, role: Role) -> PathBuf {
        self.path.join(role.word())
    }
}

/// `rollcall/up` in the user's folder of state (XDG Base Directory Specification, which has
/// relative paths ignored).
fn default_path(
    state_home: Option<OsString>,
    home: Option<OsString>,
) -> Result<PathBuf, FolderError> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    state_home
        .and_then(absolute)
        .or_else(|| Some(home.and_then(absolute)?.join(".local/state")))
        .map(|state| state.join("rollcall/up"))
        .ok_or(FolderError::NoHome)
}

fn take_lock(folder: &Path) -> Result<File, FolderError> {
    let path = folder.join(LOCK);
    let mut lock = File::options()
        .read(true)
        .write(true)
        .create(true)
        // The holder's pid must stay until the lock is ours.
        .truncate(false)
        .open(&path)
        .map_err(|source| fault("open", &path, source))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let holder = lock.read_to_string(&mut pid).ok();
            return Err(FolderError::InUse {
                path: folder.to_owned(),
                holder: holder.and_then(|_| pid.trim().parse().ok()),
            });
        }
        Err(TryLockError::Error(source)) => return Err(fault("lock", &path, source)),
    }
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(|source| fault("write", &path, source))?;
    Ok(lock)
}

fn fault(what: &'static str, path: &Path, source: io::Error) -> FolderError {
    FolderError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_in_the_user_s_state() {
        let path = |state: Option<&str>, home: Option<&str>| {
            default_path(state.map(Into::into), home.map(Into::into)).ok()
        };
        assert_eq!(path(Some("/s"), Some("/h")), Some("/s/rollcall/up".into()));
        for state in [None, Some(""), Some("relative")] {
            assert_eq!(
                path(state, Some("/h")),
                Some("/h/.local/state/rollcall/up".into())
            );
        }
        assert_eq!(path(None, None), None);
    }

    #[test]
    fn a_folder_is_held_by_one() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b");
        let held = Folder::open(Some(&path)).unwrap();
        let error = Folder::open(Some(&path)).unwrap_err().to_string();
        let pid = std::process::id();
        assert!(error.contains(&format!("(pid {pid})")), "{error}");
        drop(held);
        assert!(
            Folder::open(Some(&path))
                .unwrap()
                .state(Role::Slave)
                .is_dir()
        );
    }
}
