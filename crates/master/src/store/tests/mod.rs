//! The store against real files.

mod damage;
mod file_limit;
mod full_disk;
mod history;
mod migration;
mod model;
mod selfcheck;
mod sweep;
mod verify;

use std::path::Path;
use std::time::Duration;

use rollcall_protocol::api::{EventKind, EventRow};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::events::{EventFilter, EventQuery, EventReader};
use super::*;

const KEEP: Retention = Retention {
    keep: Duration::from_secs(90 * 24 * 60 * 60),
    bytes_max: 1 << 30,
};
const PATIENCE: Duration = Duration::from_secs(30);

fn open(directory: &Path) -> Opened {
    Store::open(directory, KEEP).unwrap()
}

/// The next outcome, or a panic after a while.
fn wait(outcomes: &mut mpsc::Receiver<Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(async { timeout(PATIENCE, outcomes.recv()).await })
        .expect("an outcome in time")
        .expect("the store's thread lives")
}

fn wait_committed(opened: &mut Opened) -> u64 {
    match wait(&mut opened.outcomes) {
        Outcome::Committed { id, .. } => id,
        other => panic!("not committed: {other:?}"),
    }
}

fn commit(opened: &mut Opened, group: Group) {
    let id = group.id;
    opened.handle.commit(group).unwrap();
    assert_eq!(wait_committed(opened), id);
}

fn group(id: u64) -> Group {
    Group {
        id,
        redo: vec![u8::try_from(id % 251).unwrap(); 40],
        listening_at_ms: 1_000,
        ..Group::default()
    }
}

fn record(number: u8) -> Record {
    Record {
        id: [number; 16],
        name: format!("slave-{number}"),
        presence: "up",
        health: Some("ok"),
        last_seen_ms: Some(i64::from(number)),
        blob: vec![number; 10],
    }
}

fn event(id: i64) -> EventRow {
    EventRow {
        id,
        time_ms: id * 10,
        recorded_ms: rollcall_os::clock::wall_ms(),
        kind: EventKind::Presence,
        slave: Some("slave-1".to_owned()),
        subject: None,
        from: Some("up".to_owned()),
        to: Some("late".to_owned()),
        text: "no report in time".to_owned(),
        replayed: false,
    }
}

fn events_of(directory: &Path, after: i64) -> Vec<EventRow> {
    let query = EventQuery {
        after: Some(after),
        filter: EventFilter::default(),
        limit: 10_000,
    };
    let mut reader = EventReader::open(&Store::database(directory)).unwrap();
    reader.query(&query).unwrap().events
}

#[test]
fn what_was_committed_is_there_after_a_reopen() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path());
    let master_id = opened.loaded.master_id;
    assert_eq!((opened.loaded.next_group, opened.loaded.next_event), (1, 1));
    assert_eq!(opened.loaded.listening_at_ms, None);

    commit(
        &mut opened,
        Group {
            records: vec![record(1), record(2)],
            events: vec![event(1), event(2)],
            ..group(1)
        },
    );
    commit(&mut opened, group(2));
    commit(
        &mut opened,
        Group {
            records: vec![Record {
                blob: b"anew".to_vec(),
                ..record(2)
            }],
            forgotten: vec![[1; 16]],
            forget_redo_below: Some(2),
            listening_at_ms: 5_000,
            ..group(7)
        },
    );
    opened.handle.close().unwrap();

    let loaded = open(folder.path()).loaded;
    assert_eq!(loaded.master_id, master_id);
    assert_eq!(loaded.records, [([2; 16], b"anew".to_vec())]);
    assert_eq!(loaded.redo, [(2, vec![2; 40]), (7, vec![7; 40])]);
    assert_eq!(loaded.listening_at_ms, Some(5_000));
    assert_eq!((loaded.next_group, loaded.next_event), (8, 3));
    assert_eq!(loaded.set_aside, None);
    assert_eq!(events_of(folder.path(), 0).len(), 2);
}

#[test]
fn a_group_that_was_cut_off_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = Store::database(folder.path());
    let begun = Group {
        records: vec![record(1)],
        events: vec![event(1)],
        ..group(1)
    };
    {
        let mut database = schema::open(&path).unwrap();
        let transaction = database.connection.transaction().unwrap();
        thread::write(&transaction, &begun).unwrap();
        // Neither committed nor closed in an orderly way: as the kernel leaves it after a kill.
        std::mem::forget(transaction);
        std::mem::forget(database);
    }
    let copy = tempfile::tempdir().unwrap();
    for name in ["master.db", "master.db-wal"] {
        fs::copy(folder.path().join(name), copy.path().join(name)).unwrap();
    }

    let mut opened = open(copy.path());
    assert_eq!(opened.loaded.next_group, 1);
    assert!(opened.loaded.records.is_empty() && opened.loaded.redo.is_empty());
    commit(&mut opened, begun);
    assert_eq!(events_of(copy.path(), 0).len(), 1);
}

