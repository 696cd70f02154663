//! A master, some slaves, and what goes wrong between them, under a clock that jumps to the next
//! wake-up.

use std::time::Duration;

use fastrand::Rng;
use rollcall_protocol::Moment;

use crate::master::{self, Master};
use crate::network::{Network, Way};
use crate::oracle::{Counts, Oracle};
use crate::slave::{self, Slave};

/// For how long things go wrong.
const FAULTS: Duration = Duration::from_secs(20);
/// For how long reports come after that.
const CALM: Duration = Duration::from_secs(1);
/// Within this, once it is calm, everything must have arrived: what the last fault left behind is
/// noticed and mended …
const MENDED: Duration = Duration::from_secs(15);
/// … and each spooled report takes at most a round trip and a commit of its own.
const PER_REPORT: Duration = Duration::from_millis(60);
/// More turns without time passing mean that somebody spins.
const TURNS_MAX: u32 = 1_000;

/// See the module's documentation.
pub(crate) struct World {
    rng: Rng,
    now: Moment,
    network: Network,
    oracle: Oracle,
    master: Master,
    slaves: Vec<Slave>,
    next_number: u64,
    next_fault: Option<Moment>,
    /// Milliseconds between two faults, at most.
    fault_every_ms: u64,
    disk_was_replaced: bool,
    /// Once it is calm: when everything must have arrived.
    deadline: Option<Moment>,
}

