//! A master that is away: its fleet comes back evenly and nobody is blamed; who died meanwhile is missed,
//! once; and readers see the roll before the first slave is there.
//!
//! With 10,000 slaves, on programs of a release build (`cargo build --release --bins`):
//! `ROLLCALL_E2E_BIN_DIR=$PWD/target/release ROLLCALL_FLEET=10000 cargo test -p rollcall-e2e --test outage -- --nocapture
//! --test-threads 1`. It prints when they came back.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rollcall_e2e::bench::Bench;
use rollcall_e2e::peer::Identity;
use rollcall_e2e::wait::{PATIENCE, watch_for};
use rollcall_e2e::{Master, Peer, wait_until};
use rollcall_os::clock;
use rollcall_protocol::api::{EventKind, EventRow, Presence, SlaveRow};
use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

/// Simulated slaves, unless ROLLCALL_FLEET says otherwise.
const SLAVES: usize = 1000;
/// Those of them that die while the master is away.
const DEAD: usize = 37;
/// Longer than a slave may be silent, so that time that nobody listened makes everybody missing if it
/// counts.
const OUTAGE: Duration = Duration::from_secs(5);
/// What a fleet is told to come back in, by the rate that the test sets.
const WINDOW: Duration = Duration::from_secs(4);

fn fleet_size() -> usize {
    match std::env::var("ROLLCALL_FLEET") {
        Ok(text) => text.parse().expect("ROLLCALL_FLEET is a number"),
        Err(_) => SLAVES,
    }
}

/// So many slaves, with files of their own in `folder`; each reports every `1 / rate` seconds.
fn spawn(folder: &Path, name: &str, master: &Master, slaves: usize, more: &[&str]) -> Bench {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).expect("a folder");
    let slaves = slaves.to_string();
    let mut arguments = vec!["--slaves", &slaves, "--duration", "10m", "--allow-errors"];
    arguments.extend(more);
    Bench::spawn(&folder, master.address(), &arguments)
}

/// Waits until so many slaves are up, and returns all rows.
fn wait_for_fleet(master: &Master, slaves: usize) -> Vec<SlaveRow> {
    let api = master.api();
    wait_until(PATIENCE * 3, "all slaves to be up", || {
        // A glance: the rows of a large roll keep a master busy.
        let up = api.metric("rollcall_slaves{presence=\"up\"}").ok()?;
        if up < slaves as f64 {
            return None;
        }
        let rows = api.slaves().ok()?;
        let up = rows.iter().filter(|row| row.presence == Presence::Up);
        (up.count() == slaves).then_some(rows)
    })
}

/// The changes of presence of some slaves, without the first one, by which they are up.
fn changes(master: &Master, of: impl Fn(&str) -> bool) -> Vec<EventRow> {
    let mut events = master.api().events().expect("the events");
    events.retain(|event| {
        event.kind == EventKind::Presence
            && event.from.as_deref() != Some("expected")
            && event.slave.as_deref().is_some_and(&of)
    });
    events
}

/// Those that were told to be `presence`, in order of their names, as often as it was told.
fn told<'a>(events: &'a [EventRow], presence: &str) -> Vec<&'a str> {
    let is_it = |event: &&EventRow| event.to.as_deref() == Some(presence);
    let mut names: Vec<&str> = events
        .iter()
        .filter(is_it)
        .filter_map(|event| event.slave.as_deref())
        .collect();
    names.sort_unstable();
    names
}

/// The master is killed, 37 slaves die, and it is killed twice more: while everybody has time to come
/// back, and when the dead are late already.
#[test]
fn those_who_die_during_an_outage_are_missed_once_and_nobody_else_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    // 3 s without a report is late and 4 s missing; pauses of up to 4.5 s fit into the window.
    master
        .config
        .set("presence.late_after", 3.0)
        .set("presence.missing_after", 4.0)
        .set("presence.reconnect_window", "6s");
    master.start();
    let arguments = ["--mode", "mixed", "--rate", "1", "--retry-longest", "3s"];
    let doomed = spawn(folder.path(), "doomed", &master, DEAD, &arguments);
    let dead: BTreeSet<String> = wait_for_fleet(&master, DEAD)
        .into_iter()
        .map(|row| row.name)
        .collect();
    let living = fleet_size() - DEAD;
    let mut steady = spawn(folder.path(), "steady", &master, living, &arguments);
    wait_for_fleet(&master, DEAD + living);

    master.kill_and_wait();
    drop(doomed);
    let ended = watch_for(OUTAGE, || steady.has_ended().then_some(()));
    assert_eq!(ended, None, "the fleet has given up");
    master.start();
    let acks = |count: f64| {
        let api = master.api();
        wait_until(PATIENCE, "the first slaves to be back", || {
            (api.metric("rollcall_acks_total").ok()? >= count).then_some(())
        });
    };
    acks(100.0);
    let early = changes(&master, |_| true);
    assert_eq!(early.first(), None, "within the time to come back");
    master.kill_and_wait();
    master.start();
    wait_until(PATIENCE, "the dead to be late", || {
        let late = changes(&master, |name| dead.contains(name));
        (told(&late, "late").len() == DEAD).then_some(())
    });
    master.kill_and_wait();
    master.start();
    wait_until(PATIENCE, "the dead to be missed", || {
        let missing = changes(&master, |name| dead.contains(name));
        (told(&missing, "missing").len() >= DEAD).then_some(())
    });
    // Long enough for anybody else to be missed as well.
    let wrong = watch_for(Duration::from_secs(4), || {
        let others = changes(&master, |name| !dead.contains(name));
        let first = others.first().cloned();
        first.map(|first| (others.len(), first))
    });
    assert_eq!(wrong, None, "those who live were told as something else");
    let events = changes(&master, |_| true);
    let names: Vec<&str> = dead.iter().map(String::as_str).collect();
    assert_eq!(told(&events, "late"), names, "once each");
    assert_eq!(told(&events, "missing"), names, "once each");
    assert_eq!(events.len(), 2 * DEAD, "and nothing else");
}

