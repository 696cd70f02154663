//! A full disk, for real: a tmpfs of 2 MiB, which takes root to mount.

use std::fs::File;
use std::io::Write;
use std::process::Command;

use super::*;

/// A small file system, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m,mode=0700", "rollcall-test"])
            .arg(folder.path())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(folder))
    }

    fn fill(&self) -> PathBuf {
        let ballast = self.0.path().join("ballast");
        let mut file = File::create(&ballast).unwrap();
        while file.write(&[1; 512]).is_ok_and(|written| written > 0) {}
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_full_disk_degrades_and_every_group_is_stored_once_when_there_is_space() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("SKIPPED: a full disk was not tried, because mounting a tmpfs takes root");
        return;
    };
    let directory = disk.0.path().join("state");
    let mut opened = open(&directory);
    for round in 0..3 {
        let first = 1 + 3 * round;
        commit(&mut opened, group(first));
        let ballast = disk.fill();
        let large = Group {
            redo: vec![7; 100_000],
            events: vec![event(i64::try_from(round).unwrap() + 1)],
            records: vec![record(1)],
            ..group(first + 1)
        };
        opened.handle.commit(large).unwrap();
        match wait(&mut opened.outcomes) {
            Outcome::Degraded { reason } => {
                assert!(reason.contains("the disk is full"), "{reason}");
            }
            other => panic!("not degraded: {other:?}"),
        }
        fs::remove_file(ballast).unwrap();
        assert_eq!(wait_committed(&mut opened), first + 1);
        let forget = Group {
            forget_redo_below: Some(0),
            ..group(first + 2)
        };
        commit(&mut opened, forget);
    }
    opened.handle.close().unwrap();

    let opened = open(&directory);
    let ids: Vec<u64> = opened.loaded.redo.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, (1..=9).collect::<Vec<u64>>());
    assert_eq!(events_of(&directory, 0).len(), 3);
    opened.handle.close().unwrap();
}
