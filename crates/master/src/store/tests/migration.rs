//! Stores of older layouts, as their builds left them.

use super::*;

/// What version 1 wrote, kept here as it was.
pub(super) const VERSION_1: &str = "
CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), master_id BLOB NOT NULL CHECK (length(master_id) = 16),
    listening_at_ms INTEGER, next_group INTEGER NOT NULL, next_event INTEGER NOT NULL) STRICT;
CREATE TABLE slaves (id BLOB PRIMARY KEY CHECK (length(id) = 16), name TEXT NOT NULL, presence TEXT NOT NULL,
    health TEXT, last_seen_ms INTEGER, record BLOB NOT NULL) STRICT;
CREATE TABLE redo (group_id INTEGER PRIMARY KEY, reports BLOB NOT NULL) STRICT;
CREATE TABLE events (id INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, recorded_ms INTEGER NOT NULL, kind TEXT NOT NULL,
    slave TEXT, subject TEXT, from_state TEXT, to_state TEXT, text TEXT NOT NULL, replayed INTEGER NOT NULL) STRICT;
CREATE INDEX events_by_time ON events (time_ms);
CREATE INDEX events_by_slave ON events (slave, id);
INSERT INTO state VALUES (1, x'000102030405060708090a0b0c0d0e0f', 77, 9, 4);
INSERT INTO slaves VALUES (x'01010101010101010101010101010101', 'slave-1', 'up', NULL, 5, x'aabb');
INSERT INTO redo VALUES (7, x'0102'), (8, x'03');
INSERT INTO events VALUES (3, 30, 9000000000000, 'presence', 'slave-1', NULL, 'up', 'late', 'late', 0);
PRAGMA application_id = 1380928588;
PRAGMA user_version = 1;";

fn backups(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension() == Some("backup".as_ref()))
        .collect()
}

fn is_version_1(loaded: &Loaded) -> bool {
    loaded.master_id.iter().copied().eq(0..16)
        && loaded.records == [([1; 16], vec![0xaa, 0xbb])]
        && loaded.redo == [(7, vec![1, 2]), (8, vec![3])]
        && loaded.listening_at_ms == Some(77)
        && (loaded.next_group, loaded.next_event) == (9, 4)
        && loaded.set_aside.is_none()
}

#[test]
fn a_store_of_version_1_is_backed_up_and_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = Store::database(folder.path());
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(&format!("PRAGMA journal_mode = wal; {VERSION_1}"))
        .unwrap();
    // A reader keeps the old log from being folded in, so the backup must look into it.
    let mut opened = open(folder.path());
    drop(old);
    assert!(is_version_1(&opened.loaded), "{:?}", opened.loaded);
    commit(
        &mut opened,
        Group {
            events: vec![event(4)],
            ..group(9)
        },
    );
    opened.handle.close().unwrap();
    let stored = events_of(folder.path(), 0);
    assert_eq!(stored.len(), 2);
    assert_eq!((stored[0].id, stored[0].text.as_str()), (3, "late"));

    let [backup] = <[_; 1]>::try_from(backups(folder.path())).unwrap();
    let name = backup.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("master.db.v1-2"), "{name}");
    let old = rusqlite::Connection::open(&backup).unwrap();
    let version: i64 = old
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    let rows: i64 = old
        .query_row("SELECT count(*) FROM redo", [], |row| row.get(0))
        .unwrap();
    assert_eq!((version, rows), (1, 2));

    // Once is enough.
    let again = open(folder.path());
    assert_eq!(again.loaded.redo.len(), 3);
    assert_eq!(backups(folder.path()).len(), 1);
    again.handle.close().unwrap();

    // The backup is a store as well as any.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::copy(&backup, Store::database(elsewhere.path())).unwrap();
    let opened = open(elsewhere.path());
    assert!(is_version_1(&opened.loaded), "{:?}", opened.loaded);
    opened.handle.close().unwrap();
}

#[test]
fn a_new_store_needs_no_backup() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).handle.close().unwrap();
    assert!(backups(folder.path()).is_empty());
}

#[test]
fn without_a_backup_nothing_is_migrated() {
    let folder = tempfile::tempdir().unwrap();
    let path = Store::database(folder.path());
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(VERSION_1).unwrap();
    drop(old);
    // Names as long as the file system takes leave none for the backup.
    let long = "x".repeat(230);
    let path_long = folder.path().join(long);
    fs::rename(&path, &path_long).unwrap();
    let error = schema::open(&path_long).unwrap_err();
    assert!(matches!(error, StoreError::Backup { .. }), "{error}");
    assert!(error.to_string().contains("make room"), "{error}");
    fs::rename(&path_long, &path).unwrap();
    let opened = open(folder.path());
    assert!(is_version_1(&opened.loaded), "{:?}", opened.loaded);
    opened.handle.close().unwrap();
}
