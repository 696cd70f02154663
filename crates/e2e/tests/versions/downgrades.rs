//! Back to an earlier build: what it can read it goes on with, and what it can't it leaves alone.

use std::fs;
use std::path::{Path, PathBuf};

use rollcall_e2e::Master;
use rollcall_e2e::wait::PATIENCE;
use rollcall_protocol::api::{Presence, SlaveRow};

use crate::EXIT_STORE;
use crate::content::{events, roll};
use crate::pair::{End, PRESENT, Pair, bytes, earlier_or_tell, layout};

/// The copy that was made before a migration.
fn backup(state: &Path, of_layout: i64) -> PathBuf {
    let prefix = format!("master.db.v{of_layout}-");
    let names = fs::read_dir(state).expect("the state folder");
    let mut found = names.map(|entry| entry.expect("an entry").path());
    let is_it = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(&prefix) && name.ends_with(".backup"))
    };
    found.find(is_it).expect("a backup")
}

#[test]
fn a_store_goes_back_to_an_earlier_build_or_is_refused_and_left_alone() {
    let name = "a_store_goes_back_to_an_earlier_build_or_is_refused_and_left_alone";
    let Some(earlier) = earlier_or_tell(name) else {
        return;
    };
    let mut pair = Pair::start(Some(&earlier), PRESENT);
    pair.settle();
    let (slaves, told) = (roll(&pair.master.api()), events(&pair.master.api()));
    pair.end_master(End::Planned);
    let state = pair.folder.path().join("master-state");
    let store = state.join("master.db");
    let before = layout(&store);
    pair.start_master(PRESENT);
    assert_eq!(roll(&pair.master.api()), slaves);
    pair.end_master(End::Planned);
    let after = layout(&store);

    pair.master.use_programs(Some(&earlier));
    if after == before {
        pair.start_master(Some(&earlier));
        assert_eq!(roll(&pair.master.api()), slaves);
        assert_eq!(
            events(&pair.master.api()).get(..told.len()),
            Some(&told[..])
        );
        return;
    }
    let migrated = bytes(&store);
    pair.master.spawn();
    assert_eq!(pair.master.wait(PATIENCE).code(), Some(EXIT_STORE));
    let stderr = pair.master.stderr();
    for part in [
        &format!("schema version {after}"),
        "install the newer rollcall-master again",
        &*store.to_string_lossy(),
    ] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    assert!(bytes(&store) == migrated, "the refused store was changed");

    let mut restored = Master::new(pair.folder.path(), "restored");
    let state = pair.folder.path().join("restored-state");
    fs::create_dir(&state).expect("a folder");
    fs::copy(
        backup(&pair.folder.path().join("master-state"), before),
        state.join("master.db"),
    )
    .expect("a copy");
    restored.use_programs(Some(&earlier));
    restored.start();
    assert_eq!(roll(&restored.api()), slaves);
    assert_eq!(events(&restored.api()).get(..told.len()), Some(&told[..]));
}

/// A slave must start in any case. What it can't read it keeps for the build that can.
#[test]
fn a_spool_goes_back_to_an_earlier_build_or_is_kept_aside() {
    let name = "a_spool_goes_back_to_an_earlier_build_or_is_kept_aside";
    let Some(earlier) = earlier_or_tell(name) else {
        return;
    };
    let mut pair = Pair::start(PRESENT, Some(&earlier));
    let layout_of = |pair: &Pair| {
        let spools = pair.reporters.iter();
        let layouts = spools.map(|reporter| layout(&reporter.slave.state().join("spool.db")));
        layouts.collect::<Vec<_>>()
    };
    let before = layout_of(&pair);
    pair.replace_slaves(PRESENT, true);
    pair.end_master(End::Planned);
    pair.replace_slaves(PRESENT, false);
    if layout_of(&pair) == before {
        pair.replace_slaves(Some(&earlier), false);
        pair.start_master(PRESENT);
        pair.let_report();
        pair.settle();
        return;
    }
    for reporter in &mut pair.reporters {
        let slave = &mut reporter.slave;
        slave.wait_for_spooled(3);
        assert_eq!(slave.terminate().code(), Some(0));
        let spool = bytes(&slave.state().join("spool.db"));
        slave.use_programs(Some(&earlier));
        slave.start();
        let line = slave.wait_for_event("spool_set_aside");
        let kept = Path::new(line.text("path"));
        assert!(line.text("path").contains("spool.db.newer-"), "{line:?}");
        assert!(bytes(kept) == spool, "the spool was changed");
    }
    pair.start_master(PRESENT);
    for reporter in &pair.reporters {
        let is_back = |row: &SlaveRow| row.presence == Presence::Up && row.sequence >= 2;
        pair.master
            .wait_for_row(reporter.slave.name(), "back", is_back);
    }
}
