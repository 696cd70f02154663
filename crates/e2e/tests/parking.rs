//! Established connections outlive the master: restarts and kills that nobody notices, with a
//! supervisor that holds descriptors.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rollcall_e2e::bench::{Bench, Outcome};
use rollcall_e2e::peer::Identity;
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Peer, Slave, Supervisor, wait_until};
use rollcall_os::clock;
use rollcall_protocol::api::{EventKind, EventRow, SlaveRow};
use rollcall_protocol::wire::to_slave;

const KILLS: u32 = 30;
const RESTARTS: u32 = 10;
const SLAVES: usize = 200;
/// Every so many kills the master may live until it has acked that much.
const TRAFFIC_EVERY: u32 = 3;
const TRAFFIC_ACKS: f64 = 200.0;

fn master(folder: &std::path::Path) -> Master {
    let mut master = Master::new(folder, "master");
    // Short enough that time counted against a slave during the restarts would make it late, and
    // long enough for a busy machine.
    master
        .config
        .set("presence.late_after", 20.0)
        .set("presence.missing_after", 40.0)
        .set("presence.reconnect_window", "10s");
    master
}

/// Between two connects of a [`Prober`].
const PROBE_EVERY: Duration = Duration::from_millis(5);

/// Connects again and again and counts whom nobody listens to.
struct Prober {
    stop: mpsc::Sender<()>,
    tried: Arc<AtomicU64>,
    thread: JoinHandle<Vec<std::io::Error>>,
}

impl Prober {
    fn start(master: std::net::SocketAddr) -> Self {
        let (stop, stopped) = mpsc::channel();
        let tried = Arc::<AtomicU64>::default();
        let trying = Arc::clone(&tried);
        let thread = thread::spawn(move || {
            let mut failed = Vec::new();
            // Until it is stopped, but no flood.
            while stopped.recv_timeout(PROBE_EVERY).is_err() {
                failed.extend(TcpStream::connect(master).err());
                trying.fetch_add(1, Ordering::Relaxed);
            }
            failed
        });
        Self {
            stop,
            tried,
            thread,
        }
    }

    #[track_caller]
    fn assert_nobody_was_refused(self) {
        self.stop.send(()).expect("it goes on");
        let failed = self.thread.join().expect("no panic");
        let tried = self.tried.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "of {tried}: {failed:?}");
        println!("{tried} connects, none refused");
    }
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
    let count = SLAVES.to_string();
    let arguments = [
        "--slaves",
        &count,
        "--mode",
        "pooled",
        "--rate",
        "10",
        "--duration",
        "40s",
    ];
    let mut bench = Bench::spawn(folder.path(), master.address(), &arguments);
    let api = master.api();
    wait_until(PATIENCE, "all slaves on the roll, with a report", || {
        let rows = api.slaves().ok()?;
        let reporting = rows.iter().filter(|row| row.applied > 0).count();
        (reporting == SLAVES + slaves.len()).then_some(())
    });
    let prober = Prober::start(master.address());

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
        if restart % TRAFFIC_EVERY == 0 {
            wait_until(PATIENCE, "acks after a restart", || {
                (api.metric("rollcall_acks_total").ok()? >= TRAFFIC_ACKS).then_some(())
            });
        }
    }
    let took = clock::boot().saturating_since(began);
    println!("{KILLS} kills and {RESTARTS} restarts in {took:?}");
    prober.assert_nobody_was_refused();
    let outcome = bench.wait(Duration::from_secs(90));
    let events = api.events().expect("the events");
    for slave in &mut slaves {
        slave.terminate();
    }
    assert_nobody_noticed(&outcome, &master, &events);
    let everybody = u64::try_from(SLAVES + slaves.len()).expect("few");
    assert!(
        resumed.iter().all(|count| *count == everybody),
        "{resumed:?}"
    );
    // Two for each shard, and the listener.
    let held = supervisor.names().len();
    assert!((3..=2 * 3 + 1).contains(&held), "{:?}", supervisor.names());
}

#[track_caller]
fn assert_nobody_noticed(outcome: &Outcome, master: &Master, events: &[EventRow]) {
    let result = &outcome.result;
    assert_eq!(outcome.code, Some(0), "{result} {}", outcome.stderr);
    for nothing in ["/lost", "/reconnects", "/resent"] {
        assert_eq!(outcome.number(nothing), 0, "{nothing}: {result}");
    }
    assert_eq!(outcome.number("/acked"), outcome.number("/sent"));
    let errors = result["errors"].as_object().expect("errors by kind");
    assert!(errors.is_empty(), "{result}");
    let rows = wait_until(PATIENCE, "the roll to show all", || {
        let rows = master.api().slaves().ok()?;
        let applied: u64 = rows.iter().map(|row| row.applied).sum();
        (applied >= outcome.number("/acked")).then_some(rows)
    });
    for row in &rows {
        assert_eq!(row.reconnects, 0, "{row:#?}");
    }
    let rows: BTreeMap<&str, &SlaveRow> = rows.iter().map(|row| (&*row.name, row)).collect();
    assert_eq!(outcome.ledger.len(), SLAVES);
    for line in &outcome.ledger {
        let row = rows[&*line.name];
        assert_eq!(
            row.applied, line.distinct_reports_acked,
            "{row:#?} {line:?}"
        );
        assert_eq!((row.applied, row.gaps), (line.sent, 0), "{row:#?} {line:?}");
    }
    let noticed = |event: &&EventRow| match event.kind {
        EventKind::Presence => event.to.as_deref() != Some("up"),
        // What a slave says of its own host is not this test's business.
        EventKind::Enrolled | EventKind::MasterStart | EventKind::Health | EventKind::Check => {
            false
        }
        _ => true,
    };
    let noticed: Vec<_> = events.iter().filter(noticed).collect();
    assert!(noticed.is_empty(), "{}: {noticed:#?}", noticed.len());
    let came_up = |event: &&EventRow| event.kind == EventKind::Presence;
    assert_eq!(events.iter().filter(came_up).count(), SLAVES + 2);
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
    assert_eq!(supervisor.names().len(), 3, "a listener and a pair");
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
    assert_eq!(supervisor.names().len(), 2);
    first.config.set("listen.addresses", vec![both[0].clone()]);
    assert!(first.terminate().success());
    TcpStream::connect(second.address()).expect("it is held");
    first.spawn_under(&supervisor);
    first.wait_until_ready();
    assert_eq!(first.log().events("listener_inherited").len(), 1);
    assert_eq!(first.log().events("listener_unwanted").len(), 1);
    assert_eq!(supervisor.names().len(), 1);
    TcpStream::connect(second.address()).expect_err("nobody listens");
}
