//! Databases that are damaged, or not ours.

use super::*;

#[test]
fn a_damaged_database_is_set_aside_and_its_streams_become_gaps() {
    let directory = tempfile::tempdir().unwrap();
    let mut queue = open(directory.path(), UNBOUNDED);
    append(&mut queue, &[0; 300]);
    let before = queue.standing().unwrap();
    drop(queue);
    let database = directory.path().join("spool.db");
    let mut bytes = fs::read(&database).unwrap();
    // A page in the middle: the newer end can still be read.
    let page = bytes.len() / 2 / 4096 * 4096;
    bytes[page..page + 4096].fill(0xff);
    fs::write(&database, &bytes).unwrap();

    let mut queue = open(directory.path(), UNBOUNDED);
    let after = queue.standing().unwrap();
    assert_eq!(after.slave_id, before.slave_id);
    assert_eq!(after.backlog, 0);
    let aside = directory.path().join("spool.db.damaged-20261122T041500Z");
    let kept = fs::read(aside).unwrap();
    let changed = (0..bytes.len()).filter(|&at| kept[at] != bytes[at]);
    assert_eq!(changed.collect::<Vec<_>>(), [0_usize; 0]);
    append(&mut queue, &[0]);
    assert_eq!(all(&mut queue)[1..], ["1"]);
    let Body::Gap(gap) = &queue.read_after(BEFORE_ALL, 1).unwrap()[0].body else {
        panic!("not a gap");
    };
    assert_eq!((gap.stream, gap.last), (before.stream, 300));
    assert_eq!(gap.reason(), GapReason::Damaged);
}

#[test]
fn a_file_that_is_no_database_does_not_stop_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let id = own_id(directory.path());
    fs::write(directory.path().join("spool.db"), "garbage".repeat(1000)).unwrap();
    assert_eq!(own_id(directory.path()), id);
}

#[test]
fn a_log_without_its_database_is_not_thrown_away() {
    for is_empty in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let queue = {
            let mut queue = open(directory.path(), UNBOUNDED);
            append(&mut queue, &[0; 3]);
            queue
        };
        let log = directory.path().join("spool.db-wal");
        let written = fs::read(&log).unwrap();
        assert!(!written.is_empty());
        // A clean end folds the log into the database, which a crash does not.
        drop(queue);
        fs::write(&log, &written).unwrap();
        fs::remove_file(directory.path().join("spool.db")).unwrap();
        if is_empty {
            fs::write(directory.path().join("spool.db"), "").unwrap();
        }

        drop(open(directory.path(), UNBOUNDED));
        let aside = directory
            .path()
            .join("spool.db.damaged-20261122T041500Z-wal");
        assert_eq!(fs::read(aside).unwrap(), written, "empty: {is_empty}");
    }
}

#[test]
fn a_database_of_a_newer_build_is_kept_aside_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let id = own_id(directory.path());
    let connection = rusqlite::Connection::open(directory.path().join("spool.db")).unwrap();
    connection.pragma_update(None, "user_version", 3).unwrap();
    drop(connection);
    assert_eq!(own_id(directory.path()), id);
    let names = fs::read_dir(directory.path()).unwrap();
    let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        names.contains(&"spool.db.newer-20261122T041500Z".into()),
        "{names:?}"
    );
}

fn own_id(directory: &Path) -> [u8; 16] {
    open(directory, UNBOUNDED).standing().unwrap().slave_id
}

#[test]
fn a_body_that_is_not_what_was_written_becomes_a_gap() {
    // The last one can be decoded: it has another time.
    let another_time = "CAST(x'1805' || substr(body, 8) AS BLOB)";
    for body in ["x'ff'", "x''", another_time] {
        let directory = tempfile::tempdir().unwrap();
        let mut queue = open(directory.path(), UNBOUNDED);
        append(&mut queue, &[0, 1, 2]);
        drop(queue);
        let connection = rusqlite::Connection::open(directory.path().join("spool.db")).unwrap();
        let sql = format!("UPDATE entries SET body = {body} WHERE last = 2");
        assert_eq!(connection.execute(&sql, []), Ok(1));
        drop(connection);
        let mut queue = open(directory.path(), UNBOUNDED);
        for _ in 0..2 {
            assert_eq!(all(&mut queue), ["1", "2-2", "3"], "{body}");
            let Body::Gap(gap) = queue.read_after(BEFORE_ALL, 2).unwrap()[1].body else {
                panic!("a report");
            };
            assert_eq!(gap.reason(), GapReason::Damaged);
            assert_eq!((gap.from_ms, gap.to_ms), (NOW_MS, NOW_MS));
        }
    }
}

#[tokio::test]
async fn a_replacement_is_told_to_the_reader_and_its_ids_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let (spool, _ended) = Spool::open(directory.path(), UNBOUNDED).unwrap();
    for _ in 0..3 {
        assert!(spool.append(report(0)).await.unwrap());
    }
    let before = spool.newest().await.unwrap().unwrap();
    damage(directory.path());
    assert!(spool.append(report(0)).await.unwrap());
    // Of those who ask, only the reader has to begin anew.
    spool.set_limits(UNBOUNDED).await.unwrap();
    let read = spool.read_after(before.id, 1).await;
    assert!(matches!(read, Err(SpoolError::Replaced)), "{read:?}");
    let after = spool.read_after(before.id, 10).await.unwrap();
    assert_eq!(shown(&after), ["1"]);
}
