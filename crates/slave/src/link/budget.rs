//! How many ports per-message mode may take.
//!
//! Each connection takes a port for its destination. The master closes first, which gives the port
//! back at once. Where that can't be had, because of a timeout, a refused frame or something
//! in between that holds the master's close back, this side closes first, and the port stays in
//! TIME_WAIT for a minute. The budget is what these may take: the ports that there are, times the
//! source addresses, less a reserve for the pooled connection that it falls back to and for others.
//!
//! ```text
//!              ┌──── held < budget ────┐
//!   per message ─ budget used up, or EADDRNOTAVAIL ─> exhausted: pooled, or waiting
//!        ^                                                 │
//!        └──── a quarter of the budget is free again ──────┘
//! ```
//!
//! It counts what it closes first itself; the kernel is asked when that is in doubt.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rollcall_os::diag::destination::destination_use;
use rollcall_os::diag::ports::{LocalPorts, budget_of};
use rollcall_os::outgoing::{Connector, Outgoing};
use rollcall_protocol::Moment;

/// How long the kernel keeps a port in TIME_WAIT (TCP_TIMEWAIT_LEN, include/net/tcp.h).
const TIME_WAIT: Duration = Duration::from_secs(60);
/// So much of the budget, one part of four, must be free before it ends to be exhausted.
const FREE_SHARE: u32 = 4;

/// The ports of one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortUse {
    /// Where the connections go.
    pub(crate) destination: SocketAddr,
    /// Ports that may be used at a time; `None` if the kernel does not tell its range.
    pub(crate) budget: Option<u32>,
    /// Ports of open connections and those in TIME_WAIT.
    pub(crate) used: u32,
    /// Those in TIME_WAIT on this side.
    pub(crate) time_wait: u32,
    /// How often the budget was used up, or there was no port at all, since the start.
    pub(crate) exhaustions: u64,
    /// Whether it is used up at present.
    pub(crate) is_exhausted: bool,
}

