//! The load: N simulated slaves on one thread over one epoll instance.
//!
//! ```text
//!   Opening ── all pooled slaves are welcomed ──> Running ── the bound is met ──> Draining ──> end
//!                                                                      all acked, or no patience
//! ```
//! The loop is kept lean so that it is the server that is measured: one read buffer and one write
//! buffer for all, frames copied from templates, one read and one write per wake-up of a slave.

mod connection;
mod datagram;
mod drive;
mod pace;
mod slave;
mod tally;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use mio::{Events, Poll};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::datagram::ResendLimits;
use rollcall_protocol::limits::FRAME_BYTES_MAX;
use rollcall_protocol::wire::Mode;

pub(crate) use connection::{Connection, Input};
use datagram::Datagrams;
use drive::SWEEP;
pub(crate) use pace::Bound;
use pace::Pace;
pub(crate) use slave::{Fleet, Slave};
pub(crate) use tally::{DatagramTally, ErrorKind, Percentiles, Tally};

use crate::template::Templates;

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 1024;

/// What is to be simulated.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Where the master listens.
    pub(crate) master: SocketAddr,
    /// Bound by the slaves in turn; empty: the kernel chooses.
    pub(crate) sources: Vec<IpAddr>,
    /// The mode of each slave.
    pub(crate) modes: Vec<Mode>,
    /// Who closes a per-message connection first.
    pub(crate) close: Close,
    /// Which of them begin with a backlog.
    pub(crate) replay: Option<Replay>,
    /// What the slaves have in common.
    pub(crate) fleet: Fleet,
    /// Unacked reports per pooled connection.
    pub(crate) in_flight: u32,
    /// Reports per slave and second; `None`: as fast as acks allow.
    pub(crate) rate: Option<f64>,
    /// When to stop making reports.
    pub(crate) bound: Bound,
    /// How long the connections stay open at least, whether there is something to do or not.
    pub(crate) hold: Duration,
    /// Bytes of a report's frame.
    pub(crate) payload_bytes: usize,
    /// How long an answer on a connection, or to a question, may take.
    pub(crate) timeout: Duration,
    /// When a question without an answer is sent again.
    pub(crate) resend: ResendLimits,
    /// How long the run goes on without any ack, or without a first Welcome.
    pub(crate) patience: Duration,
}

impl Plan {
    /// The address that a slave binds, if any.
    pub(crate) fn source_of(&self, index: usize) -> Option<IpAddr> {
        let turn = index.checked_rem(self.sources.len())?;
        self.sources.get(turn).copied()
    }
}

/// How a per-message connection ends once its report is acked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Close {
    /// The slave waits until the master has closed: TIME_WAIT is the master's. As the real slave does.
    #[default]
    MasterFirst,
    /// The slave closes at once and keeps TIME_WAIT: what runs out of ports.
    SlaveFirst,
    /// The slave resets the connection at once: nobody keeps TIME_WAIT.
    Abort,
}

/// The slaves that replay a backlog. They make no reports; the others do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replay {
    /// So many, the first ones of the plan.
    pub(crate) slaves: usize,
    /// Reports that each of them begins with.
    pub(crate) backlog: u64,
}

/// Told of moments of the run.
pub(crate) trait Observer {
    /// All pooled connections are open and no report was made yet.
    fn opened(&mut self);
    /// Called at every turn of the loop.
    fn progress(&mut self, elapsed: Duration, tally: &Tally);
    /// All is done, and the connections still stand.
    fn finished(&mut self);
    /// Whether no more reports are to be made, whatever the plan says.
    fn is_stopped(&self) -> bool;
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The counters.
    pub(crate) tally: Tally,
    /// From the first report to the last ack, or to the end of the time in which reports were made.
    pub(crate) elapsed: Duration,
    /// From the first report to the ack of the last one of a backlog, if there was one and it came.
    pub(crate) backlog_done: Option<Duration>,
    /// The slaves as they are at the end.
    pub(crate) slaves: Vec<Slave>,
}

/// Runs the plan to its end.
///
/// # Errors
/// If the poll fails, or if not one slave got through to the master.
pub(crate) fn run(plan: &Plan, observer: &mut dyn Observer) -> anyhow::Result<Outcome> {
    let mut load = Load::new(plan)?;
    load.open_all(observer)?;
    observer.opened();
    let (started, ended) = load.work(observer)?;
    observer.finished();
    Ok(Outcome {
        elapsed: ended.saturating_since(started),
        backlog_done: load.backlog_done.map(|done| done.saturating_since(started)),
        tally: load.tally,
        slaves: load.slaves,
    })
}

struct Load<'a> {
    plan: &'a Plan,
    poll: Poll,
    templates: Templates,
    slaves: Vec<Slave>,
    connections: Vec<Option<Connection>>,
    datagrams: Datagrams,
    /// Slaves that want a connection now.
    to_open: VecDeque<usize>,
    /// Slaves that want one later.
    retries: BinaryHeap<Reverse<(Moment, usize)>>,
    /// Connections that wait for Welcome.
    opening: usize,
    /// `None` before the start.
    pace: Option<Pace>,
    tally: Tally,
    /// When the last report of a backlog was acked.
    backlog_done: Option<Moment>,
    input: Vec<u8>,
    output: Vec<u8>,
    wall_ms: i64,
    sweep_at: Moment,
    last_ack: Moment,
    /// The last ack, or the last report made.
    last_progress: Moment,
}

