//! Who is ended when, and how: random, and the same again for the same seed.

use std::time::Duration;

use super::args::{DrillArgs, Victims};
use super::witness::Blow;

/// Of so many blows one is a planned restart.
const PLANNED_ONE_OF: u32 = 5;
/// Of so many blows at slaves one hits several at once.
const MANY_ONE_OF: u32 = 4;
/// Of so many blows, if both are to be hit, one hits both at once.
const BOTH_ONE_OF: u32 = 10;
/// The longest that what was ended stays down.
const PAUSE_MAX_MS: u64 = 300;

/// The next thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Strike {
    /// How.
    pub(super) blow: Blow,
    /// Whether the master is hit.
    pub(super) master: bool,
    /// Which slaves are hit.
    pub(super) slaves: Vec<usize>,
    /// Whether it comes at once after an ack: when a master that acks too early has most to lose.
    pub(super) at_ack: bool,
    /// How long they stay down.
    pub(super) pause: Duration,
}

/// An endless series of strikes.
#[derive(Debug)]
pub(super) struct Plan {
    random: fastrand::Rng,
    slaves: usize,
    victims: Victims,
    every: Duration,
}

impl Plan {
    /// The series of `seed`.
    pub(super) fn new(args: &DrillArgs, seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            slaves: args.slaves.into(),
            victims: args.kill,
            every: args.every.get(),
        }
    }

    /// How long until the next strike: half to one and a half times the length asked for.
    pub(super) fn wait(&mut self) -> Duration {
        self.every.mul_f64(0.5 + self.random.f64())
    }

    /// The next strike.
    pub(super) fn strike(&mut self) -> Strike {
        let one_of = |random: &mut fastrand::Rng, n| random.u32(..n) == 0;
        let random = &mut self.random;
        let blow = if one_of(random, PLANNED_ONE_OF) {
            Blow::Planned
        } else {
            Blow::Killed
        };
        let (master, slaves) = match self.victims {
            Victims::Master => (true, false),
            Victims::Slaves => (false, true),
            Victims::Both if one_of(random, BOTH_ONE_OF) => (true, true),
            Victims::Both => {
                let master = random.bool();
                (master, !master)
            }
        };
        let count = match slaves {
            false => 0,
            true if one_of(random, MANY_ONE_OF) => random.usize(1..=(self.slaves / 2).max(1)),
            true => 1,
        };
        let all: Vec<_> = (0..self.slaves).collect();
        let slaves = random.choose_multiple(all, count);
        let pause_ms = if random.bool() {
            0
        } else {
            random.u64(..=PAUSE_MAX_MS)
        };
        Strike {
            blow,
            master,
            slaves,
            at_ack: random.bool(),
            pause: Duration::from_millis(pause_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn plan(words: &[&str], seed: u64) -> Plan {
        let Command::Drill(args) =
            Cli::parse_from([&["rollcall", "drill"], words].concat()).command
        else {
            panic!("not drill");
        };
        Plan::new(&args, seed)
    }

    fn strikes(words: &[&str], seed: u64) -> Vec<Strike> {
        let mut plan = plan(words, seed);
        (0..200).map(|_| plan.strike()).collect()
    }

    #[test]
    fn a_seed_tells_all_that_goes_wrong() {
        assert_eq!(strikes(&[], 1), strikes(&[], 1));
        assert_ne!(strikes(&[], 1), strikes(&[], 2));
    }

    #[test]
    fn who_is_to_be_spared_is_spared_and_all_kinds_come_up() {
        let masters = strikes(&["--kill", "master"], 3);
        assert!(
            masters
                .iter()
                .all(|strike| strike.master && strike.slaves.is_empty())
        );
        let slaves = strikes(&["--kill", "slaves", "--slaves", "3"], 3);
        assert!(slaves.iter().all(|strike| !strike.master));
        assert!(
            slaves
                .iter()
                .all(|strike| (1..=3).contains(&strike.slaves.len()))
        );
        let both = strikes(&[], 3);
        let has = |wanted: fn(&Strike) -> bool| both.iter().any(wanted);
        assert!(has(|strike| strike.blow == Blow::Planned && strike.master));
        assert!(has(
            |strike| strike.blow == Blow::Killed && strike.slaves.len() > 1
        ));
        assert!(has(|strike| strike.master && !strike.slaves.is_empty()));
        assert!(has(|strike| strike.pause.is_zero()) && has(|strike| strike.at_ack));
    }

    #[test]
    fn strikes_come_about_as_often_as_asked_for() {
        let mut plan = plan(&["--every", "2s"], 3);
        for _ in 0..100 {
            let wait = plan.wait();
            assert!((1.0..=3.0).contains(&wait.as_secs_f64()), "{wait:?}");
        }
    }
}