/// The budget of per-message mode for each master, for people; one line for each family of the
/// source addresses.
pub(crate) fn describe_budget(outgoing: &Outgoing) -> String {
    let connector = Connector::new(outgoing.clone());
    let Some(ports) = connector.local_ports() else {
        return "the kernel does not tell its range of ports".to_owned();
    };
    let families = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let counts = families.map(|family| (family, outgoing.sources(family).count()));
    let lines = counts.into_iter().filter_map(|(family, count)| {
        let from = match (outgoing.source_addresses.is_empty(), family, count) {
            (true, IpAddr::V4(_), _) => "one source address".to_owned(),
            (true, IpAddr::V6(_), _) | (false, _, 0) => return None,
            (false, IpAddr::V4(_), count) => format!("{count} IPv4 source addresses"),
            (false, IpAddr::V6(_), count) => format!("{count} IPv6 source addresses"),
        };
        let budget = budget_of(usable(&connector, family)?);
        Some(format!(
            "{} ports ({ports}) of {from} to each master: at most {budget} in use or in TIME_WAIT at a time",
            ports.usable()
        ))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// How many ports connections as `connector` makes them may take for `destination`; `None` if the
/// kernel does not tell its range.
fn usable(connector: &Connector, destination: IpAddr) -> Option<u32> {
    let ports = connector.local_ports()?.usable();
    let sources = connector.outgoing().sources(destination).count();
    // Without any the kernel picks one.
    let sources = u32::try_from(sources.max(1)).unwrap_or(u32::MAX);
    Some(ports.saturating_mul(sources))
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Budget {
    connector: Arc<Connector>,
    /// When this side closed first, by destination, in the last minute.
    closed: BTreeMap<SocketAddr, VecDeque<Moment>>,
    /// Where the last connection went.
    destination: Option<SocketAddr>,
    /// Since when the ports are used up.
    exhausted_at: Option<Moment>,
    exhaustions: u64,
}

impl Budget {
    /// Nothing is used yet.
    pub(super) fn new(connector: Arc<Connector>) -> Self {
        Self {
            connector,
            closed: BTreeMap::new(),
            destination: None,
            exhausted_at: None,
            exhaustions: 0,
        }
    }

    /// Connections come from somewhere else from now on; what is in TIME_WAIT stays counted.
    pub(super) fn reconfigure(&mut self, connector: Arc<Connector>) {
        self.connector = connector;
        self.exhausted_at = None;
    }

    /// Whether the ports are used up, until [`Self::handle_in_use`] finds them free.
    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted_at.is_some()
    }

    /// A connection was made to `destination`.
    pub(super) fn handle_connected(&mut self, destination: SocketAddr) {
        self.destination = Some(destination);
    }

    /// This side has closed a connection to `destination` first.
    pub(super) fn handle_closed_first(&mut self, destination: SocketAddr, now: Moment) {
        self.expire(now);
        self.closed.entry(destination).or_default().push_back(now);
    }

    /// Whether there is a port for one more connection, by what is known here; `open` are the
    /// connections that stand.
    pub(super) fn has_room(&mut self, open: u32, now: Moment) -> bool {
        let found = self.port_use(open, now);
        found.is_none_or(|found| found.budget.is_none_or(|budget| found.used < budget))
    }

    /// The kernel counts `in_use` ports to the destination, by whomever. Returns whether there is
    /// room for one more, and for a good part more once the budget was exhausted.
    pub(super) fn handle_in_use(&mut self, in_use: u32, open: u32, now: Moment) -> bool {
        let Some(destination) = self.destination else {
            return true;
        };
        // A port may be given back early: by a reset, or by net.ipv4.tcp_tw_reuse.
        let closed = self.closed.entry(destination).or_default();
        let held = usize::try_from(in_use.saturating_sub(open)).unwrap_or(usize::MAX);
        let over = closed.len().saturating_sub(held);
        closed.drain(..over);
        self.find_room(in_use, open, now)
    }

    /// The same when the kernel does not tell: by what is known here, and not before all that was in
    /// TIME_WAIT when the ports were used up is over.
    pub(super) fn handle_unknown(&mut self, open: u32, now: Moment) -> bool {
        let over = |at: Moment| now.saturating_since(at) >= TIME_WAIT;
        self.exhausted_at.is_none_or(over) && self.find_room(0, open, now)
    }

    fn find_room(&mut self, in_use: u32, open: u32, now: Moment) -> bool {
        let Some(PortUse {
            budget: Some(budget),
            used,
            ..
        }) = self.port_use(open, now)
        else {
            self.exhausted_at = None;
            return true;
        };
        let free = budget.saturating_sub(used.max(in_use));
        let wanted = if self.is_exhausted() {
            (budget / FREE_SHARE).max(1)
        } else {
            1
        };
        if free >= wanted {
            self.exhausted_at = None;
        }
        free >= wanted
    }

    /// There is no room, or EADDRNOTAVAIL has said that there is no port.
    pub(super) fn handle_exhausted(&mut self, now: Moment) {
        if self.exhausted_at.is_none() {
            self.exhausted_at = Some(now);
            self.exhaustions += 1;
        }
    }

    /// Forgets what is no longer in TIME_WAIT.
    fn expire(&mut self, now: Moment) {
        self.closed.retain(|_, closed| {
            while closed
                .front()
                .is_some_and(|at| now.saturating_since(*at) >= TIME_WAIT)
            {
                closed.pop_front();
            }
            !closed.is_empty()
        });
    }

    /// The ports of the destination; `None` before there was a connection.
    pub(super) fn port_use(&mut self, open: u32, now: Moment) -> Option<PortUse> {
        self.expire(now);
        let destination = self.destination?;
        let time_wait = self.closed.get(&destination).map_or(0, VecDeque::len);
        let time_wait = u32::try_from(time_wait).unwrap_or(u32::MAX);
        Some(PortUse {
            destination,
            budget: usable(&self.connector, destination.ip()).map(budget_of),
            used: time_wait.saturating_add(open),
            time_wait,
            exhaustions: self.exhaustions,
            is_exhausted: self.is_exhausted(),
        })
    }

    /// What connections to `destination` may come from: addresses, none if the kernel picks, and
    /// ports, `None` likewise.
    pub(super) fn origins(&self, destination: IpAddr) -> (Vec<IpAddr>, Option<LocalPorts>) {
        let outgoing = self.connector.outgoing();
        let sources = outgoing.sources(destination).map(|source| source.ip);
        (sources.collect(), self.connector.local_ports())
    }

    /// How many of the ports are in use by whomever, asked of the kernel; `None` if it does not
    /// tell.
    pub(super) fn ask_kernel(&self) -> impl Future<Output = Option<u32>> + Send + use<> {
        let asked = self.destination.map(|destination| {
            let (sources, ports) = self.origins(destination.ip());
            // It lists all connections to the destination: that may take a moment.
            tokio::task::spawn_blocking(move || {
                let found = destination_use(&sources, &ports?, destination);
                found.ok().map(|found| found.ports_in_use)
            })
        });
        async move { asked?.await.ok().flatten() }
    }
}

#[cfg(test)]
mod tests;
