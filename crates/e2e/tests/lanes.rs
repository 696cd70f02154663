//! Two lanes: many slaves replay at once, live reports go on, and each report counts once.

use std::time::Duration;

use rollcall_e2e::bench::Bench;
use rollcall_e2e::peer::Identity;
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Peer, wait_until};
use rollcall_protocol::api::Health;

const REPLAYING: u64 = 60;
const BACKLOG: u64 = 1000;
const LIVE: u64 = 5;

fn replay(master: &Master, folder: &std::path::Path) -> Bench {
    let [slaves, backlog, live] = [REPLAYING, BACKLOG, LIVE].map(|number| number.to_string());
    let arguments = [
        "--slaves",
        &slaves,
        "--replay",
        &backlog,
        "--live-slaves",
        &live,
        "--rate",
        "20",
    ];
    Bench::spawn(folder, master.address(), &arguments)
}

/// Backlog that was read in shares, and cut off by kills between them, is applied once and in order.
#[test]
fn a_replay_over_kills_is_applied_once_and_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::started(folder.path());
    let mut bench = replay(&master, folder.path());
    for kill in 1..=3 {
        let api = master.api();
        wait_until(PATIENCE, "acks of all slaves and more", || {
            (api.metric("rollcall_acks_total").ok()? >= 200.0).then_some(())
        });
        assert!(!bench.has_ended(), "all was replayed before kill {kill}");
        master.kill_and_wait();
        master.start();
    }
    let outcome = bench.wait(Duration::from_secs(120));
    let result = &outcome.result;
    // A hole or a repeat that is not allowed for is refused, and a refusal fails the run.
    assert_eq!(outcome.code, Some(0), "{result} {}", outcome.stderr);
    assert_eq!(outcome.number("/lost"), 0, "{result}");
    assert!(
        outcome.number("/sent") > REPLAYING * BACKLOG,
        "nobody reported live: {result}"
    );
    let rows = outcome.assert_on_the_roll_of(&master);
    assert_eq!(rows.len(), outcome.ledger.len());
}

/// While all of that waits for its turn, somebody who has no backlog is served at once.
#[test]
fn a_newcomer_is_acked_while_others_replay() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = Master::started(folder.path());
    let mut bench = replay(&master, folder.path());
    let api = master.api();
    let acks = || api.metric("rollcall_acks_total").ok();
    wait_until(PATIENCE, "the replay", || (acks()? >= 100.0).then_some(()));
    let mut identity = Identity::new("newcomer", 1000);
    let (mut peer, welcome) = Peer::open(master.address(), &identity).expect("a session");
    assert_eq!(welcome.window, 64, "it has no backlog");
    for _ in 0..20 {
        peer.report(&mut identity).expect("an ack");
    }
    assert!(!bench.has_ended(), "all was replayed before it was acked");
    let outcome = bench.wait(Duration::from_secs(120));
    assert_eq!(outcome.code, Some(0), "{}", outcome.result);
    let row = master.wait_for_row("newcomer", "at 20", |row| row.sequence == 20);
    assert_eq!((row.applied, row.health), (20, Some(Health::Ok)));
}
