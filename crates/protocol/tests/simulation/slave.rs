//! A slave as the daemon is one: a spool, a session at a time, and pauses in between.

use std::time::Duration;

use fastrand::Rng;
use rollcall_protocol::Moment;
use rollcall_protocol::backoff::{Backoff, BackoffLimits};
use rollcall_protocol::datagram::Numbers;
use rollcall_protocol::wire::{Gap, Mode};

use crate::asking::{Answered, Asking};
use crate::exchange::{Exchange, Over};
use crate::network::Network;
use crate::oracle::Oracle;
use crate::spool::Spool;

/// Bounds of the pauses.
const BACKOFF: BackoffLimits = BackoffLimits {
    base: Duration::from_millis(20),
    cap: Duration::from_secs(1),
    reset_after: Duration::from_secs(5),
};

/// What a slave needs of the world.
pub(crate) struct Surroundings<'a> {
    pub(crate) now: Moment,
    pub(crate) network: &'a mut Network,
    pub(crate) oracle: &'a mut Oracle,
    /// Whether there is a master to connect to.
    pub(crate) master_is_up: bool,
    /// Numbers the reports of the whole simulation.
    pub(crate) next_number: &'a mut u64,
}

/// Where a slave stands with its master.
#[derive(Debug)]
enum Link {
    /// It tries again then; with the latest moment that it was told to come back at.
    Pause(Moment),
    /// Per-message and datagram mode: nothing is spooled.
    Idle,
    Session(Box<Exchange>),
    Asking(Box<Asking>),
    /// The process does not run until then.
    Stopped(Moment),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Slave {
    pub(crate) id: u8,
    pub(crate) mode: Mode,
    rng: Rng,
    pub(crate) spool: Spool,
    backoff: Backoff,
    link: Link,
    numbers: Numbers,
    /// Per-message mode: gaps that the next connection has to tell.
    owed: Vec<Gap>,
    interval: Duration,
    next_report: Option<Moment>,
    /// It is to say goodbye, and to be away for so long.
    leave_for: Option<Duration>,
    /// The machine as it was once.
    snapshot: Option<(Spool, Numbers)>,
}

impl Slave {
    pub(crate) fn new(id: u8, mut rng: Rng) -> Self {
        let modes = [Mode::Pooled, Mode::PerMessage, Mode::Datagram];
        let mode = rng.choice(modes).expect("not empty");
        Self {
            id,
            mode,
            spool: Spool::new(rng.u64(1..)),
            backoff: Backoff::new(BACKOFF),
            link: Link::Pause(Moment::ZERO),
            numbers: Numbers::new(rng.u64(..)),
            owed: Vec::new(),
            interval: Duration::from_millis(rng.u64(20..250)),
            next_report: Some(Moment::ZERO),
            leave_for: None,
            snapshot: None,
            rng,
        }
    }

    /// When something is to be done although nothing arrives.
    pub(crate) fn next_wake(&self) -> Option<Moment> {
        let link = match &self.link {
            Link::Pause(at) | Link::Stopped(at) => Some(*at),
            Link::Idle => None,
            Link::Session(exchange) => exchange.deadline(),
            Link::Asking(asking) => Some(asking.deadline()),
        };
        let report = self.next_report.filter(|_| !self.is_stopped());
        [link, report].into_iter().flatten().min()
    }

    /// No report comes after this.
    pub(crate) fn stop_reporting(&mut self) {
        self.next_report = None;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.link, Link::Stopped(_))
    }

    /// Does all that can be done now. True if something was done, so that more may follow.
    pub(crate) fn handle(&mut self, world: &mut Surroundings<'_>) -> bool {
        self.report(world);
        match &mut self.link {
            Link::Stopped(until) if *until <= world.now => {
                self.spool.begin_stream(self.rng.u64(1..));
                self.backoff = Backoff::new(BACKOFF);
                self.owed.clear();
                self.numbers = Numbers::new(self.rng.u64(..));
                self.link = Link::Pause(world.now);
            }
            Link::Pause(at) if *at <= world.now => self.connect(world),
            Link::Idle if !self.spool.is_empty() || self.leave_for.is_some() => self.connect(world),
            Link::Session(exchange) => {
                let over = exchange.handle(&mut self.spool, self.leave_for.is_some(), world);
                let Some(over) = over else {
                    return false;
                };
                world
                    .network
                    .close(exchange.connection(), crate::network::Way::Up);
                world.network.drop_end(exchange.connection());
                self.after(over, world);
            }
            Link::Asking(asking) => {
                let answered = asking.handle(&mut self.spool, &mut self.rng, world);
                let Some(Answered { over, not_taken }) = answered else {
                    return false;
                };
                world.network.datagrams.close(asking.port());
                if not_taken {
                    world.oracle.counts.add("questions_not_taken");
                    self.numbers.jump();
                }
                self.after(over, world);
            }
            _ => return false,
        }
        true
    }

    fn report(&mut self, world: &mut Surroundings<'_>) {
        let due = self.next_report.is_some_and(|at| at <= world.now);
        if due && !self.is_stopped() {
            let number = *world.next_number;
            *world.next_number += 1;
            let sequence = self.spool.append(number);
            world
                .oracle
                .spooled(self.id, self.spool.stream, sequence, number);
            self.next_report = Some(world.now + self.interval);
        }
    }

