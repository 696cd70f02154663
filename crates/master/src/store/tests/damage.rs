//! A damaged database is set aside, and the roll goes on.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use super::*;

fn set_aside(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some("db".as_ref()) && !path.ends_with("master.db"))
        .collect()
}

#[test]
fn a_file_that_is_no_database_is_set_aside_whole() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = vec![b'x'; 100_000];
    fs::write(Store::database(folder.path()), &garbage).unwrap();
    let mut opened = open(folder.path());
    let aside = opened.loaded.set_aside.clone().unwrap();
    assert_eq!(set_aside(folder.path()), [aside.as_path()]);
    assert_eq!(fs::read(&aside).unwrap(), garbage);
    let name = aside.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("master.not-a-database-2"), "{name}");
    commit(&mut opened, group(1));
    opened.handle.close().unwrap();
    assert_eq!(open(folder.path()).loaded.set_aside, None);
}

#[test]
fn a_database_whose_making_was_cut_short_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = Store::database(folder.path());
    fs::write(&path, b"").unwrap();
    fs::write(path.with_extension("db-journal"), b"").unwrap();
    assert_eq!(open(folder.path()).loaded.set_aside, None);
}

#[test]
fn damage_that_a_write_meets_ends_the_store_and_the_next_start_rescues_the_roll() {
    let folder = tempfile::tempdir().unwrap();
    let path = Store::database(folder.path());
    let mut opened = open(folder.path());
    let master_id = opened.loaded.master_id;
    commit(
        &mut opened,
        Group {
            records: vec![record(1), record(2)],
            events: (1..=100).map(event).collect(),
            listening_at_ms: 77,
            // Too large a file to be checked whole at a start.
            redo: vec![1; 17 << 20],
            ..group(1)
        },
    );
    opened.handle.close().unwrap();
    spoil_page(&path, "events_by_time");

    let mut opened = open(folder.path());
    assert_eq!(opened.loaded.set_aside, None);
    let second = Group {
        events: vec![event(101)],
        ..group(2)
    };
    opened.handle.commit(second).unwrap();
    let outcome = wait(&mut opened.outcomes);
    assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
    opened.handle.close().unwrap();

    let mut opened = open(folder.path());
    let aside = opened.loaded.set_aside.clone().unwrap();
    assert_eq!(set_aside(folder.path()), [aside]);
    assert_eq!(opened.loaded.master_id, master_id);
    assert_eq!(opened.loaded.records.len(), 2);
    assert_eq!(opened.loaded.redo, [(1, vec![1; 17 << 20])]);
    assert_eq!(opened.loaded.listening_at_ms, Some(77));
    assert_eq!(
        (opened.loaded.next_group, opened.loaded.next_event),
        (2, 101)
    );
    commit(
        &mut opened,
        Group {
            events: vec![event(101)],
            ..group(2)
        },
    );
    opened.handle.close().unwrap();
    assert_eq!(open(folder.path()).loaded.set_aside, None);
}

/// Overwrites the root page of a table or an index.
fn spoil_page(path: &Path, table: &str) {
    let connection = rusqlite::Connection::open(path).unwrap();
    let page: u64 = connection
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = ?1",
            [table],
            |row| row.get::<_, i64>(0),
        )
        .map(|page| page.try_into().unwrap())
        .unwrap();
    let size: i64 = connection
        .pragma_query_value(None, "page_size", |row| row.get(0))
        .unwrap();
    connection.close().unwrap();
    let size = u64::try_from(size).unwrap();
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start((page - 1) * size)).unwrap();
    file.write_all(&vec![0xff; usize::try_from(size).unwrap()])
        .unwrap();
}
