//! A real file system in a file, whose faults are those of a real disk: it can be frozen, turned
//! read-only under open files, and limited by a quota.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// btrfs takes no less.
const BYTES: u64 = 160 << 20;
/// What fills a quota: small enough to leave little of it unused.
const BLOCK: [u8; 4096] = [1; 4096];

/// What can be asked of it depends on its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Goes read-only for good when it is told that its journal is broken.
    Ext4,
    /// Has quotas that bind root as well.
    Btrfs,
}

/// A mounted image, unmounted when dropped.
#[derive(Debug)]
pub struct Image {
    folder: tempfile::TempDir,
}

impl Image {
    /// Makes and mounts one. It takes root, a loop device and the file system's mkfs.
    ///
    /// # Errors
    /// What the program that failed has said.
    pub fn mount(kind: Kind) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let image = Self { folder };
        let file = File::create(image.file()).and_then(|file| file.set_len(BYTES));
        file.map_err(|error| error.to_string())?;
        std::fs::create_dir(image.path()).map_err(|error| error.to_string())?;
        let mkfs = match kind {
            Kind::Ext4 => "mkfs.ext4",
            Kind::Btrfs => "mkfs.btrfs",
        };
        run(Command::new(mkfs).arg("-q").arg(image.file()))?;
        image.mount_again()?;
        if kind == Kind::Btrfs {
            run(Command::new("btrfs")
                .args(["quota", "enable"])
                .arg(image.path()))?;
        }
        Ok(image)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Its root.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn mount_again(&self) -> Result<(), String> {
        run(Command::new("mount")
            .args(["-o", "loop,nodev,nosuid"])
            .args([self.file(), self.path()]))
    }

    /// Whoever writes from now on waits in the kernel, until the answer is dropped.
    ///
    /// # Panics
    /// If it can't be frozen.
    pub fn freeze(&self) -> Frozen {
        must(run(Command::new("fsfreeze").arg("-f").arg(self.path())));
        Frozen(self.path())
    }

    /// Ext4: what is written from now on fails with EROFS, for good; what only lies in its journal is
    /// replayed at the next mount.
    ///
    /// # Panics
    /// If the kernel does not take it.
    pub fn turn_read_only(&self) {
        must(run(Command::new("mount")
            .args(["-o", "remount,abort"])
            .arg(self.path())));
    }

    /// Unmounts it and mounts it again, as after a boot. Nobody may use it.
    ///
    /// # Panics
    /// If somebody does.
    pub fn remount(&self) {
        must(run(Command::new("umount").arg(self.path())));
        must(self.mount_again());
    }

    /// Btrfs: allows this many bytes, and fills them up with a file.
    ///
    /// # Panics
    /// If btrfs(8) fails, or the limit is not one.
    pub fn use_up_quota(&self, bytes: u64) {
        self.limit(&bytes.to_string());
        let fill = || -> io::Result<Infallible> {
            let mut ballast = File::create(self.path().join("ballast"))?;
            loop {
                ballast.write_all(&BLOCK)?;
            }
        };
        let error = fill().expect_err("the quota is not enforced");
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded, "{error}");
    }

    /// Btrfs: allows any number of bytes.
    ///
    /// # Panics
    /// If btrfs(8) fails.
    pub fn lift_quota(&self) {
        self.limit("none");
    }

    fn limit(&self, limit: &str) {
        must(run(Command::new("btrfs")
            .args(["qgroup", "limit", limit])
            .arg(self.path())));
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Lazily: a test that fails may leave a process that still uses it for a moment.
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(self.path())) {
            eprintln!("{error}");
        }
    }
}

/// A frozen file system; dropping it thaws it, so that nobody waits for ever.
#[derive(Debug)]
pub struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = thaw(&self.0) {
            eprintln!("{error}");
        }
    }
}

fn thaw(path: &Path) -> Result<(), String> {
    run(Command::new("fsfreeze").arg("-u").arg(path))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output();
    let output = output.map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}: {said}", output.status))
}

fn must(result: Result<(), String>) {
    if let Err(error) = result {
        panic!("{error}");
    }
}