#[test]
fn a_group_that_cannot_be_stored_is_stored_in_no_part() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path());
    commit(
        &mut opened,
        Group {
            events: vec![event(1)],
            ..group(1)
        },
    );
    let doubled = Group {
        records: vec![record(1)],
        events: vec![event(2), event(1)],
        ..group(2)
    };
    opened.handle.commit(doubled).unwrap();
    let outcome = wait(&mut opened.outcomes);
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    opened.handle.close().unwrap();

    let loaded = open(folder.path()).loaded;
    assert!(loaded.records.is_empty());
    assert_eq!(loaded.redo.len(), 1);
    assert_eq!((loaded.next_group, loaded.next_event), (2, 2));
}

#[test]
fn a_lock_held_by_somebody_else_degrades_and_passes() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path());
    let other = rusqlite::Connection::open(Store::database(folder.path())).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    opened.handle.commit(group(1)).unwrap();
    match wait(&mut opened.outcomes) {
        Outcome::Degraded { reason } => {
            assert!(reason.contains("another program holds a lock"), "{reason}");
        }
        other => panic!("not degraded: {other:?}"),
    }
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(wait_committed(&mut opened), 1);
    opened.handle.close().unwrap();
    assert_eq!(open(folder.path()).loaded.redo.len(), 1);
}

#[test]
fn a_store_that_is_degraded_can_be_closed() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path());
    let other = rusqlite::Connection::open(Store::database(folder.path())).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    opened.handle.commit(group(1)).unwrap();
    let outcome = wait(&mut opened.outcomes);
    assert!(matches!(outcome, Outcome::Degraded { .. }), "{outcome:?}");
    opened.handle.close().unwrap();
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(open(folder.path()).loaded.next_group, 1);
}

#[test]
fn a_second_group_in_flight_ends_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path());
    let other = rusqlite::Connection::open(Store::database(folder.path())).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    opened.handle.commit(group(1)).unwrap();
    opened.handle.commit(group(2)).unwrap();
    wait(&mut opened.outcomes);
    match wait(&mut opened.outcomes) {
        Outcome::Failed { error } => assert_eq!(
            error.to_string(),
            "group 2 was handed over before the outcome of group 1"
        ),
        other => panic!("not failed: {other:?}"),
    }
}

#[test]
fn a_newer_schema_and_a_foreign_database_are_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = Store::database(folder.path());
    open(folder.path()).handle.close().unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.pragma_update(None, "user_version", 99).unwrap();
    let message = Store::open(folder.path(), KEEP).unwrap_err().to_string();
    assert!(
        message.contains("schema version 99") && message.contains("up to 2"),
        "{message}"
    );
    drop(other);
    fs::remove_file(&path).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .execute_batch("CREATE TABLE t (x); PRAGMA application_id = 7")
        .unwrap();
    let message = Store::open(folder.path(), KEEP).unwrap_err().to_string();
    assert!(message.contains("not Rollcall's database"), "{message}");
    assert_eq!(
        fs::read_dir(folder.path())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().extension() == Some("db".as_ref()))
            .count(),
        1
    );
}

#[test]
fn a_second_master_is_refused_and_told_who_holds_the_directory() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let message = Store::open(folder.path(), KEEP).unwrap_err().to_string();
    let pid = format!("pid {}", std::process::id());
    assert!(message.contains(&pid), "{message}");
    first.handle.close().unwrap();
    open(folder.path());
}

#[test]
fn a_successor_waits_for_a_holder_that_is_dying() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let folder = tempfile::tempdir().unwrap();
    let lock = folder.path().join("master.lock");
    let mut holder = Command::new("sh")
        .args([
            "-c",
            r#"exec 9<>"$0"; flock 9; echo $$ >&9; echo held; read -r end"#,
        ])
        .arg(&lock)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut held = String::new();
    let mut output = BufReader::new(holder.stdout.take().unwrap());
    output.read_line(&mut held).unwrap();
    assert_eq!(held, "held\n");

    let path = folder.path().to_owned();
    let successor = std::thread::spawn(move || Store::open(&path, KEEP).map(drop));
    holder.kill().unwrap();
    successor.join().unwrap().unwrap();
    holder.wait().unwrap();
}
