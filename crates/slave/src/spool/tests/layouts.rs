//! Spools that earlier builds have left.

use super::*;

/// A spool of three reports with the layout of version 1.
fn of_version_1(directory: &Path, changes: &str) {
    let mut queue = open(directory, UNBOUNDED);
    append(&mut queue, &[0, 1, 2]);
    drop(queue);
    let connection = rusqlite::Connection::open(directory.join("spool.db")).unwrap();
    let sql = format!("{changes}; PRAGMA user_version = 1;");
    connection.execute_batch(&sql).unwrap();
}

fn sizes(directory: &Path) -> Vec<(i64, i64)> {
    let connection = rusqlite::Connection::open(directory.join("spool.db")).unwrap();
    let mut read = connection
        .prepare("SELECT size, length(body) FROM entries ORDER BY id")
        .unwrap();
    let rows = read.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(|row| row.unwrap()).collect()
}

const WITHOUT_CHECKSUMS: &str =
    "UPDATE entries SET size = size - 4, body = substr(body, 1, length(body) - 4)";

#[test]
fn reports_without_a_checksum_are_kept_and_get_one() {
    let directory = tempfile::tempdir().unwrap();
    of_version_1(directory.path(), "");
    let with = sizes(directory.path());
    of_version_1(directory.path(), WITHOUT_CHECKSUMS);
    for _ in 0..2 {
        let mut queue = open(directory.path(), UNBOUNDED);
        assert_eq!(all(&mut queue), ["1", "2", "3", "1", "2", "3"]);
        drop(queue);
        assert_eq!(sizes(directory.path())[..3], with);
    }
}

#[test]
fn reports_with_a_checksum_are_kept_and_what_is_damaged_stays_so() {
    let directory = tempfile::tempdir().unwrap();
    let cut = format!("{WITHOUT_CHECKSUMS} WHERE last = 2");
    of_version_1(directory.path(), &cut);
    for _ in 0..2 {
        let mut queue = open(directory.path(), UNBOUNDED);
        assert_eq!(all(&mut queue), ["1", "2-2", "3"]);
    }
}
