//! Damage at any place: what a start makes of it is what was there, or a part of it that is told.
//! Never a panic, never a wrong answer.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::*;

const PAGE: u64 = 4096;

/// In memory if it can be had: hundreds of stores are made, and no power is lost here.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Everything that a store held.
#[derive(Debug, Default)]
struct Content {
    records: BTreeMap<[u8; 16], Vec<u8>>,
    redo: BTreeMap<u64, Vec<u8>>,
    events: BTreeMap<i64, EventRow>,
    next: (u64, i64),
}

impl Content {
    fn of(directory: &Path, loaded: &Loaded) -> (Self, u64) {
        let mut content = Self {
            records: loaded.records.iter().cloned().collect(),
            redo: loaded.redo.iter().cloned().collect(),
            next: (loaded.next_group, loaded.next_event),
            ..Self::default()
        };
        let query = EventQuery {
            after: Some(0),
            filter: EventFilter::default(),
            limit: 10_000,
        };
        let mut reader = EventReader::open(&Store::database(directory)).unwrap();
        // Pages of events that SQLite can't read are an error to the reader, and he is told so.
        let page = reader.query(&query);
        let damaged = page.as_ref().map_or(1, |page| page.damaged);
        for event in page.map(|page| page.events).unwrap_or_default() {
            content.events.insert(event.id, event);
        }
        (content, damaged)
    }

    fn is_part_of(&self, whole: &Self) -> bool {
        let records = self.records.iter();
        let redo = self.redo.iter();
        let events = self.events.iter();
        records
            .map(|(id, record)| whole.records.get(id) == Some(record))
            .chain(redo.map(|(id, reports)| whole.redo.get(id) == Some(reports)))
            .chain(events.map(|(id, event)| whole.events.get(id) == Some(event)))
            .all(|is_right| is_right)
    }
}

/// Makes a store of some forty pages; what it holds, and its files as a kill leaves them: the log
/// not folded in if `killed`.
fn filled(killed: bool) -> (tempfile::TempDir, Content) {
    let folder = scratch();
    let mut opened = open(folder.path());
    for id in 1..=6_u8 {
        let first = i64::from(id - 1) * 60;
        let records = (0..20).map(|slave| Record {
            blob: vec![slave ^ id; 300],
            ..record(20 * id + slave)
        });
        commit(
            &mut opened,
            Group {
                redo: vec![id; 5_000],
                records: records.collect(),
                events: (first + 1..=first + 60).map(event).collect(),
                ..group(id.into())
            },
        );
    }
    let copy = scratch();
    if !killed {
        opened.handle.close().unwrap();
    }
    for name in ["master.db", "master.db-wal"] {
        let from = folder.path().join(name);
        if from.exists() {
            fs::copy(from, copy.path().join(name)).unwrap();
        }
    }
    let again = copy_of(copy.path());
    let opened = open(again.path());
    let (whole, damaged) = Content::of(again.path(), &opened.loaded);
    assert_eq!((whole.records.len(), whole.redo.len()), (120, 6));
    assert_eq!((whole.events.len(), damaged), (360, 0));
    (copy, whole)
}

fn copy_of(directory: &Path) -> tempfile::TempDir {
    let copy = scratch();
    for entry in fs::read_dir(directory).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
    }
    copy
}

/// Starts on a damaged copy and judges what comes of it. Whether it was set aside.
fn judge(directory: &Path, whole: &Content, what: &str) -> bool {
    let mut opened = Store::open(directory, KEEP).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (found, damaged) = Content::of(directory, &opened.loaded);
    assert!(found.is_part_of(whole), "{what}: something else came back");
    let is_set_aside = opened.loaded.set_aside.is_some();
    if let Some(aside) = &opened.loaded.set_aside {
        let name = aside.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("master."), "{what}: {name}");
        assert_eq!((opened.loaded.set_aside_files, damaged), (1, 0), "{what}");
        // Ids go on behind what was carried over.
        let newest = found.redo.keys().max().copied().unwrap_or(0);
        assert!(opened.loaded.next_group > newest, "{what}");
    } else if damaged == 0 {
        let is_all = found.records.len() == whole.records.len()
            && found.redo.len() == whole.redo.len()
            && found.next == whole.next
            && found.events.len() == whole.events.len();
        assert!(is_all, "{what}: silently less");
    }
    let next = Group {
        events: vec![event(opened.loaded.next_event)],
        ..group(opened.loaded.next_group)
    };
    opened.handle.commit(next).unwrap();
    let outcome = wait(&mut opened.outcomes);
    let is_stored = matches!(outcome, Outcome::Committed { .. });
    drop(opened.outcomes);
    opened.handle.close().unwrap();
    // Damage that only the write met ends the store, and the next start sets it aside.
    let opened = Store::open(directory, KEEP).unwrap_or_else(|error| panic!("{what}: {error}"));
    let later = opened.loaded.set_aside.is_some();
    assert!(is_stored || later, "{what}: {outcome:?}");
    opened.handle.close().unwrap();
    is_set_aside
}

