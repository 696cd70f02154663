//! The spool's rules one by one; `model_tests` checks them against each other.

mod damage;
mod layouts;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rollcall_protocol::wire::{self, GapReason};

use super::queue::{GivenUp, Queue, Room};
use super::{BEFORE_ALL, Body, Entry, Folder, Spool, SpoolError, SpoolLimits};

pub(super) const NOW_MS: i64 = 1_795_320_900_000;

pub(super) const UNBOUNDED: SpoolLimits = SpoolLimits {
    bytes_max: u64::MAX,
    age_max: Duration::from_secs(1_000_000),
    free_bytes_min: 0,
};

pub(super) const ROOMY: Room = Room {
    now_ms: NOW_MS,
    free_bytes: None,
};

fn open(directory: &Path, limits: SpoolLimits) -> Queue {
    Queue::open(Folder::lock(directory).unwrap(), limits, NOW_MS).unwrap()
}

fn report(health: i32) -> wire::Report {
    wire::Report {
        time_ms: NOW_MS,
        health,
        ..wire::Report::default()
    }
}

fn append(queue: &mut Queue, healths: &[i32]) {
    for &health in healths {
        queue.append(&[report(health)], ROOMY).unwrap();
    }
}

/// "3" for the report with that sequence, "4-6" for a gap.
fn shown(entries: &[Entry]) -> Vec<String> {
    let show = |entry: &Entry| match &entry.body {
        Body::Report(report) => report.sequence.to_string(),
        Body::Gap(gap) => format!("{}-{}", gap.first, gap.last),
    };
    entries.iter().map(show).collect()
}

fn all(queue: &mut Queue) -> Vec<String> {
    shown(&queue.read_after(BEFORE_ALL, 1000).unwrap())
}

/// Plants a row that no build writes: the next append finds it, and nothing else does.
pub(crate) fn damage(directory: &Path) {
    let connection = rusqlite::Connection::open(directory.join("spool.db")).unwrap();
    let sql = "INSERT INTO entries VALUES (0, 5, 1, 1, NULL, 0, 0, 0, -1, x'')";
    assert_eq!(connection.execute(sql, []), Ok(1));
}

fn own_stream(queue: &Queue) -> u64 {
    queue.standing().unwrap().stream
}

#[test]
fn reports_come_back_in_order_and_acks_take_them_out() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = open(directory.path(), UNBOUNDED);
    append(&mut queue, &[0, 1, 2]);
    let stream = own_stream(&queue);
    let entries = queue.read_after(BEFORE_ALL, 2).unwrap();
    let expected = wire::Report {
        stream,
        sequence: 1,
        ..report(0)
    };
    assert_eq!(entries[0].body, Body::Report(expected));
    assert_eq!(shown(&entries), ["1", "2"]);
    assert_eq!(shown(&queue.read_after(entries[1].id, 2).unwrap()), ["3"]);

    queue.acked(stream, 2).unwrap();
    assert_eq!(all(&mut queue), ["3"]);
    assert_eq!(queue.totals().reports, 1);
    assert_eq!(shown(queue.newest().unwrap().as_slice()), ["3"]);
    queue.acked(stream, 3).unwrap();
    assert_eq!(queue.newest().unwrap(), None);
    // Nothing is left, and what comes next goes on from there.
    append(&mut queue, &[0]);
    assert_eq!(all(&mut queue), ["4"]);
    let standing = queue.standing().unwrap();
    assert_eq!((standing.next_sequence, standing.backlog), (5, 1));
    assert_eq!(standing.pending, [wire::Pending { stream, first: 4 }]);
}

#[test]
fn an_ack_for_what_was_never_sent_swallows_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = open(directory.path(), UNBOUNDED);
    let stream = own_stream(&queue);
    queue.acked(stream, 1000).unwrap();
    append(&mut queue, &[0]);
    assert_eq!(all(&mut queue), ["1"]);
}

#[test]
fn each_start_begins_a_stream_and_the_old_one_stays() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = open(directory.path(), UNBOUNDED);
    append(&mut queue, &[0, 0]);
    let first = queue.standing().unwrap();
    queue.acked(first.stream, 1).unwrap();
    queue.flush().unwrap();
    drop(queue);

    let mut queue = open(directory.path(), UNBOUNDED);
    append(&mut queue, &[0]);
    let second = queue.standing().unwrap();
    assert_eq!(second.slave_id, first.slave_id);
    assert_ne!(second.stream, first.stream);
    let pending = [(first.stream, 2), (second.stream, 1)]
        .map(|(stream, first)| wire::Pending { stream, first });
    assert_eq!(second.pending, pending);
    assert_eq!(all(&mut queue), ["2", "1"]);
}

#[test]
fn of_more_streams_than_hello_may_name_the_oldest_come_first() {
    let directory = tempfile::tempdir().unwrap();
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut queue = open(directory.path(), UNBOUNDED);
        append(&mut queue, &[0]);
        streams.push(own_stream(&queue));
    }
    let queue = open(directory.path(), UNBOUNDED);
    let named: Vec<u64> = queue
        .standing()
        .unwrap()
        .pending
        .iter()
        .map(|p| p.stream)
        .collect();
    streams.truncate(31);
    streams.push(own_stream(&queue));
    assert_eq!(named, streams);
}