/// All slaves lose the master at once, and it is back at once, without anybody who keeps its listener.
fn assert_a_fleet_comes_back_evenly(signal: Signal) {
    const BINS: usize = 8;
    let fleet = fleet_size();
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    let rate = fleet / usize::try_from(WINDOW.as_secs()).expect("small");
    master.config.set(
        "presence.reconnect_rate",
        i64::try_from(rate).expect("small"),
    );
    master.start();
    // Each reports at once when it is back, and seldom otherwise.
    let arguments = ["--rate", "0.1", "--retry-longest", "30s"];
    let mut bench = spawn(folder.path(), "fleet", &master, fleet, &arguments);
    wait_for_fleet(&master, fleet);
    let lost_ms = clock::wall_ms();
    master.signal(signal);
    master.wait(PATIENCE);
    master.start();
    let ready_ms = clock::wall_ms();
    let api = master.api();
    let mut back = wait_until(PATIENCE, "all slaves to be back", || {
        assert!(!bench.has_ended(), "the fleet has given up");
        if api.metric("rollcall_connections").ok()? < fleet as f64 {
            return None;
        }
        let rows = api.slaves().ok()?;
        let back = rows.iter().filter_map(|row| row.connected_since_ms);
        let back: Vec<i64> = back.filter(|since_ms| *since_ms > lost_ms).collect();
        (back.len() == fleet).then_some(back)
    });
    back.sort_unstable();

    let after_ms = |ms: &i64| u64::try_from(ms - ready_ms).unwrap_or(0);
    let last = Duration::from_millis(back.last().map_or(0, after_ms));
    let mut seconds = vec![0_usize; 1 + usize::try_from(last.as_secs()).expect("small")];
    let mut bins = vec![0_usize; BINS + 1];
    let bin_ms = u64::try_from(WINDOW.as_millis()).expect("small") / BINS as u64;
    for ms in &back {
        let ms = after_ms(ms);
        seconds[usize::try_from(ms / 1000).expect("small")] += 1;
        bins[usize::try_from(ms / bin_ms).expect("small").min(BINS)] += 1;
    }
    let peak = bins.iter().max().copied().unwrap_or(0);
    println!(
        "{fleet} slaves after {signal:?}: away for {} ms, back by second: {seconds:?}, the last after {last:?}; \
         the busiest of {BINS} parts of the window has {:.2} times the mean",
        ready_ms - lost_ms,
        (peak * BINS) as f64 / fleet as f64,
    );
    assert!(peak * BINS < fleet * 3, "a herd: {bins:?}");
    // The second that a busy machine may take to greet the last one.
    assert!(last <= WINDOW + Duration::from_secs(1), "{last:?} {bins:?}");
    assert_eq!(changes(&master, |_| true).first(), None);
}

#[test]
fn a_fleet_that_lost_its_master_comes_back_evenly() {
    assert_a_fleet_comes_back_evenly(Signal::KILL);
}

#[test]
fn a_fleet_that_was_told_goodbye_comes_back_evenly() {
    assert_a_fleet_comes_back_evenly(Signal::TERM);
}

/// Before anybody can connect, readers see the whole roll as it was.
#[test]
fn the_roll_is_there_before_the_first_slave_can_be() {
    const KNOWN: usize = 20;
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::started(folder.path());
    for number in 0..KNOWN {
        let mut identity = Identity::new(&format!("web-{number}"), 1000);
        let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
        peer.report(&mut identity).expect("an ack");
    }
    let before = wait_for_fleet(&master, KNOWN);
    master.kill_and_wait();

    // Somebody else has the slaves' port for now.
    let holder = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    holder.set_reuse_address(true).expect("a socket");
    holder.bind(&master.address().into()).expect("the port");
    holder.listen(16).expect("a listener");
    master.spawn();
    let api = master.api();
    let rows = wait_until(PATIENCE, "the roll", || api.slaves().ok());
    assert!(
        master.log().events("master_ready").is_empty(),
        "slaves are welcome already"
    );
    drop(holder);
    let told = |row: &SlaveRow| (row.name.clone(), row.presence, row.sequence, row.applied);
    let [was, is]: [Vec<_>; 2] = [&before, &rows].map(|rows| rows.iter().map(told).collect());
    assert_eq!(was, is);
    master.wait_until_ready();
    let newcomer = Identity::new("newcomer", 1000);
    Peer::open(master.address(), &newcomer).expect("a session");
}
