//! A disk under the master that takes nothing: full, over its quota, frozen, read-only. No ack for
//! what is not stored, everybody is told, and it recovers by itself where it can.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rollcall_e2e::disk::SmallDisk;
use rollcall_e2e::image::{Image, Kind};
use rollcall_e2e::peer::Identity;
use rollcall_e2e::skip::{require_root_or_skip_loudly, skip_loudly};
use rollcall_e2e::wait::{PATIENCE, watch_for};
use rollcall_e2e::{Master, Peer, wait_until};
use rollcall_protocol::api::Presence;

/// Room for the master and nothing more.
const DISK_MIB: u32 = 4;
/// The same, where a quota sets the limit.
const QUOTA_BYTES: u64 = 8 << 20;
const INTERVAL_MS: u32 = 500;
/// In intervals: a busy machine may take some seconds between two reports.
const MISSING_AFTER: f64 = 9.0;

fn small_disk(test: &str) -> Option<SmallDisk> {
    if !require_root_or_skip_loudly(test) {
        return None;
    }
    let disk = SmallDisk::mount(DISK_MIB);
    if let Err(error) = &disk {
        skip_loudly(test, &format!("a tmpfs can't be mounted here: {error}"));
    }
    disk.ok()
}

fn image(test: &str, kind: Kind) -> Option<Image> {
    if !require_root_or_skip_loudly(test) {
        return None;
    }
    let image = Image::mount(kind);
    if let Err(error) = &image {
        skip_loudly(test, error);
    }
    image.ok()
}

/// What the master says of its trouble.
struct Trouble {
    /// In `/readyz` and in the log.
    reason: &'static str,
    event: &'static str,
    errno: Option<u64>,
}

const FULL: Trouble = Trouble {
    reason: "the disk is full",
    event: "store_degraded",
    errno: Some(28),
};
const OVER_QUOTA: Trouble = Trouble {
    reason: "the disk quota is used up",
    event: "store_degraded",
    errno: Some(122),
};
const READ_ONLY: Trouble = Trouble {
    reason: "read-only",
    event: "store_degraded",
    errno: Some(30),
};
const FROZEN: Trouble = Trouble {
    reason: "stalled: the disk has not taken a commit in time",
    event: "store_stalled",
    errno: None,
};

/// A master on the disk that is mounted at `disk`, and a slave that has reported a few times.
fn set_up(folder: &tempfile::TempDir, disk: &Path) -> (Master, Peer, Identity) {
    let mut master = Master::new(folder.path(), "master");
    let state = disk.join("state");
    master
        .config
        .set("state.directory", state.to_string_lossy().into_owned())
        .set("presence.late_after", MISSING_AFTER - 1.0)
        .set("presence.missing_after", MISSING_AFTER);
    master.start();
    let mut identity = Identity::new("patient", INTERVAL_MS);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    for _ in 0..10 {
        peer.report(&mut identity).expect("an ack");
    }
    // What readers see may be a tenth of a second old.
    master.wait_for_row("patient", "up to date", |row| row.sequence == 10);
    (master, peer, identity)
}

/// Sends a report, and waits until the master says that it can't store it. No ack has come.
fn starve(master: &mut Master, peer: &mut Peer, identity: &mut Identity, trouble: &Trouble) {
    peer.send_report(identity).expect("a connection");
    let reason = master.wait_for_readiness(503).expect("a reason");
    assert!(reason.contains(trouble.reason), "{reason}");
    peer.set_timeout(Duration::from_millis(100))
        .expect("a socket");
    let api = master.api();
    let durable = identity.unacked - 1;
    // Without mercy for what the master itself causes, the slave would be missing.
    let silence = Duration::from_millis(INTERVAL_MS.into()).mul_f64(MISSING_AFTER + 1.0);
    let ack = watch_for(silence, || {
        assert_eq!(api.health().expect("an answer"), 200);
        let row = api.slave("patient").expect("the roll is still served").row;
        assert_eq!(row.presence, Presence::Up);
        assert_eq!(row.sequence, durable, "readers see only what is durable");
        peer.await_ack(identity).ok()
    });
    assert_eq!(ack, None, "an ack for what was not stored");
    peer.set_timeout(PATIENCE).expect("a socket");
    let lines = master.wait_for_events(trouble.event, 1);
    if trouble.errno.is_some() {
        assert!(
            lines[0].text("reason").contains(trouble.reason),
            "{lines:?}"
        );
    }
    assert_eq!(lines[0].number("errno"), trouble.errno, "{lines:?}");
}

/// After the trouble: the ack comes, nothing was lost or counted twice, nobody was blamed.
fn recover(peer: &mut Peer, identity: &mut Identity, master: &Master) {
    peer.await_ack(identity).expect("the ack, after all");
    assert_eq!(master.wait_for_readiness(200), None);
    peer.report(identity).expect("an ack, as before");
    let sent = identity.unacked - 1;
    let row = master.wait_for_row("patient", "up to date", |row| row.sequence == sent);
    assert_eq!((row.applied, row.duplicates, row.gaps), (sent, 0, 0));
    assert_eq!((row.presence, row.reconnects), (Presence::Up, 0));
}