#[test]
fn repeats_go_before_changes_and_the_newest_stays() {
    let directory = tempfile::tempdir().unwrap();
    let size = {
        let mut queue = open(directory.path(), UNBOUNDED);
        append(&mut queue, &[1]);
        queue.totals().bytes
    };
    let directory = tempfile::tempdir().unwrap();
    let limits = SpoolLimits {
        bytes_max: 7 * size,
        ..UNBOUNDED
    };
    let mut queue = open(directory.path(), limits);
    // 1 and 4 are changes, the others repeat.
    append(&mut queue, &[1, 1, 1, 2, 2, 2, 2]);
    assert_eq!(all(&mut queue), ["1", "2", "3", "4", "5", "6", "7"]);
    // Read from the beginning: what was handed out is not merged with what was not.
    queue.read_after(BEFORE_ALL, 0).unwrap();
    append(&mut queue, &[2]);
    assert_eq!(all(&mut queue), ["1", "2-3", "4", "5", "6", "7", "8"]);
    queue.read_after(BEFORE_ALL, 0).unwrap();
    queue.set_limits(SpoolLimits {
        bytes_max: 0,
        ..limits
    });
    append(&mut queue, &[1]);
    assert_eq!(all(&mut queue), ["1-8", "9"]);
    assert_eq!(queue.totals().reports, 1);
    let entries = queue.read_after(BEFORE_ALL, 1).unwrap();
    let Body::Gap(gap) = &entries[0].body else {
        panic!("{entries:?}");
    };
    assert_eq!(gap.reason(), GapReason::SpoolFull);
    assert_eq!((gap.from_ms, gap.to_ms), (NOW_MS, NOW_MS));
}

#[test]
fn a_gap_that_was_handed_out_does_not_grow() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = open(directory.path(), UNBOUNDED);
    append(&mut queue, &[0, 0, 0, 0, 0]);
    let handed_out = queue.read_after(BEFORE_ALL, 2).unwrap();
    queue.set_limits(SpoolLimits {
        bytes_max: 0,
        ..UNBOUNDED
    });
    append(&mut queue, &[0]);
    assert_eq!(
        shown(&queue.read_after(handed_out[1].id, 9).unwrap()),
        ["3-5", "6"]
    );
    // An ack inside a gap leaves the rest of it.
    queue.acked(own_stream(&queue), 4).unwrap();
    assert_eq!(all(&mut queue), ["5-5", "6"]);
    queue.flush().unwrap();
    assert_eq!(all(&mut queue), ["5-5", "6"]);
}

#[test]
fn old_reports_expire_unless_the_clock_was_not_set() {
    let directory = tempfile::tempdir().unwrap();
    let limits = SpoolLimits {
        age_max: Duration::from_secs(60),
        ..UNBOUNDED
    };
    let mut queue = open(directory.path(), limits);
    let aged = |time_ms| wire::Report {
        time_ms,
        ..wire::Report::default()
    };
    for time_ms in [NOW_MS - 59_000, 5000] {
        queue.append(&[aged(time_ms)], ROOMY).unwrap();
    }
    let later = Room {
        now_ms: NOW_MS + 2000,
        ..ROOMY
    };
    let given_up = queue.append(&[aged(NOW_MS)], later).unwrap();
    assert_eq!(
        given_up,
        GivenUp {
            expired: 1,
            full: 0
        }
    );
    assert_eq!(all(&mut queue), ["1-1", "2", "3"]);
}

#[test]
fn the_floor_of_free_space_takes_as_much_as_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let limits = SpoolLimits {
        free_bytes_min: 1000,
        ..UNBOUNDED
    };
    let mut queue = open(directory.path(), limits);
    append(&mut queue, &[0; 10]);
    let short = Room {
        free_bytes: Some(1000 - 1),
        ..ROOMY
    };
    let given_up = queue.append(&[report(0)], short).unwrap();
    assert_eq!(
        given_up,
        GivenUp {
            expired: 0,
            full: 1
        }
    );
    assert_eq!(queue.totals().reports, 10);
}

#[test]
fn a_stream_is_moved_with_its_gaps() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = open(directory.path(), UNBOUNDED);
    append(&mut queue, &[0, 0, 1, 0, 0]);
    let old = own_stream(&queue);
    let entries = queue.read_after(BEFORE_ALL, 9).unwrap();
    queue.read_after(BEFORE_ALL, 0).unwrap();
    queue.give_up(entries[2].id, GapReason::Unknown).unwrap();
    queue.acked(old, 1).unwrap();
    let new = queue.restream(old).unwrap();
    assert_eq!(own_stream(&queue), new);
    assert_eq!(all(&mut queue), ["1", "2-2", "3", "4"]);
    append(&mut queue, &[0]);
    assert_eq!(all(&mut queue).last().unwrap(), "5");
    let standing = queue.standing().unwrap();
    assert_eq!(
        standing.pending,
        [wire::Pending {
            stream: new,
            first: 1
        }]
    );
    assert_eq!((standing.next_sequence, standing.backlog), (6, 4));
}