    fn connect(&mut self, world: &mut Surroundings<'_>) {
        let nothing_to_say = self.spool.is_empty() && self.leave_for.is_none();
        if self.mode != Mode::Pooled && nothing_to_say {
            self.link = Link::Idle;
            return;
        }
        if self.mode == Mode::Datagram {
            self.ask(world);
            return;
        }
        if !world.master_is_up {
            world.oracle.counts.add("connects_refused");
            self.pause(world);
            return;
        }
        world.oracle.counts.add("connections");
        let owed = std::mem::take(&mut self.owed);
        let leaving = self.leave_for.is_some();
        let exchange = Exchange::begin(self.id, self.mode, &self.spool, owed, leaving, world);
        self.link = Link::Session(Box::new(exchange));
    }

    fn ask(&mut self, world: &mut Surroundings<'_>) {
        world.oracle.counts.add("questions");
        let question = (self.id, self.numbers.next_number());
        let owed = std::mem::take(&mut self.owed);
        let room = self.rng.usize(2..16) + owed.len();
        let leaving = self.leave_for.is_some();
        let asking = Asking::begin(question, &self.spool, owed, leaving, room, world);
        self.link = Link::Asking(Box::new(asking));
    }

    fn after(&mut self, over: Over, world: &mut Surroundings<'_>) {
        if let Over::Told { told, .. } | Over::Lost { told, .. } = &over
            && let Some((min, max)) = told
        {
            self.backoff.handle_window(*min, *max);
        }
        match over {
            Over::Again { owed } => {
                self.owed = owed;
                self.link = Link::Pause(world.now);
            }
            Over::Stopped => {
                let away = self.leave_for.take().unwrap_or_default();
                self.link = Link::Stopped(world.now + away);
            }
            Over::Resync(stream) => {
                let new = self.rng.u64(1..);
                let moves = self.spool.restream(stream, new);
                let streams = (stream, new);
                world
                    .oracle
                    .restreamed(self.id, streams, &moves, &self.spool);
                self.pause(world);
            }
            Over::Told { told, .. } => {
                let pause = self.pause(world);
                let (min, max) = told.expect("a goodbye tells a window");
                assert!((min..=max).contains(&pause), "{pause:?} is not the window");
                world.oracle.counts.add("windows_kept");
            }
            Over::Lost { up_since, owed, .. } => {
                self.owed = owed;
                if let Some(up_since) = up_since {
                    self.backoff.handle_up(up_since);
                }
                self.pause(world);
            }
        }
    }

    fn pause(&mut self, world: &Surroundings<'_>) -> Duration {
        let pause = self.backoff.handle_down(world.now, self.rng.u64(..));
        self.link = Link::Pause(world.now + pause);
        pause
    }
}

/// What befalls a slave.
impl Slave {
    /// Its process is killed and starts again after `down`.
    pub(crate) fn kill(&mut self, down: Duration, world: &mut Surroundings<'_>) {
        self.abandon(world);
        self.leave_for = None;
        self.link = Link::Stopped(world.now + down);
    }

    /// It is to say goodbye once all is acked, and comes back after `away`.
    pub(crate) fn leave(&mut self, away: Duration) {
        if !self.is_stopped() {
            self.leave_for = Some(away);
        }
    }

    /// The machine with its memory is kept as it is.
    pub(crate) fn take_snapshot(&mut self) {
        self.snapshot = Some((self.spool.clone(), self.numbers.clone()));
    }

    /// The machine goes on from where it was kept. False if it never was.
    pub(crate) fn restore(&mut self, world: &mut Surroundings<'_>) -> bool {
        let Some((spool, numbers)) = self.snapshot.clone() else {
            return false;
        };
        self.abandon(world);
        self.spool = spool;
        self.numbers = numbers;
        self.owed.clear();
        self.leave_for = None;
        world.oracle.rolled_back(self.id, &self.spool);
        self.link = Link::Pause(world.now);
        true
    }

    /// Its spool must give way. False if there was nothing that could go.
    pub(crate) fn give_up(&mut self, world: &mut Surroundings<'_>) -> bool {
        let handed_out = match &self.link {
            Link::Session(exchange) => exchange.handed_out(),
            Link::Asking(asking) => asking.handed_out(),
            _ => 0,
        };
        let len = self.spool.len().max(1);
        let (at, most) = (self.rng.usize(..len), self.rng.usize(1..6));
        let went = self.spool.give_up(at, most, handed_out);
        for number in &went {
            world.oracle.given_up(*number);
        }
        !went.is_empty()
    }

    fn abandon(&mut self, world: &mut Surroundings<'_>) {
        if let Link::Asking(asking) = &self.link {
            world.network.datagrams.close(asking.port());
        }
        if let Link::Session(exchange) = &self.link {
            let connection = exchange.connection();
            if self.rng.bool() {
                world.network.close(connection, crate::network::Way::Up);
            } else {
                world.network.reset(connection, &mut world.oracle.counts);
            }
            world.network.drop_end(connection);
        }
    }
}
