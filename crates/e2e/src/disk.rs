//! A small file system that can be filled.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A tmpfs of its own, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts one of this size. It takes root.
    ///
    /// # Errors
    /// What mount(2) says.
    pub fn mount(mib: u32) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let options = std::ffi::CString::new(format!("size={mib}m,mode=0700"))?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID;
        mount(
            "rollcall-e2e",
            folder.path(),
            "tmpfs",
            flags,
            options.as_c_str(),
        )?;
        Ok(Self(folder))
    }

    /// Its root.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it to the last byte with one file, and returns that.
    ///
    /// # Panics
    /// If it can't be filled.
    pub fn fill(&self) -> Ballast {
        let path = self.path().join("ballast");
        let fill = || -> io::Result<()> {
            let mut file = File::create(&path)?;
            for size in [1 << 20, 1 << 12, 1] {
                let block = vec![1_u8; size];
                loop {
                    match file.write(&block) {
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                        Err(error) => return Err(error),
                    }
                }
            }
            Ok(())
        };
        match fill() {
            Ok(()) => Ballast(path),
            Err(error) => panic!("can't fill the disk: {error}"),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that fails may leave a process that still uses it for a moment.
        if let Err(error) = unmount(self.path(), UnmountFlags::DETACH) {
            eprintln!("can't unmount {}: {error}", self.path().display());
        }
    }
}

/// What fills a disk; dropping it gives the space back.
#[derive(Debug)]
pub struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            eprintln!("can't remove {}: {error}", self.0.display());
        }
    }
}
