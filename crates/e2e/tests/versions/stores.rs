//! Stores and spools of every version, and of one that is newer than this.

use std::fs;
use std::path::Path;

use rollcall_e2e::peer::Identity;
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Peer, Slave};
use rollcall_protocol::api::{EventKind, Presence};
use rusqlite::Connection;

use crate::EXIT_STORE;
use crate::content::{content, events, fixtures, restore, roll, versions};

#[test]
fn a_store_of_every_version_is_opened_with_all_that_is_in_it() {
    for version in versions() {
        let content = content(&version);
        let folder = tempfile::tempdir().expect("a folder");
        restore(&version, "master.db", folder.path(), "master-state");
        let mut master = Master::new(folder.path(), "master");
        master.config.set("history.keep", "3650d");
        master.start();
        let api = master.api();
        assert_eq!(roll(&api), content.slaves, "{version:?}");
        assert!(
            content.slaves.iter().any(|slave| slave.gaps > 0),
            "the fixture has a gap"
        );
        let mut events = events(&api);
        events.truncate(content.events.len());
        assert_eq!(events, content.events, "{version:?}");
        let log = master.log();
        assert_eq!(log.events("store_set_aside"), [], "{version:?}");

        // Whoever was there comes back and goes on where it was.
        let last = content.slaves.iter().find(|slave| slave.name == "redo");
        let last = last.expect("a slave called redo");
        let mut identity = Identity::new("redo", 60_000);
        identity.id = u128::from_str_radix(&last.id, 16)
            .expect("an id")
            .to_be_bytes();
        identity.stream = u64::from_str_radix(&last.stream, 16).expect("a stream");
        (identity.next, identity.unacked) = (last.sequence + 1, last.sequence + 1);
        let (mut peer, welcome) = Peer::open(master.address(), &identity).expect("a session");
        assert_eq!(welcome.marks[0].sequence, last.sequence, "{version:?}");
        peer.report(&mut identity).expect("an ack");
        master.wait_for_row("redo", "further", |row| {
            (row.sequence, row.applied, row.duplicates) == (last.sequence + 1, last.applied + 1, 0)
        });
    }
}

#[test]
fn a_spool_of_every_version_is_delivered() {
    for version in versions() {
        let content = content(&version);
        let folder = tempfile::tempdir().expect("a folder");
        restore(&version, "spool.db", folder.path(), "spooled-state");
        let mut master = Master::started(folder.path());
        let mut slave = Slave::new(folder.path(), "spooled", &[master.address()], "200ms");
        // However old the fixture is.
        slave.config.set("spool.age_max", "3650d");
        slave.start();
        let ready = slave.wait_for_event("slave_ready");
        assert_eq!(
            ready.number("backlog"),
            Some(content.spooled.into()),
            "{version:?}"
        );
        assert_eq!(slave.log().events("spool_set_aside"), [], "{version:?}");
        let own = ready.text("stream").to_owned();
        assert_ne!(own, content.spooled_stream);
        master.wait_for_row("spooled", "up to date", |row| {
            row.stream == own && row.sequence >= 2
        });
        assert_eq!(slave.terminate().code(), Some(0));
        let row = master.wait_for_row("spooled", "gone", |row| row.presence == Presence::Left);
        assert_eq!(row.applied, u64::from(content.spooled) + row.sequence);
        assert_eq!((row.gaps, slave.spooled()), (0, Ok(0)), "{version:?}");
        assert_eq!(master.terminate().code(), Some(0));
    }
}

fn newer(path: &Path) -> Vec<u8> {
    let database = Connection::open(path).expect("a database");
    database
        .execute_batch("PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE)")
        .expect("it can be written");
    drop(database);
    fs::read(path).expect("a file")
}

/// A downgrade: nothing is touched, and the message says what to do.
#[test]
fn a_store_of_a_newer_version_is_refused_and_left_alone() {
    let own = fixtures().join(concat!("v", env!("CARGO_PKG_VERSION")));
    let folder = tempfile::tempdir().expect("a folder");
    let path = restore(&own, "master.db", folder.path(), "master-state");
    let before = newer(&path);
    let mut master = Master::new(folder.path(), "master");
    master.spawn();
    assert_eq!(master.wait(PATIENCE).code(), Some(EXIT_STORE));
    let stderr = master.stderr();
    for part in [
        "schema version 99",
        "install the newer rollcall-master again",
        "[state] directory",
        &*path.to_string_lossy(),
    ] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    assert_eq!(fs::read(&path).expect("a file"), before);
}

/// A slave must start in any case: it keeps the spool for the newer version, and says where.
#[test]
fn a_spool_of_a_newer_version_is_kept_aside_for_it() {
    let own = fixtures().join(concat!("v", env!("CARGO_PKG_VERSION")));
    let folder = tempfile::tempdir().expect("a folder");
    let path = restore(&own, "spool.db", folder.path(), "spooled-state");
    let before = newer(&path);
    let master = Master::started(folder.path());
    let mut slave = Slave::new(folder.path(), "spooled", &[master.address()], "200ms");
    slave.start();
    let line = slave.wait_for_event("spool_set_aside");
    let kept = line.text("path");
    assert!(kept.contains("spool.db.newer-"), "{line:?}");
    let reason = line.text("error");
    assert!(reason.contains("version 99"), "{line:?}");
    assert_eq!(fs::read(kept).expect("the spool"), before);
    master.wait_for_row("spooled", "up", |row| row.sequence >= 2);
}

/// The words of the fixtures are those of the API.
#[test]
fn a_fixture_has_every_kind_of_event_that_a_fleet_makes() {
    for version in versions() {
        let content = content(&version);
        for kind in [
            EventKind::Enrolled,
            EventKind::Presence,
            EventKind::Health,
            EventKind::Check,
            EventKind::Gap,
            EventKind::MasterStart,
        ] {
            let has = content
                .events
                .iter()
                .any(|event| event.kind == kind.as_str());
            assert!(has, "{version:?} has no {kind:?}");
        }
    }
}
