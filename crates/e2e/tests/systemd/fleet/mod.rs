//! A fleet outlives whatever systemd does with the master, and each report is counted once.

mod counts;
mod disturbance;
mod witness;

use std::net::SocketAddr;
use std::time::Duration;

use rollcall_e2e::bench::LedgerLine;
use rollcall_e2e::binaries::{self, BENCH};
use rollcall_e2e::machine::Machine;
use rollcall_e2e::wait::poll_until;
use rollcall_e2e::{Api, Namespace, wait_until};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::api::Mode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{MASTER, PATIENCE, SLAVE, boot};
use counts::Counts;
use disturbance::Disturbances;
use witness::{Knocker, Witness};

/// Reports of each slave in a second.
const RATE: f64 = 0.5;
/// For the acks of what a fleet has under way when it is stopped: so long for each slave, and PATIENCE.
const SETTLING_EACH: Duration = Duration::from_millis(5);
/// Restarts, and as many kills.
const RESTARTS: u32 = 10;
const UPGRADES: u32 = 3;
/// Connected before the fleet, and as many after it: the first and the last that a successor takes over.
const WITNESSES: usize = 4;
const UNIT: &str = "fleet.service";
const WATCHDOG_PATH: &str = "/etc/systemd/system/rollcall-master.service.d/watchdog.conf";
const WATCHDOG: &[u8] = b"[Service]\nWatchdogSec=2s\n";

/// No connection breaks, no connect is refused, nothing is lost or doubled, and nobody is overdue.
/// `ROLLCALL_FLEET` is the number of slaves (1000).
#[test]
fn a_fleet_outlives_whatever_is_done_to_the_master() {
    let Some(machine) = boot("a_fleet_outlives_whatever_is_done_to_the_master") else {
        return;
    };
    machine.run(&format!("systemctl stop {SLAVE}"));
    let upgrades = machine.make_upgrades(binaries::MASTER, UPGRADES);
    let master = Master::of(&machine);
    let mut witnesses = master.witnesses("early");
    let fleet = Fleet::start(&machine, &master);
    witnesses.extend(master.witnesses("late"));
    wait_until(PATIENCE, "the witnesses to report", || {
        let mut witnesses = witnesses.iter();
        witnesses
            .all(|witness| witness.has_reported_since(Moment::ZERO))
            .then_some(())
    });
    let knocker = Knocker::start(machine.network(), master.address);
    let before = master.ask(Api::events);

    let (begun, cpu) = (clock::boot(), machine.cpu_time_of_pid_1());
    let mut disturbances = Disturbances::of(&machine, &witnesses);
    disturb(&mut disturbances, &machine, &upgrades);
    let cpu = machine.cpu_time_of_pid_1() - cpu;
    let took = clock::boot().saturating_since(begun);

    let knocks = knocker.end();
    let fleet = fleet.stop();
    let table = disturbances.table();
    let witnesses: Vec<_> = witnesses.into_iter().map(Witness::end).collect();
    let mut events = master.ask(Api::events);
    // Later ones come of the silence of those who have ended.
    events.retain(|event| event.recorded_ms <= fleet.ended_ms);
    let mut counts = Counts::default();
    // What readers see may be a tenth of a second old.
    poll_until(PATIENCE, || {
        let roll = master.ask(Api::slaves);
        counts = Counts::of(&fleet.ledger, &witnesses, &roll, &before, &events);
        (counts.lost == 0).then_some(())
    });
    println!("{table}  in {took:.1?}; CPU of PID 1 in all: {cpu:.2?}\n{counts:#?}\n{knocks:#?}");
    println!("The fleet: {}", fleet.result);

    assert!(fleet.is_good, "{:#}", fleet.result);
    counts.assert_exact();
    assert!(knocks.answered > 1000, "{knocks:?}");
    assert_eq!(knocks.failures, [""; 0]);
    let told = machine.run(&format!("journalctl --no-pager -u {MASTER}"));
    assert!(told.contains("Watchdog timeout"), "{told}");
}

