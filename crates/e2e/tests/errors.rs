//! System calls that fail: nothing is acked that is not on disk, a failed fsync is never tried again,
//! and whatever passes is waited out.
//!
//! Each row of the tables below is injected at a few calls spread over the script; at every one with
//! `ROLLCALL_CRASH_POINTS=all`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rollcall_e2e::faults::End;
use rollcall_e2e::faults::points::{CRASH_POINTS, Naming, Share, work_off};
use rollcall_e2e::faults::slave_run::SlaveRun;
use rollcall_e2e::faults::stage::{Stage, master_state};
use rollcall_e2e::faults::strace::{self, Calls, Fault, Trace};

/// Calls at which each error occurs in the ordinary run.
const SAMPLE: usize = 2;

/// One kind of trouble.
struct Row {
    syscall: &'static str,
    errno: &'static str,
    /// The file by its place in the test's folder; any if empty.
    file: &'static str,
    /// How many calls of a thread fail in a row.
    times: usize,
    /// The ways in which the daemon may take it.
    ends: &'static [End],
    /// One of these must be in the log, or among the last words.
    told: &'static [&'static str],
}

const fn row(syscall: &'static str, errno: &'static str, ends: &'static [End]) -> Row {
    Row {
        syscall,
        errno,
        file: "",
        times: 1,
        ends,
        told: &[],
    }
}

impl Row {
    const fn on(self, file: &'static str) -> Self {
        Self { file, ..self }
    }

    const fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    const fn told(self, told: &'static [&'static str]) -> Self {
        Self { told, ..self }
    }

    fn fault(&self, first: usize, file: Option<&Path>) -> Fault {
        let when = format!("{first}..{}", first + self.times - 1);
        let fault = Fault::error(self.syscall, self.errno, &when);
        match file {
            Some(file) => fault.on(file),
            None => fault,
        }
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {} {}", self.syscall, self.errno, self.file)
    }
}

const UNMOVED: &[End] = &[End::Unmoved];
const CONNECTION: &[End] = &[End::Unmoved, End::Reconnected];
const OR_GAVE_UP: &[End] = &[End::Unmoved, End::GaveUp];
const ANY: &[End] = &[End::Unmoved, End::Reconnected, End::GaveUp];

/// Unmoved: at the very end, when all that is left is to note that it ended in order.
const FAILED: &[&str] = &["store_failed", "store_close_failed", "cannot sync"];
const DEGRADED: &[&str] = &["store_degraded", "store_close_failed"];

const WAL: &str = "master-state/master.db-wal";
const MASTER: [Row; 23] = [
    row("fsync", "EIO", OR_GAVE_UP).on(WAL).told(FAILED),
    row("fdatasync", "EIO", OR_GAVE_UP).on(WAL).told(FAILED),
    row("pwrite64", "EIO", OR_GAVE_UP).on(WAL).told(FAILED),
    row("pwrite64", "ENOSPC", UNMOVED).on(WAL).told(DEGRADED),
    row("pwrite64", "EDQUOT", ANY).on(WAL),
    row("pwrite64", "EINTR", UNMOVED).on(WAL),
    row("pwrite64", "EIO", ANY).on("master-state/master.db"),
    row("fsync", "EIO", ANY).on("master-state/master.db"),
    row("fdatasync", "EIO", ANY).on("master-state/master.db"),
    row("ftruncate", "EIO", ANY),
    row("unlink", "EIO", ANY),
    row("accept4", "EMFILE", UNMOVED)
        .times(3)
        .told(&["accept_failed"]),
    row("accept4", "ENFILE", UNMOVED).times(2),
    row("accept4", "ENOBUFS", UNMOVED).told(&["accept_failed"]),
    row("accept4", "ENOMEM", UNMOVED).told(&["accept_failed"]),
    row("accept4", "ECONNABORTED", UNMOVED),
    row("accept4", "EINTR", UNMOVED),
    row("recvfrom", "EIO", CONNECTION),
    row("recvfrom", "EINTR", CONNECTION),
    row("sendto", "EPIPE", CONNECTION),
    row("sendto", "EINTR", CONNECTION),
    row("write", "ENOSPC", UNMOVED).on("master.log"),
    row("write", "EIO", UNMOVED).on("master.log"),
];

const SPOOL_WAL: &str = "slave-state/spool.db-wal";
const SLAVE: [Row; 13] = [
    // Unmoved: when the log is folded in at the end, and stays where it is.
    row("fsync", "EIO", OR_GAVE_UP).on(SPOOL_WAL),
    row("fdatasync", "EIO", OR_GAVE_UP).on(SPOOL_WAL),
    // Gave up: at the start.
    row("pwrite64", "ENOSPC", OR_GAVE_UP)
        .on(SPOOL_WAL)
        .told(&["database or disk is full"]),
    row("pwrite64", "EIO", ANY).on(SPOOL_WAL),
    row("pwrite64", "EINTR", UNMOVED).on(SPOOL_WAL),
    row("fsync", "EIO", ANY).on("slave-state/spool.db"),
    row("ftruncate", "EIO", ANY),
    row("recvfrom", "EIO", UNMOVED),
    row("recvfrom", "EINTR", UNMOVED),
    row("sendto", "EPIPE", UNMOVED),
    row("sendto", "EINTR", UNMOVED),
    row("write", "ENOSPC", UNMOVED).on("slave.log"),
    row("write", "EIO", UNMOVED).on("slave.log"),
];

