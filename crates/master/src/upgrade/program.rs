//! The program's own file and arguments.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the kernel adds to the name of a program whose file is gone (proc_pid_exe(5)).
const DELETED: &[u8] = b" (deleted)";

/// Where the program is that this process was started from, and with what. An upgrade puts another file
/// in its place.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// To be asked at the start: later the file may be another one.
    ///
    /// # Errors
    /// If neither the first argument nor the kernel tells.
    pub(crate) fn of_this_process() -> io::Result<Self> {
        let mut arguments = env::args_os();
        let named = arguments.next().and_then(|named| find(&named));
        let path = match named {
            Some(path) => path,
            None => without_deleted(env::current_exe()?),
        };
        Ok(Self {
            path,
            arguments: arguments.collect(),
        })
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs `file` under the program's name, with its arguments.
    pub(super) fn command(&self, file: &Path) -> Command {
        use std::os::unix::process::CommandExt;

        let mut command = Command::new(file);
        command.arg0(&self.path).args(&self.arguments);
        command
    }
}

/// The file that whoever started this process has named, so that a link which leads elsewhere by now is
/// followed; the kernel tells only what it led to then.
fn find(named: &OsStr) -> Option<PathBuf> {
    let path = if named.as_bytes().contains(&b'/') {
        std::path::absolute(named).ok()?
    } else {
        let folders = env::var_os("PATH")?;
        let mut paths = env::split_paths(&folders).map(|folder| folder.join(named));
        paths.find(|path| path.is_absolute() && path.is_file())?
    };
    // "/proc/self/exe" is the program that runs, whatever is in its place by then.
    (path.is_file() && !path.starts_with("/proc")).then_some(path)
}

fn without_deleted(path: PathBuf) -> PathBuf {
    let bytes = path.into_os_string().into_vec();
    let name = bytes.strip_suffix(DELETED).unwrap_or(&bytes);
    PathBuf::from(OsStr::from_bytes(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_not_resolved() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("current");
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        assert_eq!(find(link.as_os_str()), Some(link));
        assert_eq!(find(folder.path().join("absent").as_os_str()), None);
        assert!(find(OsStr::new("sh")).is_some_and(|path| path.is_absolute()));
        assert_eq!(find(OsStr::new("no-such-program-anywhere")), None);
        assert_eq!(find(OsStr::new("/proc/self/exe")), None);
    }

    #[test]
    fn a_file_that_was_replaced_keeps_its_name() {
        let kept = |path: &str| without_deleted(PathBuf::from(path));
        assert_eq!(kept("/usr/bin/x (deleted)"), Path::new("/usr/bin/x"));
        assert_eq!(kept("/usr/bin/x"), Path::new("/usr/bin/x"));
    }
}
