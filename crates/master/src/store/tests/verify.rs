//! What `--verify-store` says.

use std::os::unix::fs::FileExt;

use super::*;

const INSPECT: Inspect = Inspect {
    record: |blob| match blob {
        b"torn" => Err("it is torn".to_owned()),
        blob => Ok(u64::from(blob[0])),
    },
    redo: |blob| Ok(blob.len()),
};

fn filled() -> (tempfile::TempDir, Opened) {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path());
    commit(
        &mut opened,
        Group {
            records: vec![record(1)],
            events: (1..=3).map(event).collect(),
            ..group(1)
        },
    );
    (folder, opened)
}

#[test]
fn a_sound_store_is_told_in_numbers_also_while_a_master_runs() {
    let (folder, mut opened) = filled();
    let told = verify(folder.path(), INSPECT).unwrap();
    let text = told.to_string();
    // Group 1 holds a record that says group 1.
    assert!(told.is_sound() && text.contains("verdict: sound"), "{text}");
    for line in [
        "  version    2\n",
        "  next       group 2, event 4\n",
        "  slaves     1\n",
        "  redo       1 groups with 40 inputs\n",
        "  events     3\n",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    commit(&mut opened, group(2));
    opened.handle.close().unwrap();
    assert!(verify(folder.path(), INSPECT).unwrap().is_sound());
}

#[test]
fn what_does_not_fit_is_told_row_by_row() {
    let (folder, opened) = filled();
    let other = rusqlite::Connection::open(Store::database(folder.path())).unwrap();
    other
        .execute_batch("UPDATE events SET text = 'x' WHERE id = 2")
        .unwrap();
    opened.handle.close().unwrap();
    drop(other);
    let mut opened = open(folder.path());
    let torn = Record {
        blob: b"torn".to_vec(),
        ..record(2)
    };
    let early = Record {
        blob: vec![9],
        ..record(3)
    };
    commit(
        &mut opened,
        Group {
            records: vec![torn, early],
            ..group(2)
        },
    );
    opened.handle.close().unwrap();
    let text = verify(folder.path(), INSPECT).unwrap().to_string();
    for line in [
        "verdict: DAMAGED, 3 faults",
        "event 2 fails its checksum",
        "the record of \"slave-2\": it is torn",
        "the record of \"slave-3\" is of group 9, and the next one is 3",
        "remedy: `touch ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn damaged_pages_are_told_and_the_remedy_helps() {
    let (folder, opened) = filled();
    opened.handle.close().unwrap();
    let path = Store::database(folder.path());
    let file = fs::File::options().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    for page in 2..length / 4096 {
        file.write_all_at(&[0xee; 8], page * 4096).unwrap();
    }
    let told = verify(folder.path(), INSPECT).unwrap();
    assert!(!told.is_sound(), "{told}");
    assert!(path.exists());
    fs::write(folder.path().join("master.db.suspect"), b"").unwrap();
    let opened = open(folder.path());
    assert!(opened.loaded.set_aside.is_some());
    opened.handle.close().unwrap();
    let told = verify(folder.path(), INSPECT).unwrap();
    assert!(told.is_sound(), "{told}");
    assert!(told.to_string().contains("1 damaged databases"), "{told}");
}

#[test]
fn nothing_to_verify_and_something_else_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let error = verify(folder.path(), INSPECT).unwrap_err().to_string();
    assert!(error.contains("there is no store at"), "{error}");
    let (folder, opened) = filled();
    opened.handle.close().unwrap();
    let path = Store::database(folder.path());
    let other = rusqlite::Connection::open(&path).unwrap();
    other.pragma_update(None, "user_version", 99).unwrap();
    let error = verify(folder.path(), INSPECT).unwrap_err();
    assert!(matches!(error, StoreError::Newer { .. }), "{error}");
}
