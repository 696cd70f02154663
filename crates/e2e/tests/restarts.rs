//! Restarts of the master: the port is there at once, nothing is lost or counted twice, and nobody
//! is blamed for the master's absence.

use std::time::Duration;

use rollcall_e2e::bench::{Bench, Outcome};
use rollcall_e2e::peer::Identity;
use rollcall_e2e::wait::{PATIENCE, watch_for};
use rollcall_e2e::{Master, Peer, wait_until};
use rollcall_os::clock;
use rollcall_protocol::api::{EventKind, EventRow, Presence};

/// How often the master is killed, unless ROLLCALL_RESTARTS says otherwise.
const RESTARTS: u32 = 20;
const SLAVES: usize = 50;
/// Every so many restarts the master may live until it has acked one report a slave, so that kills
/// hit it in the middle of traffic too.
const TRAFFIC_EVERY: u32 = 3;

fn restarts() -> u32 {
    match std::env::var("ROLLCALL_RESTARTS") {
        Ok(text) => text.parse().expect("ROLLCALL_RESTARTS is a number"),
        Err(_) => RESTARTS,
    }
}

/// kill -9 in a row, each as soon as the last start is ready, under 50 slaves that report every
/// 100 ms, half of them with a connection for each report.
#[test]
fn kills_in_a_row_lose_nothing_and_count_nothing_twice() {
    let restarts = restarts();
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    // Short enough that time counted against a slave during the restarts would make it missing, and
    // long enough for a busy machine: 6 s without a report while the master listens.
    master
        .config
        .set("presence.late_after", 30.0)
        .set("presence.missing_after", 60.0)
        .set("presence.reconnect_window", "10s");
    master.start();
    let slaves = SLAVES.to_string();
    let arguments = [
        "--slaves",
        &slaves,
        "--mode",
        "mixed",
        "--rate",
        "10",
        "--duration",
        "1h",
        "--allow-errors",
    ];
    let mut bench = Bench::spawn(folder.path(), master.address(), &arguments);
    let api = master.api();
    wait_until(PATIENCE, "all slaves on the roll", || {
        (api.slaves().ok()?.len() == SLAVES).then_some(())
    });

    let mut retried = 0;
    let began = clock::boot();
    for restart in 1..=restarts {
        assert!(
            !bench.has_ended(),
            "the fleet was gone before restart {restart}"
        );
        master.kill();
        master.spawn();
        master.wait_until_ready();
        retried += master.log().events("bind_retried").len();
        if restart % TRAFFIC_EVERY == 0 {
            wait_until(PATIENCE, "acks after a restart", || {
                (api.metric("rollcall_acks_total").ok()? >= 50.0).then_some(())
            });
        }
    }
    let took = clock::boot().saturating_since(began);
    println!("{restarts} restarts in {took:?}, bind retried in {retried} of them");

    bench.stop();
    let outcome = bench.wait(PATIENCE);
    // At once: from here on the slaves are silent, and some day missing.
    let events = api.events().expect("the events");
    assert_nothing_lost(&outcome, &mut master);
    let missing: Vec<&EventRow> = events.iter().filter(|event| is_missing(event)).collect();
    assert!(missing.is_empty(), "false alarms: {missing:#?}");
    let starts = |event: &&EventRow| event.kind == EventKind::MasterStart;
    // A start that was killed before its first commit has left no event.
    let starts = events.iter().filter(starts).count();
    assert!(
        (2..=1 + restarts).contains(&u32::try_from(starts).expect("few")),
        "{starts}"
    );
    let log = std::fs::read_to_string(folder.path().join("master.log")).expect("the log");
    assert!(
        !log.contains("\"panic\"") && !log.contains("master_failed"),
        "{log}"
    );
    let stderr = std::fs::read_to_string(folder.path().join("master.err")).expect("stderr");
    assert_eq!(stderr, "", "every start was a good one");
}

