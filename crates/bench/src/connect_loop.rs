//! The bare loop of connections that per-message mode is compared with: connect, send, receive,
//! close, as many at a time as there are slaves, and nothing else.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use mio::{Events, Poll, Token};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use serde::Serialize;

use crate::baseline::{Kind, Server};
use crate::load::{Bound, Connection, Input, Plan};
use crate::ports::{Connects, PortsReport};
use crate::ratio::rate_per_s;

const EVENTS_MAX: usize = 1024;
/// How often what failed is tried again.
const RETRY: Duration = Duration::from_millis(1);
const INPUT_BYTES: usize = 4096;

/// What came of it.
#[derive(Debug, Serialize)]
pub(crate) struct LoopReport {
    /// Connections that were answered.
    pub(crate) answered: u64,
    /// Those per second.
    pub(crate) rate_per_s: f64,
    /// Over which the rate was taken.
    pub(crate) elapsed_s: f64,
    /// What became of the ports.
    #[serde(flatten)]
    pub(crate) ports: PortsReport,
    /// Reports per second of the master divided by connections per second of this.
    pub(crate) ratio: Option<f64>,
}

/// Runs the loop of `plan` against the server at `address`, or against one of its own. Ends at once
/// when `stop` is set.
///
/// # Errors
/// If there is no server, or nothing gets through to it for as long as the plan has patience.
pub(crate) fn run(
    plan: &Plan,
    address: Option<SocketAddr>,
    stop: &AtomicBool,
) -> anyhow::Result<LoopReport> {
    let own = match address {
        Some(_) => None,
        None => Some(Server::start(Kind::ConnectLoop, Path::new("."))?),
    };
    let address = address.or(own.as_ref().map(Server::address));
    let address = address.context("no server for the bare loop")?;
    let fits = |source: &&std::net::IpAddr| {
        source.is_ipv4() == address.is_ipv4() && source.is_loopback() == address.ip().is_loopback()
    };
    let plan = Plan {
        master: address,
        sources: plan.sources.iter().filter(fits).copied().collect(),
        ..plan.clone()
    };
    let mut client = Client::new(&plan, stop)?;
    let started = clock::boot();
    client.run(started)?;
    let elapsed = clock::boot().saturating_since(started);
    Ok(LoopReport {
        answered: client.answered,
        rate_per_s: rate_per_s(client.answered, elapsed),
        elapsed_s: elapsed.as_secs_f64(),
        ports: client.connects.report(),
        ratio: None,
    })
}

struct Client<'a> {
    plan: &'a Plan,
    stop: &'a AtomicBool,
    poll: Poll,
    slots: Vec<Option<Connection>>,
    failed: Vec<usize>,
    payload: Vec<u8>,
    input: Vec<u8>,
    begun: u64,
    answered: u64,
    connects: Connects,
    last_answer: Moment,
}

impl<'a> Client<'a> {
    fn new(plan: &'a Plan, stop: &'a AtomicBool) -> anyhow::Result<Self> {
        Ok(Self {
            poll: Poll::new().context("no epoll instance")?,
            slots: plan.modes.iter().map(|_| None).collect(),
            failed: Vec::new(),
            payload: vec![0; plan.payload_bytes],
            input: vec![0; INPUT_BYTES],
            begun: 0,
            answered: 0,
            connects: Connects::to(plan.master, clock::boot()),
            last_answer: clock::boot(),
            plan,
            stop,
        })
    }

    fn run(&mut self, started: Moment) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        for slot in 0..self.slots.len() {
            self.next(slot, started, started);
        }
        while self.slots.iter().any(Option::is_some) || !self.failed.is_empty() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            match self.poll.poll(&mut events, Some(RETRY)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    return Err(error).context("epoll_wait failed");
                }
                _ => {}
            }
            let now = clock::boot();
            for slot in std::mem::take(&mut self.failed) {
                self.begin(slot, now);
            }
            for event in &events {
                let slot = event.token().0;
                match self.ready(slot, event.is_writable() || event.is_error()) {
                    Ok(false) => {}
                    Ok(true) => {
                        self.slots[slot] = None;
                        self.answered += 1;
                        self.last_answer = now;
                        self.next(slot, started, now);
                    }
                    Err(error) => self.fail(slot, &error),
                }
            }
            self.connects.look(now);
            if now.saturating_since(self.last_answer) > self.plan.patience {
                bail!("no answer from {} in the bare loop", self.plan.master);
            }
        }
        Ok(())
    }

    /// Begins the next connection, unless there were enough.
    fn next(&mut self, slot: usize, started: Moment, now: Moment) {
        let over = match self.plan.bound {
            Bound::Count(count) => self.begun >= count,
            Bound::Duration(duration) => now.saturating_since(started) >= duration,
            Bound::Replay => true,
        };
        if !over {
            self.begun += 1;
            self.begin(slot, now);
        }
    }

    fn begin(&mut self, slot: usize, now: Moment) {
        self.connects.begun();
        if let Err(error) = self.try_begin(slot, now) {
            self.fail(slot, &error);
        }
    }

    fn try_begin(&mut self, slot: usize, now: Moment) -> io::Result<()> {
        let source = self.plan.source_of(slot);
        let connection = Connection::open(self.plan.master, source, now)?;
        let connection = self.slots[slot].insert(connection);
        connection.send(&self.payload)?;
        connection.watch(self.poll.registry(), Token(slot))
    }

    fn fail(&mut self, slot: usize, error: &io::Error) {
        self.slots[slot] = None;
        self.failed.push(slot);
        self.connects.failed(error);
    }

    /// `true` when it has been answered and closed by the server.
    fn ready(&mut self, slot: usize, is_writable: bool) -> io::Result<bool> {
        let Some(connection) = &mut self.slots[slot] else {
            return Ok(false);
        };
        if is_writable && connection.has_unsent() {
            connection.writable()?;
        }
        loop {
            match connection.read(&mut self.input)? {
                Input::Bytes(_) => {}
                Input::Drained => return Ok(false),
                Input::End => return Ok(true),
            }
        }
    }
}
