//! kill -9 at every system call that others can see the effect of: nothing acked is lost, nothing is
//! applied twice, and the order is kept.
//!
//! A sample of the points runs by default; all of them with
//!
//! ```text
//! ROLLCALL_CRASH_POINTS=all cargo test -p rollcall-e2e --test crash_points -- --nocapture
//! ```

use std::path::Path;

use anyhow::Context;
use rollcall_e2e::faults::End;
use rollcall_e2e::faults::points::{CRASH_POINTS, Naming, Share, kills, work_off};
use rollcall_e2e::faults::slave_run::{SlaveRun, outage};
use rollcall_e2e::faults::stage::{Stage, check_master};
use rollcall_e2e::faults::strace::{self, Calls, Fault, Trace};
use rustix::process::Signal;

/// Points of each of the four sweeps in the ordinary run.
const SAMPLE: usize = 15;

fn sweep(what: &str, calls: &Calls, run: impl Fn(&Fault) -> anyhow::Result<End> + Sync) {
    let all = kills(calls);
    assert!(all.len() > 50, "the script does little: {all:?}");
    let points = Share::from_environment(CRASH_POINTS, SAMPLE).of(&all);
    let done = work_off(&points, |fault| {
        let _naming = Naming(fault);
        let end = run(fault).with_context(|| fault.to_string())?;
        // Or it had fewer of these calls this time.
        let in_order = matches!(end, End::Killed | End::Unmoved);
        in_order
            .then_some(end)
            .with_context(|| format!("{fault}: {end:?}"))
    });
    let killed = done.iter().filter(|done| matches!(done, Ok(End::Killed)));
    let killed = killed.count();
    let broken: Vec<_> = done.iter().filter_map(|done| done.as_ref().err()).collect();
    println!(
        "crash points, {what}: {} of {} run, {killed} killed, {} broke a promise",
        points.len(),
        all.len(),
        broken.len()
    );
    assert!(broken.is_empty(), "{what}: {broken:#?}");
    // A run is not the same each time, and the last calls of the counted one may not be made.
    assert!(killed * 2 > points.len(), "{killed} of {}", points.len());
}

fn sweep_master(what: &str, stage: &Stage) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut run = stage.run(folder.path(), &Trace::Count);
    run.played.expect("an undisturbed run");
    assert!(run.status.success(), "{}", run.status);
    let calls = Calls::read(folder.path(), "master");
    check_master(&mut run.master, &mut run.fleet, folder.path(), Some(0))
        .expect("an undisturbed run");
    sweep(what, &calls, |fault| {
        let folder = tempfile::tempdir()?;
        let (end, run) = stage.suffer(folder.path(), std::slice::from_ref(fault))?;
        run.played.or_else(|error| {
            if end == End::Killed {
                Ok(())
            } else {
                Err(error)
            }
        })?;
        Ok(end)
    });
}

#[test]
fn a_master_that_is_killed_anywhere_keeps_what_it_acked() {
    if !strace::require_or_skip_loudly("crash points of a new master") {
        return;
    }
    sweep_master("a new master", &Stage::empty());
}

#[test]
fn a_master_that_is_killed_again_keeps_what_it_acked() {
    if !strace::require_or_skip_loudly("crash points of a master after a crash") {
        return;
    }
    sweep_master("a master after a crash", &Stage::killed());
}

/// kill -9 does not show whether anything reaches the disk: count that it is asked for.
#[test]
fn every_ack_has_a_sync_before_it() {
    if !strace::require_or_skip_loudly("a sync before every ack") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let stage = Stage::empty();
    let run = stage.run(folder.path(), &Trace::Count);
    run.played.expect("an undisturbed run");
    let syncs =
        Calls::read(folder.path(), "master").count(&["fdatasync", "fsync"], "master.db-wal");
    // What the script waits for before it goes on: 8 reports, 3 brief ones, 2 gaps, 2 bursts, the
    // backlog and a goodbye.
    assert!(syncs >= 17, "{syncs} syncs for 17 commits");

    let run = SlaveRun::new(None, "pooled");
    let (record, _) = run.to_the_end(&Trace::Count);
    let syncs =
        Calls::read(run.folder.path(), "slave").count(&["fdatasync", "fsync"], "spool.db-wal");
    assert!(
        record.reports.len() > 5 && syncs >= record.reports.len(),
        "{syncs} syncs for {} reports",
        record.reports.len()
    );
}

fn sweep_slave(what: &str, state: Option<&Path>, mode: &str) {
    let run = SlaveRun::new(state, mode);
    let (record, status) = run.to_the_end(&Trace::Count);
    assert!(status.success(), "{status}");
    assert_eq!(record.breaches, Vec::<String>::new());
    assert_eq!(record.gaps > 0, state.is_some(), "{record:?}");
    let calls = Calls::read(run.folder.path(), "slave");
    sweep(what, &calls, |fault| {
        SlaveRun::new(state, mode).suffer(std::slice::from_ref(fault))
    });
}

#[test]
fn a_slave_that_is_killed_anywhere_sends_all_that_it_has_spooled() {
    if !strace::require_or_skip_loudly("crash points of a slave after an outage") {
        return;
    }
    let state = outage(Signal::KILL);
    sweep_slave("a slave after an outage", Some(state.path()), "pooled");
}

#[test]
fn a_per_message_slave_that_is_killed_anywhere_sends_all_that_it_has_spooled() {
    if !strace::require_or_skip_loudly("crash points of a new per-message slave") {
        return;
    }
    sweep_slave("a new per-message slave", None, "per-message");
}
