//! Which systemd unit a process or a socket belongs to, by its control group (cgroups(7)).

use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use crate::diag::text::bounded;

/// systemd's own limit of a unit's name.
const NAME_CHARACTERS_MAX: usize = 255;
/// Where the cgroup2 file system is: alone, or beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
/// Folders that are looked at before the search for one is given up.
const FOLDERS_MAX: usize = 20_000;

/// The unit in /proc/PID/cgroup: of the tree of version 2, or of systemd's own of version 1.
pub(super) fn of_process(cgroups: &str) -> Option<String> {
    let mut lines = cgroups.lines();
    lines
        .find_map(|line| line.strip_prefix("0::"))
        .and_then(of_path)
        .or_else(|| {
            let mut lines = cgroups.lines();
            lines.find_map(|line| of_path(line.split_once(":name=systemd:")?.1))
        })
}

/// The innermost unit of a path such as "/system.slice/sshd.service" or
/// "/user.slice/user-1000.slice/session-3.scope".
fn of_path(path: &str) -> Option<String> {
    let is_unit = |part: &&str| {
        [".service", ".scope", ".socket", ".mount", ".swap"]
            .iter()
            .any(|ending| part.ends_with(ending))
    };
    let unit = path.rsplit('/').find(is_unit)?;
    Some(bounded(unit, NAME_CHARACTERS_MAX))
}

/// A control group that a socket was made in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) unit: Option<String>,
    /// Its processes, as far as they are in this PID namespace.
    pub(super) pids: Vec<u32>,
}

impl Group {
    /// The group of this id, which is the inode of its folder. `None` if it is gone, or not in the
    /// caller's cgroup namespace. Everybody may read it.
    pub(super) fn find(id: u64) -> Option<Self> {
        let mount = MOUNTS
            .into_iter()
            .map(Path::new)
            .find(|mount| mount.join("cgroup.controllers").exists())?;
        let folder = find(mount, id)?;
        let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        let path = folder.strip_prefix(mount).ok()?.to_string_lossy();
        Some(Self {
            unit: of_path(&path),
            pids: procs.lines().filter_map(|line| line.parse().ok()).collect(),
        })
    }
}

/// The folder below `mount` with this inode.
fn find(mount: &Path, id: u64) -> Option<PathBuf> {
    let mut folders = vec![mount.to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.ino() == id {
                return Some(entry.path());
            }
            seen += 1;
            if seen > FOLDERS_MAX {
                return None;
            }
            folders.push(entry.path());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_unit_is_found_in_both_versions() {
        let second = "0::/system.slice/ssh.service\n";
        assert_eq!(of_process(second).as_deref(), Some("ssh.service"));
        let first = "3:cpu:/\n1:name=systemd:/user.slice/user-1.slice/session-3.scope\n0::/\n";
        assert_eq!(of_process(first).as_deref(), Some("session-3.scope"));
        let first = "9:name=systemd:/system.slice/a\\x2db.service/sub\n0::/\n";
        assert_eq!(of_process(first).as_deref(), Some("a\\x2db.service"));
        assert_eq!(of_process("0::/\n"), None);
        assert_eq!(of_process(""), None);
    }

    #[test]
    fn a_folder_is_found_by_its_inode() {
        use std::os::unix::fs::MetadataExt;

        let folder = tempfile::tempdir().unwrap();
        let wanted = folder.path().join("a.slice/b.service");
        fs::create_dir_all(&wanted).unwrap();
        fs::create_dir(folder.path().join("c")).unwrap();
        let id = fs::metadata(&wanted).unwrap().ino();
        assert_eq!(find(folder.path(), id), Some(wanted));
        assert_eq!(find(folder.path(), u64::MAX), None);
        assert_eq!(Group::find(u64::MAX), None);
    }
}
