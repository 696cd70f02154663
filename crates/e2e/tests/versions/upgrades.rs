//! Daemons of this build beside those of an earlier one, and in their place, under running reports.

use crate::pair::{Build, End, PRESENT, Pair, earlier_or_tell};

/// Each side is killed, with a backlog between them, and each is ended as planned.
fn talk(of_master: Build<'_>, of_slaves: Build<'_>) {
    let mut pair = Pair::start(of_master, of_slaves);
    pair.replace_master(of_master, End::Killed);
    pair.replace_slaves(of_slaves, true);
    pair.end_master(End::Planned);
    pair.replace_slaves(of_slaves, false);
    pair.start_master(of_master);
    pair.let_report();
    pair.settle();
}

#[test]
fn slaves_of_an_earlier_build_report_to_this_master() {
    let name = "slaves_of_an_earlier_build_report_to_this_master";
    if let Some(earlier) = earlier_or_tell(name) {
        talk(PRESENT, Some(&earlier));
    }
}

#[test]
fn these_slaves_report_to_a_master_of_an_earlier_build() {
    let name = "these_slaves_report_to_a_master_of_an_earlier_build";
    if let Some(earlier) = earlier_or_tell(name) {
        talk(Some(&earlier), PRESENT);
    }
}

#[test]
fn a_pair_is_upgraded_master_first() {
    let Some(earlier) = earlier_or_tell("a_pair_is_upgraded_master_first") else {
        return;
    };
    for end in [End::Planned, End::Killed] {
        let mut pair = Pair::start(Some(&earlier), Some(&earlier));
        pair.replace_master(PRESENT, end);
        pair.replace_slaves(PRESENT, true);
        pair.replace_master(PRESENT, End::Killed);
        pair.settle();
    }
}

/// The slaves find a backlog of their predecessors in their spools.
#[test]
fn a_pair_is_upgraded_slaves_first() {
    let Some(earlier) = earlier_or_tell("a_pair_is_upgraded_slaves_first") else {
        return;
    };
    for end in [End::Planned, End::Killed] {
        let mut pair = Pair::start(Some(&earlier), Some(&earlier));
        pair.end_master(end);
        pair.replace_slaves(PRESENT, false);
        pair.start_master(Some(&earlier));
        pair.let_report();
        pair.replace_master(PRESENT, end);
        pair.settle();
    }
}
