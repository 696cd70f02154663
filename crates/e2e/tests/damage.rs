//! Damaged files: a daemon always starts, with all that it had, with an earlier state of it, or with
//! the damaged file set aside in plain sight; never with a wrong answer.
//!
//! A sample of the damages runs by default; every one with
//!
//! ```text
//! ROLLCALL_DAMAGE=all cargo test -p rollcall-e2e --test damage -- --nocapture
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use rollcall_e2e::faults::bytes::{self, Damage};
use rollcall_e2e::faults::collector::Record;
use rollcall_e2e::faults::points::{Naming, Share, work_off};
use rollcall_e2e::faults::slave_run::{SlaveRun, outage};
use rollcall_e2e::faults::stage::{Stage, master_state};
use rollcall_e2e::{Api, Master};
use rollcall_protocol::api::{EventKind, EventRow, SlaveDetail};
use rustix::process::Signal;

/// "all" tries every damage; a number, about that many of each file.
const DAMAGE: &str = "ROLLCALL_DAMAGE";
/// Damages of each file in the ordinary run.
const SAMPLE: usize = 12;

/// How a daemon took a damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    /// It has all that it had.
    Whole,
    /// It has an earlier state.
    Prefix,
    /// The damaged file was set aside, or the damaged part was told as a gap.
    Told,
}

/// How often each of them happened.
#[derive(Debug)]
struct Counts {
    whole: usize,
    prefix: usize,
    told: usize,
}

fn sweep(
    what: &str,
    folder: &Path,
    files: &[&str],
    run: impl Fn(&str, &Damage) -> anyhow::Result<Recovery> + Sync,
) -> Counts {
    let share = Share::from_environment(DAMAGE, SAMPLE);
    let ways = |file: &&str| {
        let length = fs::metadata(folder.join(file)).map_or(0, |file| file.len());
        let file = (*file).to_owned();
        let ways = bytes::ways(length).into_iter();
        let ways: Vec<_> = ways.map(|way| (file.clone(), way)).collect();
        // These two are always among them.
        let (always, rest) = ways.split_at(2);
        [always, &share.of(rest)].concat()
    };
    let all: Vec<_> = files.iter().flat_map(ways).collect();
    let done = work_off(&all, |(file, damage)| {
        let text = format!("{file} {damage:?}");
        let _naming = Naming(&text);
        run(file, damage).with_context(|| text.clone())
    });
    let count = |recovery| {
        let same = done
            .iter()
            .filter(|done| done.as_ref().ok() == Some(&recovery));
        same.count()
    };
    let broken: Vec<_> = done.iter().filter_map(|done| done.as_ref().err()).collect();
    let counts = Counts {
        whole: count(Recovery::Whole),
        prefix: count(Recovery::Prefix),
        told: count(Recovery::Told),
    };
    println!(
        "damage, {what}: {} tried, {counts:?}, {} wrong",
        done.len(),
        broken.len()
    );
    assert!(broken.is_empty(), "{what}: {broken:#?}");
    counts
}

/// Whether the damaged file is still there, under a name with these two parts and a time between.
fn is_kept(folder: &Path, prefix: &str, suffix: &str) -> bool {
    let entries = fs::read_dir(folder).expect("the state folder");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut kept = names.filter(|name| name.starts_with(prefix) && name.ends_with(suffix));
    kept.any(|name| name.contains("Z"))
}

// ---------------------------------------------------------------- the master

/// What an undamaged master says.
#[derive(Debug)]
struct Truth {
    details: BTreeMap<String, SlaveDetail>,
    events: BTreeMap<i64, EventRow>,
}

impl Truth {
    fn of(api: &Api) -> anyhow::Result<Self> {
        let mut details = BTreeMap::new();
        for row in api.slaves()? {
            details.insert(row.name.clone(), without_presence(api.slave(&row.name)?));
        }
        let events = api.events()?.into_iter().filter(|event| {
            // What a start itself adds.
            !matches!(event.kind, EventKind::MasterStart | EventKind::Presence)
        });
        let events = events.map(|event| (event.id, event)).collect();
        Ok(Self { details, events })
    }

    /// How a damaged master's answers fit.
    fn compare(&self, found: &Self) -> anyhow::Result<Recovery> {
        for (id, event) in &found.events {
            let true_event = self.events.get(id);
            ensure!(
                true_event.is_none_or(|told| told == event),
                "WRONG: {event:#?} was {true_event:#?}"
            );
        }
        let mut whole = true;
        for (name, detail) in &found.details {
            let Some(true_detail) = self.details.get(name) else {
                bail!("WRONG: {name} was never there");
            };
            if true_detail == detail {
                continue;
            }
            whole = false;
            let (row, true_row) = (&detail.row, &true_detail.row);
            ensure!(row.id == true_row.id, "WRONG: {row:#?} was {true_row:#?}");
            ensure!(
                row.sequence <= true_row.sequence && row.applied + row.gaps == row.sequence,
                "WRONG: {row:#?} was {true_row:#?}"
            );
            ensure!(
                row.sequence < true_row.sequence
                    || row.duplicates != true_row.duplicates
                    || row.applied < true_row.applied
                    || detail.row.presence == true_row.presence,
                "WRONG: {detail:#?} was {true_detail:#?}"
            );
        }
        let all = found.details.len() == self.details.len()
            && self.events.keys().all(|id| found.events.contains_key(id));
        Ok(if whole && all {
            Recovery::Whole
        } else {
            Recovery::Prefix
        })
    }
}

/// Presence and times of it go on by themselves.
fn without_presence(mut detail: SlaveDetail) -> SlaveDetail {
    detail.row.presence = rollcall_protocol::api::Presence::Expected;
    detail.row.since_ms = 0;
    detail
}