#[test]
fn a_flipped_byte_on_any_page_is_found_or_does_not_matter() {
    let (source, whole) = filled(false);
    let length = fs::metadata(Store::database(source.path())).unwrap().len();
    assert!(length >= 30 * PAGE, "{length}");
    let mut found = 0;
    let header = [0, 17, 18, 19, 20, 21, 28, 44, 56, 60, 68, 99];
    let everywhere = (0..length / PAGE).flat_map(|page| {
        // A page's own header, its list of cells, and places in its content that differ by page.
        [
            0,
            4,
            9,
            1_000 + page * 37 % 1_000,
            3_000 + page * 53 % 1_000,
        ]
        .map(|at| page * PAGE + at)
    });
    for at in header.into_iter().chain(everywhere) {
        let copy = copy_of(source.path());
        let path = Store::database(copy.path());
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x15], at).unwrap();
        drop(file);
        found += u32::from(judge(copy.path(), &whole, &format!("byte {at}")));
    }
    assert!(found > 60, "only {found} of the flips were found");
}

#[test]
fn a_database_that_is_cut_off_anywhere_is_set_aside() {
    let (source, whole) = filled(false);
    let length = fs::metadata(Store::database(source.path())).unwrap().len();
    for page in 0..length / PAGE {
        for extra in [0, 1 + page * 61 % (PAGE - 1)] {
            let copy = copy_of(source.path());
            let path = Store::database(copy.path());
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(page * PAGE + extra).unwrap();
            drop(file);
            let what = format!("cut off at {}", page * PAGE + extra);
            assert!(judge(copy.path(), &whole, &what), "{what}: not set aside");
        }
    }
}

#[test]
fn a_log_that_is_cut_off_or_flipped_leaves_a_prefix() {
    let (source, whole) = filled(true);
    let log = "master.db-wal";
    let length = fs::metadata(source.path().join(log)).unwrap().len();
    assert!(length > 40 * PAGE, "{length}");
    let mut groups_seen = Vec::new();
    for at in (0..length).step_by(9_001) {
        for is_cut in [true, false] {
            let copy = copy_of(source.path());
            let file = File::options()
                .read(true)
                .write(true)
                .open(copy.path().join(log))
                .unwrap();
            if is_cut {
                file.set_len(at).unwrap();
            } else {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
            }
            drop(file);
            let opened = open(copy.path());
            let (found, damaged) = Content::of(copy.path(), &opened.loaded);
            assert!(found.is_part_of(&whole) && damaged == 0, "{at}");
            // Whole groups up to one, and of each all that it had.
            let groups = found.redo.len();
            assert!((1..).zip(found.redo.keys()).all(|(one, id)| one == *id));
            assert_eq!(
                (found.records.len(), found.events.len()),
                (20 * groups, 60 * groups),
                "{at}"
            );
            assert_eq!(found.next.0, u64::try_from(groups).unwrap() + 1);
            groups_seen.push(groups);
            opened.handle.close().unwrap();
        }
    }
    groups_seen.sort_unstable();
    groups_seen.dedup();
    assert!(groups_seen.len() > 4, "{groups_seen:?}");
}

#[test]
fn a_database_that_is_gone_or_emptied_beside_its_log_is_told() {
    for is_emptied in [true, false] {
        let (source, whole) = filled(true);
        let path = Store::database(source.path());
        if is_emptied {
            File::create(&path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        assert!(judge(source.path(), &whole, "no database"));
        let kept = fs::read_dir(source.path()).unwrap().any(|entry| {
            let name = entry.unwrap().file_name();
            name.to_str().unwrap().ends_with(".db-wal") && name != "master.db-wal"
        });
        assert!(kept, "the log was thrown away");
    }
}

#[test]
fn a_log_that_is_gone_is_told_and_what_was_folded_in_is_there() {
    let (source, whole) = filled(true);
    fs::remove_file(source.path().join("master.db-wal")).unwrap();
    let opened = open(source.path());
    assert!(opened.loaded.log_missing);
    let (found, _) = Content::of(source.path(), &opened.loaded);
    assert!(found.is_part_of(&whole));
    opened.handle.close().unwrap();
    let opened = open(source.path());
    assert!(!opened.loaded.log_missing);
    opened.handle.close().unwrap();
}
