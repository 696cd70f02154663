//! Both ends of the protocol against each other: over byte streams with delays and cuts, over datagrams
//! that are lost, doubled and late, through crashes, restarts and lost disks, under a virtual clock.
//!
//! Every run follows from its seed. `ROLLCALL_SIMULATION_SEED=17 cargo test -p rollcall-protocol
//! --test simulation` runs only that one, `ROLLCALL_SIMULATION_SEEDS=10000` runs more of them.

mod asking;
mod datagrams;
mod exchange;
mod master;
mod network;
mod oracle;
mod slave;
mod spool;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use oracle::Counts;
use world::World;

/// Names the one seed to run.
const SEED: &str = "ROLLCALL_SIMULATION_SEED";
/// How many seeds run otherwise, …
const SEEDS: u64 = 300;
/// … unless this says more.
const SEED_COUNT: &str = "ROLLCALL_SIMULATION_SEEDS";

/// What must have happened for the runs to mean anything.
const MUST_HAPPEN: &[&str] = &[
    "reports",
    "reports_applied",
    "reports_covered_by_a_gap",
    "reports_destroyed_with_a_disk",
    "reports_lost_with_the_masters_disk",
    "connections",
    "connects_refused",
    "connections_reset",
    "connections_silenced",
    "cut_on_the_way_up",
    "cut_on_the_way_down",
    "requests_lost",
    "answers_lost",
    "delays_changed",
    "acks",
    "duplicates",
    "window_full",
    "previews",
    "silences",
    "hello_timeouts",
    "commits_stalled",
    "crashes_after_an_unseen_commit",
    "master_crashes",
    "master_stops",
    "master_goodbyes",
    "master_closed_first",
    "windows_kept",
    "master_disks_lost",
    "master_disks_replaced_by_a_backup",
    "gaps_acked_before",
    "gaps_applied_in_part",
    "holes_refused",
    "holes_explained",
    "slave_kills",
    "slave_stops",
    "slave_goodbyes",
    "slave_restores",
    "resyncs",
    "spools_gave_way",
    "id_conflicts",
    "sessions_taken_over",
    "remnants_closed",
    "questions",
    "questions_resent",
    "questions_given_up",
    "questions_lost",
    "questions_in_hand",
    "questions_known",
    "questions_not_taken",
    "datagram_answers_lost",
    "datagrams_doubled",
    "datagrams_late",
    "answers_shortened",
];

#[test]
fn nothing_is_lost_or_doubled_whatever_goes_wrong() {
    if let Ok(seed) = std::env::var(SEED) {
        let counts = World::new(seed.parse().expect("a seed is a number")).run();
        println!("{counts:#?}");
        return;
    }
    let seeds = std::env::var(SEED_COUNT).ok();
    let seeds = seeds.and_then(|count| count.parse().ok()).unwrap_or(SEEDS);
    let mut all = Counts::default();
    for seed in 0..seeds {
        match catch_unwind(AssertUnwindSafe(|| World::new(seed).run())) {
            Ok(counts) => {
                for (what, count) in counts.0 {
                    *all.0.entry(what).or_default() += count;
                }
            }
            Err(panic) => {
                println!("{SEED}={seed} runs this one alone");
                resume_unwind(panic);
            }
        }
    }
    println!("{all:#?}");
    for what in MUST_HAPPEN {
        assert!(
            all.0.contains_key(what),
            "{what} never happened in {seeds} runs"
        );
    }
}

#[test]
fn a_seed_always_gives_the_same_run() {
    let run = || World::new(7).run().0;
    assert_eq!(run(), run());
}