/// The calls at which a row's error is injected, of an undisturbed run.
fn points<'a>(rows: &'a [Row], calls: &Calls) -> Vec<(&'a Row, usize)> {
    let share = Share::from_environment(CRASH_POINTS, SAMPLE);
    let at = |row: &'a Row| {
        let count = calls.most_by_thread_on(row.syscall, row.file);
        // What a start does with its files has its own exit codes.
        let all: Vec<_> = (1..=count).map(|first| (row, first)).collect();
        share.of(&all)
    };
    rows.iter().flat_map(at).collect()
}

fn sweep(
    what: &str,
    points: &[(&Row, usize)],
    run: impl Fn(&Row, usize) -> anyhow::Result<Option<End>> + Sync,
) {
    let done = work_off(points, |&(row, first)| {
        let text = format!("{row} at {first}");
        let _naming = Naming(&text);
        let end = run(row, first).with_context(|| text.clone())?;
        let in_order = end.is_none_or(|end| row.ends.contains(&end));
        ensure!(in_order, "{text}: {end:?}");
        anyhow::Ok(end)
    });
    let count = |end| {
        let same = done.iter().filter(|done| done.as_ref().ok() == Some(&end));
        same.count()
    };
    let injected = done.len() - count(None);
    assert!(injected * 2 > done.len(), "{injected} of {}", done.len());
    let broken: Vec<_> = done.iter().filter_map(|done| done.as_ref().err()).collect();
    println!(
        "errors, {what}: {} injected, {} unmoved, {} reconnected, {} gave up with 74, {} broke a promise",
        injected,
        count(Some(End::Unmoved)),
        count(Some(End::Reconnected)),
        count(Some(End::GaveUp)),
        broken.len()
    );
    assert!(broken.is_empty(), "{what}: {broken:#?}");
}

/// The file of a row, under the folder of a run.
fn file(row: &Row, folder: &Path) -> Option<PathBuf> {
    (!row.file.is_empty()).then(|| folder.join(row.file))
}

/// Whether the fault has hit what no kernel would fail: the pipes by which a process talks to itself.
/// Or the run had fewer of these calls this time.
fn is_elsewhere(row: &Row, calls: &Calls) -> bool {
    let is_socket = ["recvfrom", "sendto"].contains(&row.syscall);
    !calls.was_injected() || (is_socket && !calls.was_injected_into_tcp())
}

/// After a sync that failed none is tried on the same file: the kernel may have dropped what it
/// could not write, and would say yes.
fn ensure_not_retried(row: &Row, calls: &Calls) -> anyhow::Result<()> {
    if row.syscall.contains("sync") && row.ends != ANY {
        let again = calls.after_injection(row.syscall, row.file);
        ensure!(again == 0, "{again} more {} of {}", row.syscall, row.file);
    }
    Ok(())
}

fn ensure_told(row: &Row, folder: &Path, daemon: &str) -> anyhow::Result<()> {
    let read = |kind| fs::read_to_string(folder.join(format!("{daemon}.{kind}")));
    let said = [read("log")?, read("err")?].concat();
    let is_told = row.told.is_empty() || row.told.iter().any(|word| said.contains(word));
    ensure!(is_told, "none of {:?} in the log", row.told);
    Ok(())
}

#[test]
fn a_master_survives_errors_or_restarts_from_its_disk() {
    if !strace::require_or_skip_loudly("errors of system calls of a master") {
        return;
    }
    let stage = Stage::killed();
    let folder = tempfile::tempdir().expect("a folder");
    let run = stage.run(folder.path(), &Trace::Count);
    run.played.expect("an undisturbed run");
    let calls = Calls::read(folder.path(), "master");
    let points = points(&MASTER, &calls);
    assert!(points.len() > 20, "{}", points.len());
    sweep("the master", &points, |row, first| {
        let folder = tempfile::tempdir()?;
        let file = file(row, folder.path());
        let fault = row.fault(first, file.as_deref());
        let suffered = stage.suffer(folder.path(), &[fault]);
        let calls = Calls::read(folder.path(), "master");
        if is_elsewhere(row, &calls) {
            return Ok(None);
        }
        let (end, _run) = suffered?;
        ensure_not_retried(row, &calls)?;
        ensure_told(row, folder.path(), "master")?;
        let database = master_state(folder.path()).join("master.db");
        ensure!(database.exists(), "no {}", database.display());
        Ok(Some(end))
    });
}

#[test]
fn a_slave_survives_errors_or_restarts_from_its_disk() {
    if !strace::require_or_skip_loudly("errors of system calls of a slave") {
        return;
    }
    let run = SlaveRun::new(None, "pooled");
    let (_, status) = run.to_the_end(&Trace::Count);
    assert!(status.success(), "{status}");
    let calls = Calls::read(run.folder.path(), "slave");
    let points = points(&SLAVE, &calls);
    assert!(points.len() > 12, "{}", points.len());
    sweep("the slave", &points, |row, first| {
        let run = SlaveRun::new(None, "pooled");
        let file = file(row, run.folder.path());
        let suffered = run.suffer(&[row.fault(first, file.as_deref())]);
        let calls = Calls::read(run.folder.path(), "slave");
        if is_elsewhere(row, &calls) {
            return Ok(None);
        }
        let end = suffered?;
        ensure_not_retried(row, &calls)?;
        ensure_told(row, run.folder.path(), "slave")?;
        Ok(Some(end))
    });
}