/// All that is done, mixed, so that each meets what the others have left.
fn disturb(disturbances: &mut Disturbances<'_>, machine: &Machine, upgrades: &[String]) {
    let restart = format!("systemctl restart {MASTER}");
    let mut upgrades = upgrades.iter();
    for _ in 1..RESTARTS {
        disturbances.replace("restart", &restart);
        disturbances.signal("kill -9", Signal::KILL);
        if let Some(upgrade) = upgrades.next() {
            disturbances.replace("upgrade", upgrade);
        }
    }
    disturbances.run("daemon-reexec", "systemctl daemon-reexec");
    disturbances.signal("kill -9", Signal::KILL);
    machine.write(WATCHDOG_PATH, WATCHDOG);
    disturbances.run("daemon-reload", "systemctl daemon-reload");
    disturbances.replace("restart", &restart);
    disturbances.signal("watchdog", Signal::STOP);
}

/// The master, as seen from the machine's network.
struct Master {
    network: Namespace,
    address: SocketAddr,
    api: Api,
}

impl Master {
    fn of(machine: &Machine) -> Self {
        Self {
            network: machine.network(),
            address: ([127, 0, 0, 1], 7412).into(),
            api: Api::new(([127, 0, 0, 1], 7413).into()),
        }
    }

    fn witnesses(&self, name: &str) -> Vec<Witness> {
        let names = (0..WITNESSES).map(|number| format!("{name}-{number}"));
        names
            .map(|name| Witness::start(&self.network, self.address, &name))
            .collect()
    }

    fn ask<T: Send>(&self, question: impl Fn(&Api) -> anyhow::Result<T> + Sync) -> T {
        let answer = self.network.run(|| question(&self.api));
        answer.expect("the master answers")
    }
}

/// Rollcall-bench as a unit of the machine.
struct Fleet<'a> {
    machine: &'a Machine,
    size: u32,
}

/// What it says at its end.
struct Outcome {
    ended_ms: i64,
    is_good: bool,
    result: Value,
    ledger: Vec<LedgerLine>,
}

impl<'a> Fleet<'a> {
    /// Starts it and waits until all of it reports.
    fn start(machine: &'a Machine, master: &Master) -> Self {
        let size = std::env::var("ROLLCALL_FLEET").unwrap_or_else(|_| "1000".to_owned());
        let size: u32 = size.parse().expect("ROLLCALL_FLEET is a number");
        let bench = std::fs::read(binaries::path(BENCH)).expect("the bench can be read");
        machine.write("/usr/bin/rollcall-bench", &bench);
        machine.run(&format!(
            "chmod 755 /usr/bin/rollcall-bench
             systemd-run --quiet --unit=fleet --property=RemainAfterExit=yes --property=LimitNOFILE=65536 \\
                 --property=StandardOutput=file:/root/fleet.json \\
                 rollcall-bench --master {} --slaves {size} --rate {RATE} --duration 1h \\
                     --json --ledger /root/fleet.ledger",
            master.address,
        ));
        wait_until(PATIENCE, "the fleet to report", || {
            let rows = master.network.run(|| master.api.slaves()).ok()?;
            let reporting = rows
                .iter()
                .filter(|row| row.mode == Mode::Pooled && row.applied > 0);
            (reporting.count() as u64 >= size.into()).then_some(())
        });
        Self { machine, size }
    }

    /// Has it make no more reports, and waits until all of them are acked.
    #[track_caller]
    fn stop(self) -> Outcome {
        let pid = self.machine.process(BENCH);
        let pid = pid.and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let stopped = kill_process(pid.expect("the fleet still reports"), Signal::INT);
        stopped.expect("the fleet can be signalled");
        let limit = PATIENCE + SETTLING_EACH * self.size;
        wait_until(limit, "the fleet to end", || {
            self.machine.process(BENCH).is_none().then_some(())
        });
        let ended_ms = clock::wall_ms();
        wait_until(PATIENCE, "systemd to see it", || {
            let state = self.machine.property(UNIT, "SubState");
            (state != "running").then_some(())
        });
        let is_good = self.machine.property(UNIT, "Result") == "success";
        let result = self.machine.run("cat fleet.json");
        let ledger = self.machine.run("cat fleet.ledger");
        let ledger = ledger.lines().map(serde_json::from_str);
        Outcome {
            ended_ms,
            is_good,
            result: serde_json::from_str(&result).expect("the fleet's result"),
            ledger: ledger
                .collect::<Result<_, _>>()
                .expect("the fleet's ledger"),
        }
    }
}