/// The roll has every acked report, each once, and still does after one more kill.
fn assert_nothing_lost(outcome: &Outcome, master: &mut Master) {
    let result = &outcome.result;
    assert_eq!(outcome.code, Some(0), "{result} {}", outcome.stderr);
    assert_eq!(outcome.number("/lost"), 0, "{result}");
    assert_eq!(
        outcome.number("/acked"),
        outcome.number("/sent"),
        "{result}"
    );
    let errors = result["errors"].as_object().expect("errors by kind");
    for bad in [
        "address_in_use",
        "address_not_available",
        "bad_frame",
        "bad_ack",
        "forgotten",
        "refused_by_master",
    ] {
        assert!(!errors.contains_key(bad), "{bad}: {result}");
    }
    for round in ["as it ran", "after one more kill -9"] {
        let rows = outcome.assert_on_the_roll_of(master);
        assert_eq!(
            (rows.len(), outcome.ledger.len()),
            (SLAVES, SLAVES),
            "{round}"
        );
        master.kill_and_wait();
        master.start();
    }
}

fn is_missing(event: &EventRow) -> bool {
    event.kind == EventKind::Presence && event.to.as_deref() == Some("missing")
}

/// Before the first slave is back, readers see the roll as it was; who stays away is found out.
#[test]
fn the_roll_outlives_a_kill_and_those_who_died_meanwhile_are_missed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    master.config.set("presence.reconnect_window", "3s");
    master.start();
    // Late after 4.5 s, which a busy machine does not take between two reports.
    let mut steady = Identity::new("steady", 3000);
    let mut doomed = Identity::new("doomed", 3000);
    let mut peers = [&mut steady, &mut doomed].map(|identity| {
        let (mut peer, _) = Peer::open(master.address(), identity).expect("a session");
        for _ in 0..5 {
            peer.report(identity).expect("an ack");
        }
        peer
    });
    master.wait_for_row("doomed", "at 5", |row| row.sequence == 5);
    let before = master.api().slave("doomed").expect("a row");
    master.kill_and_wait();
    // It dies while the master is down.
    drop(std::mem::replace(&mut peers, {
        master.start();
        let after = master.api().slave("doomed").expect("the row, from disk");
        assert_eq!(after.row.presence, Presence::Up);
        assert_eq!(after.row.applied, before.row.applied);
        assert_eq!(after.row.sequence, before.row.sequence);
        assert_eq!(after.checks, before.checks);
        let reopen =
            |identity: &Identity| Peer::open(master.address(), identity).expect("a session").0;
        [reopen(&steady), reopen(&steady)]
    }));
    let [_, peer] = &mut peers;
    let early = watch_for(Duration::from_secs(2), || {
        peer.report(&mut steady).expect("an ack");
        let presences = master.api().presences("doomed").ok()?;
        (presences != ["up"]).then_some(presences)
    });
    assert_eq!(
        early, None,
        "blamed inside the window in which slaves come back"
    );
    wait_until(2 * PATIENCE, "the death to be found out", || {
        peer.report(&mut steady).expect("an ack");
        let presences = master.api().presences("doomed").ok()?;
        (presences == ["up", "late", "missing"]).then_some(())
    });
    assert_eq!(
        master.api().presences("steady").expect("the events"),
        ["up"]
    );
    let sent = steady.unacked - 1;
    let row = master.wait_for_row("steady", "up to date", |row| row.sequence == sent);
    assert_eq!((row.applied, row.duplicates), (sent, 0));
}

/// What was sent and not acked when the master died comes again and is applied once.
#[test]
fn an_ack_that_was_lost_makes_a_duplicate_and_no_second_report() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::started(folder.path());
    let mut identity = Identity::new("again", 1000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    for _ in 0..20 {
        peer.send_report(&mut identity).expect("a connection");
    }
    // Applied, and the acks are never read.
    master.wait_for_row("again", "at 21", |row| row.sequence == 21);
    master.kill_and_wait();
    master.start();
    let (mut peer, welcome) = Peer::open(master.address(), &identity).expect("a session");
    assert_eq!(welcome.marks.len(), 1);
    assert_eq!(welcome.marks[0].sequence, 21, "the master says what it has");
    peer.resend(&identity).expect("a connection");
    peer.await_ack(&mut identity).expect("acks");
    peer.report(&mut identity).expect("an ack");
    let row = master.wait_for_row("again", "at 22", |row| row.sequence == 22);
    assert_eq!((row.applied, row.duplicates, row.gaps), (22, 20, 0));
}