fn damage_master(
    stage: &Stage,
    truth: &Truth,
    file: &str,
    damage: &Damage,
) -> anyhow::Result<Recovery> {
    let folder = tempfile::tempdir()?;
    let state = master_state(folder.path());
    bytes::copy_folder(stage.folder(), &state);
    damage.apply(&state.join(file))?;
    let mut master = Master::new(folder.path(), "master");
    master.start();
    let found = Truth::of(&master.api())?;
    let set_aside = master.log().events("store_set_aside");
    let recovery = match (truth.compare(&found)?, set_aside.is_empty()) {
        (_, false) => Recovery::Told,
        (recovery, true) => recovery,
    };
    if recovery == Recovery::Told {
        let deleted = file == "master.db" && *damage == Damage::Delete;
        let suffix = if deleted { ".db-wal" } else { ".db" };
        ensure!(
            is_kept(&state, "master.", suffix),
            "the damaged file is gone"
        );
    }
    // It works, and so does its next start.
    let mut fleet = stage.fleet();
    fleet.rejoin(master.address())?;
    master.kill_and_wait();
    master.start();
    for member in fleet.members.iter().filter(|member| member.name != "brief") {
        let row = master.api().slave(member.name)?.row;
        // A slave that is not known any more begins where it stands.
        let in_order = row.sequence == member.last_sent() && row.applied + row.gaps <= row.sequence;
        ensure!(in_order, "WRONG: {row:#?} {member:?}");
    }
    let again = master.log().events("store_set_aside").len();
    ensure!(again == 0, "set aside again");
    let log = fs::read_to_string(folder.path().join("master.log"))?;
    ensure!(!log.contains("\"panic\""), "a panic");
    Ok(recovery)
}

fn sweep_master(what: &str, stage: &Stage, files: &[&str]) -> Counts {
    let folder = tempfile::tempdir().expect("a folder");
    bytes::copy_folder(stage.folder(), &master_state(folder.path()));
    let master = Master::started(folder.path());
    let truth = Truth::of(&master.api()).expect("the roll");
    assert!(
        truth.details.len() == 3 && truth.events.len() > 20,
        "{truth:?}"
    );
    drop(master);
    sweep(what, stage.folder(), files, |file, damage| {
        damage_master(stage, &truth, file, damage)
    })
}

#[test]
fn a_master_starts_on_a_damaged_store() {
    let counts = sweep_master("a store that was closed", &Stage::stopped(), &["master.db"]);
    assert!(counts.told > 0, "{counts:?}");
}

#[test]
fn a_master_starts_on_a_store_that_was_damaged_in_a_crash() {
    let files = ["master.db", "master.db-wal"];
    let counts = sweep_master("a store that was killed", &Stage::killed(), &files);
    assert!(counts.prefix > 0 && counts.whole > 0, "{counts:?}");
}

// ---------------------------------------------------------------- the slave

fn damage_slave(
    state: &Path,
    truth: &Record,
    file: &str,
    damage: &Damage,
) -> anyhow::Result<Recovery> {
    let run = SlaveRun::new(Some(state), "pooled");
    damage.apply(&run.state().join(file))?;
    let mut daemon = run.start(None);
    daemon.wait_for_event("slave_ready");
    run.let_it_send(&mut daemon, None, |_| true);
    let log = daemon.log().clone();
    let status = daemon.terminate();
    ensure!(status.success(), "it ended with {status}");
    ensure!(log.events("panic").is_empty(), "a panic");
    let record = run.collector.record();
    let id = truth.id.as_ref();
    ensure!(record.id.as_ref() == id, "WRONG: another id");
    for (place, bytes) in &record.reports {
        let before = truth.reports.get(place);
        ensure!(
            before.is_none_or(|before| before == bytes),
            "WRONG: {place:?}"
        );
    }
    let set_aside = !log.events("spool_set_aside").is_empty();
    if set_aside {
        ensure!(
            is_kept(&run.state(), "spool.db.", ""),
            "the damaged file is gone"
        );
    }
    if set_aside || !log.events("spool_entry_damaged").is_empty() {
        return Ok(Recovery::Told);
    }
    // Whatever is told without a warning is told in order and without a hole.
    ensure!(record.breaches.is_empty(), "{:?}", record.breaches);
    let whole = truth.marks.iter().all(|(of, last)| {
        // The stream of the undamaged run itself is not in the spool.
        truth.streams.last() == Some(of) || record.has(*of, *last)
    });
    Ok(if whole {
        Recovery::Whole
    } else {
        Recovery::Prefix
    })
}

fn sweep_slave(what: &str, end: Signal, files: &[&str]) -> Counts {
    let state = outage(end);
    let run = SlaveRun::new(Some(state.path()), "pooled");
    let mut daemon = run.start(None);
    run.let_it_send(&mut daemon, None, |_| true);
    daemon.terminate();
    let truth = run.collector.record();
    assert_eq!((truth.streams.len(), &truth.breaches), (2, &Vec::new()));
    sweep(what, state.path(), files, |file, damage| {
        damage_slave(state.path(), &truth, file, damage)
    })
}

#[test]
fn a_slave_starts_on_a_damaged_spool() {
    let counts = sweep_slave("a spool that was closed", Signal::TERM, &["spool.db"]);
    assert!(counts.told > 0, "{counts:?}");
}

#[test]
fn a_slave_starts_on_a_spool_that_was_damaged_in_a_crash() {
    let files = ["spool.db", "spool.db-wal"];
    let counts = sweep_slave("a spool that was killed", Signal::KILL, &files);
    assert!(counts.prefix > 0, "{counts:?}");
}
