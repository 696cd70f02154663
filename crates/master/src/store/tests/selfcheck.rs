//! What `--selfcheck` finds, while a master runs and without it.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use super::migration::VERSION_1;
use super::*;
use crate::store::selfcheck::header;

/// All files of a folder and what is in them, but for the index of the log, which readers take part in.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.extension() != Some("db-shm".as_ref()));
    paths
        .map(|path| {
            let bytes = fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

fn whole(folder: &Path) -> (i64, Loaded) {
    match look(folder).unwrap() {
        Look::Whole { version, loaded } => (version, *loaded),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_finds_what_a_start_loads_beside_a_running_master_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(look(folder.path()).unwrap(), Look::Nothing));
    assert!(content(folder.path()).is_empty());
    let absent = folder.path().join("absent");
    assert!(matches!(look(&absent).unwrap(), Look::Nothing));
    let mut opened = open(folder.path());
    for id in 1..=3 {
        commit(
            &mut opened,
            Group {
                records: vec![record(u8::try_from(id).unwrap())],
                ..group(id)
            },
        );
    }
    let before = content(folder.path());
    let (version, found) = whole(folder.path());
    assert_eq!(version, LAYOUT);
    assert_eq!(content(folder.path()), before);
    // The writer is not held up.
    commit(&mut opened, group(4));
    opened.handle.close().unwrap();
    let (_, later) = whole(folder.path());
    assert_eq!((found.redo.len(), later.redo.len()), (3, 4));
    let loaded = open(folder.path()).loaded;
    assert_eq!(later.records, loaded.records);
    assert_eq!(later.redo, loaded.redo);
    assert_eq!(later.next_group, loaded.next_group);
}

#[test]
fn an_older_layout_is_read_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let old = rusqlite::Connection::open(Store::database(folder.path())).unwrap();
    old.execute_batch(VERSION_1).unwrap();
    drop(old);
    let before = content(folder.path());
    let (version, found) = whole(folder.path());
    assert_eq!(version, 1);
    assert_eq!(content(folder.path()), before);
    let loaded = open(folder.path()).loaded;
    assert_eq!(
        (found.records, found.redo, found.next_group),
        (loaded.records, loaded.redo, loaded.next_group)
    );
}

#[test]
fn what_a_start_would_refuse_or_set_aside_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = Store::database(folder.path());
    let mut opened = open(folder.path());
    commit(
        &mut opened,
        Group {
            records: vec![record(1)],
            ..group(1)
        },
    );
    opened.handle.close().unwrap();
    let sound = fs::read(&path).unwrap();

    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .execute_batch("UPDATE redo SET reports = x'00'")
        .unwrap();
    drop(other);
    let error = look(folder.path()).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");

    fs::write(&path, &sound).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other
        .pragma_update(None, "user_version", LAYOUT + 1)
        .unwrap();
    drop(other);
    let error = look(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { .. }), "{error}");

    fs::write(&path, &sound).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0xee; 4096], 4096).unwrap();
    let error = look(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("--verify-store"), "{error}");

    fs::write(&path, b"").unwrap();
    let error = look(folder.path()).unwrap_err();
    assert!(error.to_string().contains("its file is empty"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"", "nothing is set aside");
}

/// All that can be read of a store whose log only another process can look into.
#[test]
fn the_header_alone_tells_a_newer_layout() {
    let folder = tempfile::tempdir().unwrap();
    let path = Store::database(folder.path());
    open(folder.path()).handle.close().unwrap();
    assert_eq!(header(&path).unwrap(), LAYOUT);
    let set = |name: &str, value: i64| {
        let other = rusqlite::Connection::open(&path).unwrap();
        other.pragma_update(None, "journal_mode", "delete").unwrap();
        other.pragma_update(None, name, value).unwrap();
    };
    set("user_version", LAYOUT + 1);
    let error = header(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { .. }), "{error}");
    set("application_id", 7);
    let error = header(&path).unwrap_err();
    assert!(error.to_string().contains("application id 0x7"), "{error}");
}
