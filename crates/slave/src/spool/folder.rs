//! The state folder: one slave at a time, its id, and what had to be set aside.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rollcall_os::lock::{Lock, LockError};

use super::SpoolError;

const LOCK: &str = "lock";
const ID: &str = "slave-id";
const DATABASE: &str = "spool.db";

/// A state folder that this process has locked.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    _lock: Lock,
}

impl Folder {
    /// Creates the folder if it is not there and locks it.
    ///
    /// # Errors
    /// [`SpoolError::InUse`] names the process that has it, [`SpoolError::File`] anything else.
    pub(crate) fn lock(path: &Path) -> Result<Self, SpoolError> {
        if !path.is_dir() {
            fs::create_dir_all(path).map_err(failed("create", path))?;
            let private = Permissions::from_mode(0o700);
            fs::set_permissions(path, private).map_err(failed("set the mode of", path))?;
        }
        let lock = Lock::take(&path.join(LOCK)).map_err(|error| match error {
            LockError::Held { holder, .. } => SpoolError::InUse {
                path: path.to_owned(),
                holder,
            },
            LockError::File { verb, path, source } => SpoolError::File { verb, path, source },
        })?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The same for a folder that is there already.
    ///
    /// # Errors
    /// [`SpoolError::NoFolder`], and those of [`Self::lock`].
    pub(crate) fn lock_existing(path: &Path) -> Result<Self, SpoolError> {
        if !path.is_dir() {
            return Err(SpoolError::NoFolder {
                path: path.to_owned(),
            });
        }
        Self::lock(path)
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the database is.
    pub(crate) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// Bytes that an unprivileged process may still write to the folder's file system.
    ///
    /// # Errors
    /// [`SpoolError::File`]
    pub(crate) fn free_bytes(&self) -> Result<u64, SpoolError> {
        let stat = rustix::fs::statvfs(&self.path)
            .map_err(|errno| failed("ask for the free space of", &self.path)(errno.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The id that is kept beside the database, so that it outlives it; `None` if there is none
    /// that can be read.
    pub(crate) fn read_id(&self) -> Option<[u8; 16]> {
        let text = fs::read_to_string(self.path.join(ID)).ok()?;
        let text = text.trim_ascii();
        (text.len() == 32)
            .then(|| u128::from_str_radix(text, 16).ok())?
            .map(u128::to_be_bytes)
    }

    /// Keeps `id` beside the database.
    ///
    /// # Errors
    /// [`SpoolError::File`]
    pub(crate) fn write_id(&self, id: [u8; 16]) -> Result<(), SpoolError> {
        let path = self.path.join(ID);
        let draft = self.path.join("slave-id.new");
        let text = format!("{:032x}\n", u128::from_be_bytes(id));
        let write = || {
            let mut file = File::create(&draft)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(failed("write", &path))
    }

    /// Moves the database out of the way under a name that says when and why; returns where to.
    ///
    /// # Errors
    /// [`SpoolError::File`]
    pub(crate) fn set_aside(&self, why: &str, now_ms: i64) -> Result<PathBuf, SpoolError> {
        let target = self.free_name(why, now_ms);
        let database = self.database();
        for suffix in ["-wal", "-shm", ""] {
            let from = with_suffix(&database, suffix);
            match fs::rename(&from, with_suffix(&target, suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("set aside", &from)(error));
                }
                _ => {}
            }
        }
        Ok(target)
    }

    fn free_name(&self, why: &str, now_ms: i64) -> PathBuf {
        let when = jiff::Timestamp::from_millisecond(now_ms)
            .unwrap_or_default()
            .strftime("%Y%m%dT%H%M%SZ")
            .to_string();
        let plain = self.path.join(format!("{DATABASE}.{why}-{when}"));
        let numbered = (2..1000_u32).map(|n| with_suffix(&plain, &format!(".{n}")));
        std::iter::once(plain.clone())
            .chain(numbered)
            .find(|name| !name.exists())
            .unwrap_or(plain)
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::File { verb, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_slave_on_the_same_folder_is_told_who_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let first = Folder::lock(&path).unwrap();
        let error = Folder::lock(&path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("pid {}", std::process::id())),
            "{error}"
        );
        drop(first);
        Folder::lock(&path).unwrap();
    }

    #[test]
    fn the_id_is_kept_and_nonsense_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::lock(directory.path()).unwrap();
        assert_eq!(folder.read_id(), None);
        let id = [7; 16];
        folder.write_id(id).unwrap();
        assert_eq!(folder.read_id(), Some(id));
        fs::write(directory.path().join(ID), "+7").unwrap();
        assert_eq!(folder.read_id(), None);
    }

    #[test]
    fn what_is_set_aside_never_replaces_what_was_set_aside_before() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::lock(directory.path()).unwrap();
        let now_ms = 1_795_320_900_000;
        let mut names = Vec::new();
        for text in ["one", "two"] {
            fs::write(folder.database(), text).unwrap();
            let name = folder.set_aside("damaged", now_ms).unwrap();
            assert_eq!(fs::read_to_string(&name).unwrap(), text);
            names.push(name);
        }
        assert!(
            names[0].ends_with("spool.db.damaged-20261122T041500Z"),
            "{names:?}"
        );
        assert!(
            names[1].ends_with("spool.db.damaged-20261122T041500Z.2"),
            "{names:?}"
        );
        assert!(!folder.database().exists());
    }
}