/// All of it is there after a kill.
fn stays_recovered(master: &mut Master, identity: &Identity) {
    let sent = identity.unacked - 1;
    master.kill_and_wait();
    master.start();
    let row = master.wait_for_row("patient", "on the roll", |_| true);
    assert_eq!((row.applied, row.sequence), (sent, sent));
    assert_eq!(master.api().presences("patient").expect("events"), ["up"]);
}

#[test]
fn a_full_disk_is_told_and_survived_without_help() {
    let Some(disk) = small_disk("a full disk under the master") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (mut master, mut peer, mut identity) = set_up(&folder, disk.path());
    for round in 1..=2 {
        let ballast = disk.fill();
        starve(&mut master, &mut peer, &mut identity, &FULL);
        drop(ballast);
        master.wait_for_events("store_recovered", round);
        recover(&mut peer, &mut identity, &master);
    }
    stays_recovered(&mut master, &identity);
}

/// kill -9 while the disk is full: what was acked is there, what was not comes again and is applied
/// once.
#[test]
fn a_kill_on_a_full_disk_loses_nothing_that_was_acked() {
    let Some(disk) = small_disk("a kill -9 of the master on a full disk") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (mut master, mut peer, mut identity) = set_up(&folder, disk.path());
    let acked = identity.unacked - 1;
    let ballast = disk.fill();
    starve(&mut master, &mut peer, &mut identity, &FULL);
    master.kill_and_wait();
    drop(ballast);
    master.start();
    let (mut peer, welcome) = Peer::open(master.address(), &identity).expect("a session");
    assert_eq!(
        welcome.marks[0].sequence, acked,
        "no more than what was acked"
    );
    peer.resend(&identity).expect("a connection");
    peer.await_ack(&mut identity).expect("acks");
    let row = master.wait_for_row("patient", "up to date", |row| row.sequence == acked + 1);
    assert_eq!((row.applied, row.duplicates, row.gaps), (acked + 1, 0, 0));
}

/// A master that is started on a full disk serves the roll as it was, and goes on when there is
/// space.
#[test]
fn a_master_starts_on_a_full_disk() {
    let Some(disk) = small_disk("a start of the master on a full disk") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (mut master, _, mut identity) = set_up(&folder, disk.path());
    let acked = identity.unacked - 1;
    master.kill_and_wait();
    let ballast = disk.fill();
    master.start();
    let row = master.wait_for_row("patient", "on the roll", |_| true);
    assert_eq!((row.applied, row.sequence), (acked, acked));
    // Whether it is degraded depends on what room its files had left.
    drop(ballast);
    wait_until(PATIENCE, "a report to be acked again", || {
        let (mut peer, _) = Peer::open(master.address(), &identity).ok()?;
        peer.report(&mut identity).ok()
    });
    assert_eq!(master.wait_for_readiness(200), None);
}

#[test]
fn a_used_up_quota_is_told_and_survived_without_help() {
    let Some(image) = image("a quota under the master", Kind::Btrfs) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (mut master, mut peer, mut identity) = set_up(&folder, &image.path());
    image.use_up_quota(QUOTA_BYTES);
    starve(&mut master, &mut peer, &mut identity, &OVER_QUOTA);
    image.lift_quota();
    recover(&mut peer, &mut identity, &master);
    stays_recovered(&mut master, &identity);
}

#[test]
fn a_disk_that_hangs_is_told_and_survived_without_help() {
    let Some(image) = image("a frozen disk under the master", Kind::Ext4) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (mut master, mut peer, mut identity) = set_up(&folder, &image.path());
    let frozen = image.freeze();
    starve(&mut master, &mut peer, &mut identity, &FROZEN);
    drop(frozen);
    recover(&mut peer, &mut identity, &master);
    stays_recovered(&mut master, &identity);
}

/// It stays read-only until somebody mounts it again: the roll is served until then, and what was
/// acked is there afterwards.
#[test]
fn a_disk_that_turns_read_only_is_told_and_keeps_what_was_acked() {
    let Some(image) = image("a read-only disk under the master", Kind::Ext4) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (mut master, mut peer, mut identity) = set_up(&folder, &image.path());
    let acked = identity.unacked - 1;
    image.turn_read_only();
    let write = fs::write(image.path().join("probe"), "").expect_err("it is read-only");
    assert_eq!(write.raw_os_error(), Some(30), "EROFS");
    starve(&mut master, &mut peer, &mut identity, &READ_ONLY);
    master.kill_and_wait();
    image.remount();
    master.start();
    let (mut peer, welcome) = Peer::open(master.address(), &identity).expect("a session");
    assert_eq!(welcome.marks[0].sequence, acked, "no more and no less");
    peer.resend(&identity).expect("a connection");
    peer.await_ack(&mut identity).expect("acks");
    stays_recovered(&mut master, &identity);
}
