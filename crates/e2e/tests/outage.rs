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
/// In intervals: who is silent for so long is missing. A busy machine may take some of them between two
/// reports.
const MISSING_AFTER: u32 = 8;
/// In intervals: longer than a slave may be silent, so that time that nobody listened makes everybody
/// missing if it counts.
const OUTAGE: u32 = MISSING_AFTER + 1;
/// Reports a second of a fleet of which half connects for each of them: no more than a busy machine can
/// make and take. Larger fleets have longer intervals.
const REPORTS_PER_S: usize = 2500;
/// What a fleet is told to come back in, by the rate that the test sets.
const WINDOW: Duration = Duration::from_secs(4);
/// Of the window: how evenly they come is looked at by these.
const PART: Duration = Duration::from_millis(500);
/// How often a fleet may try to come back evenly. A machine that stands still for a second makes a herd of
/// all who were due in it; who always comes as a herd does so each time.
const TRIES: usize = 3;

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

/// How many slaves have this presence. A glance: the rows and the events of a large roll keep a master busy.
fn count(master: &Master, presence: &str) -> Option<f64> {
    let metric = format!("rollcall_slaves{{presence=\"{presence}\"}}");
    master.api().metric(&metric).ok()
}

/// Waits until so many slaves are up, and returns all rows.
fn wait_for_fleet(master: &Master, slaves: usize) -> Vec<SlaveRow> {
    let api = master.api();
    wait_until(PATIENCE * 3, "all slaves to be up", || {
        if count(master, "up")? < slaves as f64 {
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
    let interval_s = u32::try_from(fleet_size().div_ceil(REPORTS_PER_S)).expect("small");
    let interval = Duration::from_secs(interval_s.into());
    let seconds = |intervals: u32| format!("{}s", interval_s * intervals);
    // Pauses of up to four and a half intervals fit into the window.
    let missing_after = f64::from(MISSING_AFTER);
    master
        .config
        .set("presence.late_after", missing_after - 2.0)
        .set("presence.missing_after", missing_after)
        .set("presence.reconnect_window", seconds(6));
    master.start();
    let rate = (1.0 / f64::from(interval_s)).to_string();
    let retry_longest = seconds(3);
    let arguments = [
        "--mode",
        "mixed",
        "--rate",
        &rate,
        "--retry-longest",
        &retry_longest,
    ];
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
    let ended = watch_for(OUTAGE * interval, || steady.has_ended().then_some(()));
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
    wait_until(2 * PATIENCE * interval_s, "the dead to be late", || {
        (count(&master, "late")? >= DEAD as f64).then_some(())
    });
    master.kill_and_wait();
    master.start();
    wait_until(2 * PATIENCE * interval_s, "the dead to be missed", || {
        (count(&master, "missing")? >= DEAD as f64).then_some(())
    });
    // Long enough for anybody else to be missed as well.
    let up = watch_for(MISSING_AFTER * interval, || {
        count(&master, "up").filter(|up| *up < living as f64)
    });
    assert_eq!(up, None, "those who live were told as something else");
    let events = changes(&master, |_| true);
    let names: Vec<&str> = dead.iter().map(String::as_str).collect();
    assert_eq!(told(&events, "late"), names, "once each");
    assert_eq!(told(&events, "missing"), names, "once each");
    assert_eq!(events.len(), 2 * DEAD, "and nothing else");
}

/// When each slave of a fleet was welcomed again, in milliseconds since the master was ready, sorted.
struct Comeback(Vec<u64>);

impl Comeback {
    /// Waits for a fleet that lost its master at `lost_ms`, which was ready again at `ready_ms`.
    fn wait_for(
        master: &Master,
        bench: &mut Bench,
        fleet: usize,
        (lost_ms, ready_ms): (i64, i64),
    ) -> Self {
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
        // Whoever waited for the listener was accepted a moment before the log said that it is there.
        let after_ms = |ms: i64| u64::try_from(ms - ready_ms).unwrap_or(0);
        Self(back.into_iter().map(after_ms).collect())
    }

    /// When so many percent were back.
    fn percent(&self, percent: usize) -> Duration {
        let last = self.0.len() - 1;
        Duration::from_millis(self.0[last * percent / 100])
    }

    /// How many came in each part of the time.
    fn by(&self, part: Duration) -> Vec<usize> {
        let part_ms = u64::try_from(part.as_millis()).expect("small");
        let index = |ms: &u64| usize::try_from(ms / part_ms).expect("small");
        let mut parts = vec![0; 1 + self.0.last().map_or(0, index)];
        for ms in &self.0 {
            parts[index(ms)] += 1;
        }
        parts
    }

    /// Whether nobody was beyond the window, but for the second that a busy machine may take to greet the
    /// last one, and no part of it had a herd.
    fn is_even(&self) -> bool {
        self.percent(100) <= WINDOW + Duration::from_secs(1) && self.peak_to_mean(PART) < 3.0
    }

    /// The busiest of these parts of the time, as a multiple of the mean over the window.
    fn peak_to_mean(&self, part: Duration) -> f64 {
        let peak = self.by(part).into_iter().max().unwrap_or(0);
        let mean = self.0.len() as f64 * part.as_secs_f64() / WINDOW.as_secs_f64();
        peak as f64 / mean
    }
}

/// All slaves lose the master at once, and it is back after `away` and what its start takes, without
/// anybody who keeps its listener.
fn come_back(
    master: &mut Master,
    bench: &mut Bench,
    (signal, away): (Signal, Duration),
) -> Comeback {
    let fleet = fleet_size();
    let lost_ms = clock::wall_ms();
    master.signal(signal);
    master.wait(PATIENCE);
    let ended = watch_for(away, || bench.has_ended().then_some(()));
    assert_eq!(ended, None, "the fleet has given up");
    master.start();
    let ready_ms = clock::wall_ms();
    let back = Comeback::wait_for(master, bench, fleet, (lost_ms, ready_ms));
    // It is never late while this goes on.
    let stranger = Identity::new("stranger", 3_600_000);
    let (_, welcome) = Peer::open(master.address(), &stranger).expect("a session");
    println!(
        "{fleet} slaves after {signal:?}: away for {} ms, told to be back within {} ms; median {:?}, 99 % {:?}, \
         the last {:?} after it was ready; by second {:?}; the busiest eighth of the window has {:.2} times the \
         mean, the busiest 100 ms {:.2} times",
        ready_ms - lost_ms,
        welcome.back_max_ms,
        back.percent(50),
        back.percent(99),
        back.percent(100),
        back.by(Duration::from_secs(1)),
        back.peak_to_mean(PART),
        back.peak_to_mean(Duration::from_millis(100)),
    );
    let told = Duration::from_millis(welcome.back_max_ms.into());
    assert!((WINDOW..WINDOW + PART).contains(&told), "{told:?}");
    back
}

/// A fleet of slaves comes back as [`come_back`] says, evenly.
fn assert_a_fleet_comes_back_evenly(signal: Signal, away: Duration) {
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
    let is_even = (0..TRIES).any(|_| come_back(&mut master, &mut bench, (signal, away)).is_even());
    assert!(is_even, "a herd, each time, or too late");
    assert_eq!(changes(&master, |_| true).first(), None);
}

#[test]
fn a_fleet_that_lost_its_master_comes_back_evenly() {
    assert_a_fleet_comes_back_evenly(Signal::KILL, Duration::ZERO);
}

/// Away for several windows, as long as a small host takes to boot.
#[test]
fn a_fleet_whose_master_booted_comes_back_within_the_window_that_it_was_told() {
    assert_a_fleet_comes_back_evenly(Signal::KILL, 3 * WINDOW);
}

#[test]
fn a_fleet_that_was_told_goodbye_comes_back_evenly() {
    assert_a_fleet_comes_back_evenly(Signal::TERM, Duration::ZERO);
}

/// Before anybody can connect, readers see the whole roll as it was.
#[test]
fn the_roll_is_there_before_the_first_slave_can_be() {
    const KNOWN: usize = 20;
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::started(folder.path());
    for number in 0..KNOWN {
        let mut identity = Identity::new(&format!("web-{number}"), 60_000);
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