#[test]
fn what_is_deleted_shrinks_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = open(directory.path(), UNBOUNDED);
    let large = wire::Report {
        status: Some(wire::Status {
            checks: vec![wire::Check {
                text: "x".repeat(30_000),
                ..wire::Check::default()
            }],
        }),
        ..report(0)
    };
    for _ in 0..100 {
        queue.append(std::slice::from_ref(&large), ROOMY).unwrap();
    }
    queue.acked(own_stream(&queue), 100).unwrap();
    queue.flush().unwrap();
    drop(queue);
    let bytes = fs::metadata(directory.path().join("spool.db"))
        .unwrap()
        .len();
    assert!(bytes < 1_200_000, "{bytes} bytes left of 3 MB");
}

#[tokio::test]
async fn the_handle_tells_of_new_reports_and_lets_go_of_the_folder() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, ended) = Spool::open(directory.path(), UNBOUNDED).unwrap();
    let mut newest = spool.watch_newest();
    newest.mark_unchanged();
    assert!(matches!(
        Spool::open(directory.path(), UNBOUNDED),
        Err(SpoolError::InUse { .. })
    ));
    assert!(spool.append(report(0)).await.unwrap());
    newest.changed().await.unwrap();
    let entry = spool.newest().await.unwrap().unwrap();
    assert_eq!(*newest.borrow(), entry.id);
    drop(spool);
    ended.await.unwrap().unwrap();
    let (spool, _ended) = Spool::open(directory.path(), UNBOUNDED).unwrap();
    assert_eq!(spool.standing().await.unwrap().backlog, 1);
}

#[tokio::test]
async fn a_database_that_is_damaged_while_in_use_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _ended) = Spool::open(directory.path(), UNBOUNDED).unwrap();
    let large = wire::Report {
        status: Some(wire::Status {
            checks: vec![wire::Check {
                text: "x".repeat(20_000),
                ..wire::Check::default()
            }],
        }),
        ..report(0)
    };
    // More than the cache and the log hold.
    for _ in 0..100 {
        assert!(spool.append(large.clone()).await.unwrap());
    }
    let before = spool.standing().await.unwrap();
    let database = directory.path().join("spool.db");
    let file = fs::OpenOptions::new().write(true).open(database).unwrap();
    file.write_all_at(&[0xff; 1_000_000], 4096).unwrap();
    let read = spool.read_after(BEFORE_ALL, 1000).await;
    assert!(matches!(read, Err(SpoolError::Replaced)), "{read:?}");
    let after = spool.standing().await.unwrap();
    assert_eq!(after.slave_id, before.slave_id);
    assert_ne!(after.stream, before.stream);
    assert!(spool.append(report(1)).await.unwrap());
    let newest = spool.newest().await.unwrap().unwrap();
    assert_eq!(shown(&[newest]), ["1"]);
}

/// The folder is a file system of its own that is filled up; needs root for the mount.
#[tokio::test]
async fn a_full_disk_holds_reports_back_until_there_is_space() {
    let directory = tempfile::tempdir().unwrap();
    let Some(_mount) = TinyDisk::mount(directory.path()) else {
        eprintln!("SKIPPED: a full disk can only be made by root");
        return;
    };
    let (spool, ended) = Spool::open(directory.path(), UNBOUNDED).unwrap();
    assert!(spool.append(report(0)).await.unwrap());
    let filler = directory.path().join("filler");
    fs::write(&filler, vec![0; 8 << 20]).unwrap_err();
    let big = wire::Report {
        status: Some(wire::Status {
            checks: vec![wire::Check {
                text: "x".repeat(60_000),
                ..wire::Check::default()
            }],
        }),
        ..report(1)
    };
    let mut stored = 0;
    while spool.append(big.clone()).await.unwrap() {
        stored += 1;
        assert!(stored < 1000, "the disk never got full");
    }
    // What was committed can still be read and acked.
    let backlog = spool.standing().await.unwrap().backlog;
    assert_eq!(backlog, stored + 1);
    fs::remove_file(&filler).unwrap();
    let mut newest = spool.watch_newest();
    newest.mark_unchanged();
    let recovered = tokio::time::timeout(Duration::from_secs(20), newest.changed());
    recovered
        .await
        .expect("stored when there is space")
        .unwrap();
    assert_eq!(spool.standing().await.unwrap().backlog, backlog + 1);
    drop(spool);
    ended.await.unwrap().unwrap();
}

struct TinyDisk<'a>(&'a Path);

impl<'a> TinyDisk<'a> {
    fn mount(path: &'a Path) -> Option<Self> {
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(path)
            .output();
        mounted
            .is_ok_and(|output| output.status.success())
            .then_some(Self(path))
    }
}

impl Drop for TinyDisk<'_> {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0)
            .status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}
