//! What a file system does that its users have to know.

use std::path::Path;

use rustix::fs::{FsWord, statfs};

/// BTRFS_SUPER_MAGIC, statfs(2).
const BTRFS: FsWord = 0x9123_683e;
/// BCACHEFS_STATFS_MAGIC, linux/magic.h.
const BCACHEFS: FsWord = 0xca45_1a4e;
/// ZFS_SUPER_MAGIC, sys/fs/zfs.h of OpenZFS.
const ZFS: FsWord = 0x2fc1_2fc1;

/// Whether the file system that holds `path` writes every block to a new place.
///
/// There a page of a memory-mapped file can need space that is not left although the file does not
/// grow, and the kernel ends the process with SIGBUS (mmap(2)): what is mapped for writing has to be
/// kept elsewhere. False if the file system can't be asked.
pub fn is_copy_on_write(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| [BTRFS, BCACHEFS, ZFS].contains(&found.f_type))
}

/// How SQLite is to open the database at `path`: the name of its VFS.
///
/// By default its index of the write-ahead log is a mapped file. On a copy-on-write file system it is
/// kept in memory instead; the price is that no other process can look at the database meanwhile
/// (<https://sqlite.org/vfs.html>, "unix-excl"). All connections of a process must use the same one.
pub fn sqlite_vfs(path: &Path) -> &'static std::ffi::CStr {
    let directory = path.parent().unwrap_or(path);
    if is_copy_on_write(directory) {
        c"unix-excl"
    } else {
        c"unix"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_not_copied_on_write() {
        assert!(!is_copy_on_write(Path::new("/proc")));
        assert!(!is_copy_on_write(Path::new("/nowhere")));
        assert_eq!(sqlite_vfs(Path::new("/proc/master.db")), c"unix");
    }
}
