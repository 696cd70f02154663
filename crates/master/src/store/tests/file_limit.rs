//! A limit of file sizes, for real: the test runs itself again in a process that has one.

use std::process::Command;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

/// Set in the process that has the limit: its state directory.
const DIRECTORY: &str = "ROLLCALL_TEST_FILE_LIMIT";
const NAME: &str =
    "store::tests::file_limit::at_a_limit_of_file_sizes_the_store_waits_until_it_is_raised";

fn limit_files_to(bytes: Option<u64>) {
    let limit = Rlimit {
        current: bytes,
        ..getrlimit(Resource::Fsize)
    };
    setrlimit(Resource::Fsize, limit).unwrap();
}

#[test]
fn at_a_limit_of_file_sizes_the_store_waits_until_it_is_raised() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return reach_the_limit(Path::new(&directory));
    }
    let folder = tempfile::tempdir().unwrap();
    // The shell passes on that SIGXFSZ is ignored, as the daemon has it.
    let output = Command::new("sh")
        .args(["-c", r#"trap "" XFSZ; exec "$@""#, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(DIRECTORY, folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let opened = open(folder.path());
    let ids: Vec<u64> = opened.loaded.redo.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, (1..=7).collect::<Vec<_>>());
    assert_eq!(opened.loaded.set_aside, None);
    opened.handle.close().unwrap();
    assert_eq!(events_of(folder.path(), 0).len(), 2);
}

fn reach_the_limit(directory: &Path) {
    let mut opened = open(directory);
    commit(&mut opened, group(1));
    for round in 0..2 {
        let first = 2 + 3 * round;
        let log = fs::metadata(directory.join("master.db-wal")).unwrap().len();
        limit_files_to(Some(log + 100_000));
        let large = Group {
            redo: vec![7; 300_000],
            events: vec![event(i64::try_from(round).unwrap() + 1)],
            ..group(first)
        };
        opened.handle.commit(large).unwrap();
        match wait(&mut opened.outcomes) {
            Outcome::Degraded { reason } => {
                assert!(reason.contains("a limit of file sizes"), "{reason}");
            }
            other => panic!("not degraded: {other:?}"),
        }
        limit_files_to(None);
        assert_eq!(wait_committed(&mut opened), first);
        commit(&mut opened, group(first + 1));
        commit(&mut opened, group(first + 2));
    }
    opened.handle.close().unwrap();
}
