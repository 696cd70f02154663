//! Established connections outlive the master: restarts and kills that nobody notices, with a
//! supervisor that holds descriptors.

use std::net::TcpStream;

use rollcall_e2e::peer::Identity;
use rollcall_e2e::unnoticed::{Prober, assert_nobody_noticed, start_fleet};
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Peer, Slave, Supervisor, wait_until};
use rollcall_os::clock;
use rollcall_protocol::wire::to_slave;

const KILLS: u32 = 30;
const RESTARTS: u32 = 10;
const SLAVES: usize = 200;
/// Every so many kills, and after the last one, the master may live until it has acked that much.
const TRAFFIC_EVERY: u32 = 3;
const TRAFFIC_ACKS: f64 = 200.0;

fn master(folder: &std::path::Path) -> Master {
    let mut master = Master::new(folder, "master");
    // Short enough that time counted against a slave during the restarts would make it late, and
    // long enough for a busy machine: 5 s without a report while the master listens.
    master
        .config
        .set("presence.late_after", 50.0)
        .set("presence.missing_after", 100.0)
        .set("presence.reconnect_window", "10s");
    master
}

/// kill -9 and SIGTERM in a row, each as soon as the last start is ready, under 200 slaves that report
/// all the time and two real ones.
#[test]
fn kills_and_restarts_are_noticed_by_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let supervisor = Supervisor::new(folder.path(), 1000);
    let mut master = master(folder.path());
    master.spawn_under(&supervisor);
    master.wait_until_ready();
    let mut slaves = ["web-1", "web-2"].map(|name| {
        let mut slave = Slave::new(folder.path(), name, &[master.address()], "100ms");
        slave.start();
        slave
    });
    let mut bench = start_fleet(folder.path(), &master, SLAVES, slaves.len());
    let api = master.api();
    let probers = [master.address(), api.address()].map(Prober::start);

    let began = clock::boot();
    let mut resumed = Vec::new();
    for restart in 1..=KILLS + RESTARTS {
        assert!(!bench.has_ended(), "the fleet was gone before {restart}");
        if restart <= KILLS {
            master.kill_and_wait();
        } else {
            let status = master.terminate();
            assert!(status.success(), "{status}");
        }
        master.spawn_under(&supervisor);
        master.wait_until_ready();
        let adopted = master.wait_for_event("connections_adopted");
        resumed.push(adopted.number("resumed").unwrap_or(0));
        if restart % TRAFFIC_EVERY == 0 || restart == KILLS + RESTARTS {
            wait_until(PATIENCE, "acks after a restart", || {
                (api.metric("rollcall_acks_total").ok()? >= TRAFFIC_ACKS).then_some(())
            });
        }
    }
    let took = clock::boot().saturating_since(began);
    println!("{KILLS} kills and {RESTARTS} restarts in {took:?}");
    for prober in probers {
        prober.assert_nobody_was_refused();
    }
    bench.stop();
    let outcome = bench.wait(PATIENCE);
    let events = api.events().expect("the events");
    for slave in &mut slaves {
        slave.terminate();
    }
    assert_eq!(outcome.ledger.len(), SLAVES);
    assert_nobody_noticed(&outcome, &master, &events, slaves.len());
    let everybody = u64::try_from(SLAVES + slaves.len()).expect("few");
    assert!(
        resumed.iter().all(|count| *count == everybody),
        "{resumed:?}"
    );
    // Two for each shard, and the listeners.
    let held = supervisor.names().len();
    assert!((4..=2 * 3 + 2).contains(&held), "{:?}", supervisor.names());
}