// The stages.
impl<'a> Load<'a> {
    fn new(plan: &'a Plan) -> anyhow::Result<Self> {
        let now = clock::boot();
        let slaves = plan
            .modes
            .iter()
            .zip(0..)
            .map(|(mode, index)| Slave::new(index, *mode, plan.fleet.backoff));
        let mut slaves: Vec<_> = slaves.collect();
        let mut tally = Tally::new();
        if let Some(Replay {
            slaves: first,
            backlog,
        }) = plan.replay
        {
            for slave in slaves.iter_mut().take(first) {
                slave.begin_with(backlog, &mut tally);
            }
        }
        Ok(Self {
            poll: Poll::new().context("no epoll instance")?,
            templates: Templates::new(plan.payload_bytes)?,
            connections: slaves.iter().map(|_| None).collect(),
            datagrams: Datagrams::new(plan)?,
            slaves,
            to_open: VecDeque::new(),
            retries: BinaryHeap::new(),
            opening: 0,
            pace: None,
            tally,
            backlog_done: None,
            input: vec![0; FRAME_BYTES_MAX],
            output: Vec::with_capacity(FRAME_BYTES_MAX),
            wall_ms: clock::wall_ms(),
            sweep_at: now + SWEEP,
            last_ack: now,
            last_progress: now,
            plan,
        })
    }

    /// Opens the pooled connections. Those that get through go on even if others do not.
    fn open_all(&mut self, observer: &mut dyn Observer) -> anyhow::Result<()> {
        let pooled = |slave: &&Slave| slave.mode() == Mode::Pooled;
        let wanted = self.slaves.iter().filter(pooled).count();
        let indices = 0..self.slaves.len();
        let to_open = indices.filter(|index| self.slaves[*index].mode() == Mode::Pooled);
        self.to_open = to_open.collect();
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut last_welcome = clock::boot();
        while self.tally.welcomed + self.tally.dead < wanted {
            let before = self.tally.welcomed;
            let now = self.turn(&mut events)?;
            if self.tally.welcomed > before {
                last_welcome = now;
            } else if now.saturating_since(last_welcome) > self.plan.patience {
                break;
            }
            observer.progress(Duration::ZERO, &self.tally);
            if observer.is_stopped() {
                bail!("stopped before all slaves were connected");
            }
        }
        if wanted > 0 && self.tally.welcomed == 0 {
            let why = serde_json::to_string(&self.tally.errors)?;
            let text = self
                .tally
                .first_text
                .as_deref()
                .unwrap_or("no word from it");
            let master = self.plan.master;
            bail!(
                "not one slave got through to {master}: {why} ({text}); is a master running there?"
            );
        }
        Ok(())
    }

    /// Makes reports until the bound is met, then waits for the acks. Returns the moments between
    /// which the rate is to be taken.
    fn work(&mut self, observer: &mut dyn Observer) -> anyhow::Result<(Moment, Moment)> {
        let started = clock::boot();
        self.last_ack = started;
        self.last_progress = started;
        let makers = self.slaves.len() - self.replaying();
        let rate = self.plan.rate.filter(|_| makers > 0);
        let makers = u32::try_from(makers).context("too many slaves")?;
        let pace = Pace::new(started, makers, rate, self.plan.bound);
        let mut held_until = started + self.plan.hold;
        self.pace = Some(pace);
        for index in 0..self.slaves.len() {
            self.refill(index, started);
        }
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut made_until = None;
        loop {
            let now = self.turn(&mut events)?;
            observer.progress(now.saturating_since(started), &self.tally);
            if self.plan.bound == Bound::Replay && !self.tally.is_replaying() {
                self.pace.iter_mut().for_each(Pace::end);
            }
            if observer.is_stopped() {
                // The reports of an idle run have long been made by then, and it is only held.
                self.pace.iter_mut().for_each(Pace::end);
                made_until.get_or_insert(now);
                held_until = held_until.min(now);
            }
            let over = self.pace.as_ref().is_none_or(|pace| pace.is_over(now));
            if over && made_until.is_none() {
                let until = self.pace.as_ref().and_then(Pace::until);
                made_until = Some(until.or(self.backlog_done).unwrap_or(started));
            }
            let drained = over && self.tally.owed() == 0 && self.per_message_open() == 0;
            if now >= held_until && (drained || self.out_of_patience(now, made_until)) {
                let ended = made_until.unwrap_or(started).max(self.last_ack);
                return Ok((started, ended));
            }
        }
    }

    /// Whether nothing happened for so long that it is not worth waiting on. Until the bound is met,
    /// only a closed loop with a count depends on acks to come to its end.
    fn out_of_patience(&self, now: Moment, made_until: Option<Moment>) -> bool {
        if self.tally.dead == self.slaves.len() {
            return true;
        }
        let depends_on_acks = match self.plan.bound {
            Bound::Count(_) => self.plan.rate.is_none(),
            Bound::Replay => true,
            Bound::Duration(_) => false,
        };
        let since = made_until.unwrap_or(Moment::ZERO).max(self.last_progress);
        (made_until.is_some() || depends_on_acks)
            && now.saturating_since(since) > self.plan.patience
    }

    /// Number of slaves that replay; they are the first ones.
    fn replaying(&self) -> usize {
        self.plan.replay.map_or(0, |replay| replay.slaves)
    }

    fn per_message_open(&self) -> usize {
        if !self.plan.modes.contains(&Mode::PerMessage) {
            return 0;
        }
        let pairs = self.slaves.iter().zip(&self.connections);
        pairs
            .filter(|(slave, open)| slave.mode() == Mode::PerMessage && open.is_some())
            .count()
    }
}