impl World {
    /// Everything that happens follows from `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let slaves = rng.u8(1..4);
        Self {
            now: Moment::ZERO,
            network: Network::new(rng.fork()),
            oracle: Oracle::default(),
            master: Master::new(rng.fork()),
            slaves: (1..=slaves).map(|id| Slave::new(id, rng.fork())).collect(),
            next_number: 1,
            next_fault: Some(Moment::ZERO),
            fault_every_ms: rng.choice([200, 1_000, 4_000]).expect("not empty"),
            disk_was_replaced: false,
            deadline: None,
            rng,
        }
    }

    /// Runs to the end and checks it. Returns what happened how often.
    pub(crate) fn run(mut self) -> Counts {
        loop {
            self.turn();
            if self.is_settled() {
                break;
            }
            let next = self
                .next_wake()
                .expect("an unsettled world has something to wait for");
            assert!(
                next > self.now,
                "{next:?} has been handled, and it is {:?}",
                self.now
            );
            assert!(
                self.deadline.is_none_or(|deadline| next <= deadline),
                "not settled at {:?}: {:#?}",
                self.now,
                self.slaves
            );
            self.now = next;
        }
        self.oracle.check_end();
        let holes = self.oracle.counts.0.get("holes_refused");
        assert!(
            holes.is_none() || self.disk_was_replaced,
            "{holes:?} holes, and the master has lost nothing"
        );
        self.oracle.counts
    }

    /// Everybody does what can be done now.
    fn turn(&mut self) {
        if self.next_fault.is_some_and(|at| at <= self.now) {
            self.next_fault = self.fault();
        }
        self.network.advance(self.now);
        for turn in 0.. {
            assert!(turn < TURNS_MAX, "somebody spins at {:?}", self.now);
            self.master_does(Master::handle);
            let mut busy = false;
            for at in 0..self.slaves.len() {
                let before = self.network.standing();
                busy |= self.slave_does(at, Slave::handle);
                for connection in self.network.standing() {
                    if !before.contains(&connection) {
                        self.master.accept(connection, self.now);
                    }
                }
            }
            if !busy {
                return;
            }
        }
    }

    fn next_wake(&self) -> Option<Moment> {
        let slaves = self.slaves.iter().filter_map(Slave::next_wake);
        slaves
            .chain(self.network.next_wake())
            .chain(self.master.next_wake())
            .chain(self.next_fault)
            .min()
    }

    fn is_settled(&self) -> bool {
        let settled = |slave: &Slave| slave.spool.is_empty() && !slave.is_stopped();
        self.now >= Moment::ZERO + FAULTS + CALM && self.slaves.iter().all(settled)
    }

    fn master_does<T>(
        &mut self,
        what: impl FnOnce(&mut Master, &mut master::Surroundings<'_>) -> T,
    ) -> T {
        let mut surroundings = master::Surroundings {
            now: self.now,
            network: &mut self.network,
            oracle: &mut self.oracle,
        };
        what(&mut self.master, &mut surroundings)
    }

    fn slave_does<T>(
        &mut self,
        at: usize,
        what: impl FnOnce(&mut Slave, &mut slave::Surroundings<'_>) -> T,
    ) -> T {
        let mut surroundings = slave::Surroundings {
            now: self.now,
            network: &mut self.network,
            oracle: &mut self.oracle,
            master_is_up: self.master.is_up(),
            next_number: &mut self.next_number,
        };
        what(&mut self.slaves[at], &mut surroundings)
    }
}

/// What goes wrong.
impl World {
    /// Something goes wrong; returns when the next thing does.
    fn fault(&mut self) -> Option<Moment> {
        if self.now >= Moment::ZERO + FAULTS + CALM {
            let mut spooled = 0;
            for slave in &mut self.slaves {
                slave.stop_reporting();
                spooled += u32::try_from(slave.spool.len()).expect("few");
            }
            self.deadline = Some(self.now + MENDED + PER_REPORT * spooled);
            return None;
        }
        if self.now >= Moment::ZERO + FAULTS {
            self.network.delay_max_ms = 10;
            self.network.datagrams.is_calm = true;
            return Some(Moment::ZERO + FAULTS + CALM);
        }
        let at = self.rng.usize(..self.slaves.len());
        match self.rng.u32(..100) {
            0..40 => self.network_fault(),
            40..58 => self.master_fault(),
            58..90 => self.slave_fault(at),
            _ => {
                self.network.delay_max_ms = self.rng.choice([2, 10, 100, 900]).expect("not empty");
                self.oracle.counts.add("delays_changed");
            }
        }
        let pause = Duration::from_millis(self.rng.u64(1..=self.fault_every_ms));
        Some((self.now + pause).min(Moment::ZERO + FAULTS))
    }

    fn network_fault(&mut self) {
        let standing = self.network.standing();
        let Some(connection) = self.rng.choice(standing) else {
            return;
        };
        let way = if self.rng.bool() { Way::Up } else { Way::Down };
        match self.rng.u32(..4) {
            0 => {
                self.oracle.counts.add("connections_reset");
                self.network.reset(connection, &mut self.oracle.counts);
            }
            1 => {
                self.oracle.counts.add("connections_silenced");
                self.network.swallow(connection, way);
            }
            _ => {
                let bytes = self.rng.usize(1..400);
                self.network.cut_after(connection, way, bytes);
            }
        }
    }

    fn master_fault(&mut self) {
        if !self.master.is_up() {
            return;
        }
        let down = Duration::from_millis(self.rng.u64(0..800));
        match self.rng.u32(..20) {
            0..8 => {
                self.oracle.counts.add("master_crashes");
                self.master_does(|master, world| master.crash(down, world));
            }
            8..12 => {
                self.oracle.counts.add("master_stops");
                self.master_does(|master, world| master.stop(down, world));
            }
            12..16 => {
                self.oracle.counts.add("commits_stalled");
                let stall = Duration::from_millis(self.rng.u64(100..5_000));
                self.master.stalled_until = self.now + stall;
            }
            16..18 => self.master.back_up(),
            _ if self.disk_was_replaced => {}
            other => {
                self.disk_was_replaced = true;
                let empty = other == 18;
                self.oracle.counts.add(if empty {
                    "master_disks_lost"
                } else {
                    "master_disks_replaced_by_a_backup"
                });
                self.master_does(|master, world| master.replace_disk(empty, world));
            }
        }
    }

    fn slave_fault(&mut self, at: usize) {
        let away = Duration::from_millis(self.rng.u64(0..1_500));
        let what = self.rng.u32(..20);
        let happened = self.slave_does(at, |slave, world| match what {
            0..5 => {
                slave.kill(away, world);
                Some("slave_kills")
            }
            5..8 => {
                slave.leave(away);
                Some("slave_stops")
            }
            8..10 => {
                slave.take_snapshot();
                None
            }
            10 => slave.restore(world).then_some("slave_restores"),
            _ => slave.give_up(world).then_some("spools_gave_way"),
        });
        if let Some(happened) = happened {
            self.oracle.counts.add(happened);
        }
    }
}