/// What a connection was in the middle of when the master died goes on: nothing said, a Hello that was
/// not answered, a report that was not acked, a frame of which a part is there.
#[test]
fn every_state_of_a_connection_is_gone_on_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let supervisor = Supervisor::new(folder.path(), 1000);
    let mut master = master(folder.path());
    master.spawn_under(&supervisor);
    master.wait_until_ready();
    let mut idle = Identity::new("idle", 60_000);
    let (mut idle_peer, _) = Peer::open(master.address(), &idle).expect("a session");
    idle_peer.report(&mut idle).expect("an ack");
    let mut cut = Identity::new("cut", 60_000);
    let (mut cut_peer, _) = Peer::open(master.address(), &cut).expect("a session");
    let since = master.wait_for_row("cut", "connected", |row| row.connected_since_ms.is_some());
    master.kill_and_wait();

    // To a master that is not there: the kernel takes it.
    idle_peer.send_report(&mut idle).expect("sent");
    let half = rollcall_e2e::peer::frame(rollcall_protocol::wire::to_master::Kind::Report(
        cut.report(1),
    ));
    cut.next = 2;
    cut_peer.send_bytes(&half[..half.len() / 2]).expect("sent");
    let late = Identity::new("late", 60_000);
    let mut late_peer = Peer::connect(master.address()).expect("the listener is held");
    let hello = rollcall_protocol::wire::to_master::Kind::Hello(late.hello());
    late_peer.send(hello).expect("sent");

    master.spawn_under(&supervisor);
    master.wait_until_ready();
    idle_peer.await_ack(&mut idle).expect("an ack");
    let welcome = late_peer.receive().expect("an answer");
    assert!(
        matches!(welcome, Some(to_slave::Kind::Welcome(_))),
        "{welcome:?}"
    );
    cut_peer.send_bytes(&half[half.len() / 2..]).expect("sent");
    cut_peer.await_ack(&mut cut).expect("an ack");
    let row = master.wait_for_row("cut", "connected", |row| row.connected_since_ms.is_some());
    assert_eq!(row.connected_since_ms, since.connected_since_ms);
    assert_eq!((row.reconnects, row.applied, row.duplicates), (0, 1, 0));

    // Once more by a restart: whoever has not said Hello comes in the same way.
    assert!(master.terminate().success());
    master.spawn_under(&supervisor);
    master.wait_until_ready();
    for (peer, identity) in [(&mut idle_peer, &mut idle), (&mut cut_peer, &mut cut)] {
        peer.report(identity).expect("an ack");
    }
}

/// SIGINT is for good: everybody is told goodbye, and nothing is left with the supervisor.
#[test]
fn a_stop_for_good_says_goodbye_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let supervisor = Supervisor::new(folder.path(), 1000);
    let mut master = master(folder.path());
    master.spawn_under(&supervisor);
    master.wait_until_ready();
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    assert_eq!(supervisor.names().len(), 4, "two listeners and a pair");
    master.signal(rustix::process::Signal::INT);
    let goodbye = peer.receive().expect("a word");
    let Some(to_slave::Kind::Goodbye(goodbye)) = goodbye else {
        panic!("{goodbye:?}");
    };
    assert_eq!(goodbye.marks[0].sequence, 1);
    peer.await_close().expect("the end");
    assert!(master.wait(PATIENCE).success());
    assert_eq!(supervisor.names(), Vec::<String>::new());
    TcpStream::connect(master.address()).expect_err("nobody listens");
}

/// A connection that the master ends is over for its peer, though a copy of it is parked; and what was
/// left is not taken for alive by the next master.
#[test]
fn who_is_refused_is_closed_though_a_copy_is_parked() {
    let folder = tempfile::tempdir().expect("a folder");
    let supervisor = Supervisor::new(folder.path(), 1000);
    let mut master = master(folder.path());
    master.spawn_under(&supervisor);
    master.wait_until_ready();
    let identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    let other = Identity::new("web-2", 60_000);
    let (_other_peer, _) = Peer::open(master.address(), &other).expect("a session");
    // A second Hello is against the protocol.
    let hello = rollcall_protocol::wire::to_master::Kind::Hello(identity.hello());
    peer.send(hello).expect("sent");
    peer.finish().expect("sent");
    peer.await_refusal().expect("an Error frame and the end");
    master.kill_and_wait();
    master.spawn_under(&supervisor);
    let adopted = master.wait_for_event("connections_adopted");
    assert_eq!(adopted.number("resumed"), Some(1));
}

/// A listener that the configuration does not have any more is closed, and forgotten.
#[test]
fn an_unwanted_listener_is_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let supervisor = Supervisor::new(folder.path(), 1000);
    let mut first = master(folder.path());
    let second = Master::new(folder.path(), "second");
    let both = [first.address(), second.address()].map(|address| address.to_string());
    first.config.set("listen.addresses", both.to_vec());
    first.spawn_under(&supervisor);
    first.wait_until_ready();
    assert_eq!(supervisor.names().len(), 3, "and that of readers");
    let readers = first.api().address();
    let other = second.api().address().to_string();
    first
        .config
        .set("listen.addresses", vec![both[0].clone()])
        .set("http.address", other);
    assert!(first.terminate().success());
    for held in [second.address(), readers] {
        TcpStream::connect(held).expect("it is held");
    }
    first.spawn_under(&supervisor);
    first.wait_until_ready();
    assert_eq!(first.log().events("listener_inherited").len(), 1);
    assert_eq!(first.log().events("listener_unwanted").len(), 2);
    assert_eq!(supervisor.names().len(), 2);
    for gone in [second.address(), readers] {
        TcpStream::connect(gone).expect_err("nobody listens");
    }
}
