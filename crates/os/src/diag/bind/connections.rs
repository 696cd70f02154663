//! Connections that are in the way of a bind: made from here, or accepted by an earlier listener?

use std::collections::HashMap;

use super::{Cause, overlaps};
use crate::diag::address::is_local;
use crate::diag::owner::{Holder, holders};
use crate::diag::ports::{PortRange, local_port_range};
use crate::diag::sockets::{self, Filter, Socket, States, TcpState};

/// Clients bind a privileged source port for services at or below this one: rsh, rpcbind, NFS.
const SERVICE_PORT_MAX: u16 = 2049;
/// The first port that is not privileged, wherever this host's begin.
const PRIVILEGED_BELOW: u16 = 1024;

/// Connections that keep a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// How many.
    pub count: u32,
    /// How many of them are in TIME_WAIT.
    pub time_wait: u32,
    /// How many milliseconds the last of those has left.
    pub time_wait_ends_ms: u32,
    /// One of them: the one whose owner is known best.
    pub example: Holder,
}

/// What `connections`, all on one local port, are; `None` if there are none.
pub(super) fn cause(connections: &[Socket]) -> Option<Cause> {
    let mut origin = Origin::new(connections.len());
    let (outgoing, accepted): (Vec<_>, Vec<_>) = connections
        .iter()
        .copied()
        .partition(|socket| origin.is_here(socket));
    match summary(&outgoing) {
        Some(outgoing) => Some(Cause::Outgoing(Box::new(outgoing))),
        None => summary(&accepted).map(|accepted| Cause::Remnants(Box::new(accepted))),
    }
}

fn summary(sockets: &[Socket]) -> Option<Connections> {
    let in_time_wait = sockets
        .iter()
        .filter(|socket| socket.state == TcpState::TimeWait);
    let ends_ms = in_time_wait.clone().filter_map(|socket| socket.expires_ms);
    let as_count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let time_wait_ends_ms = ends_ms.max().unwrap_or(0);
    // What is open comes before what only the kernel still has.
    let example = holders(sockets).into_iter().min_by_key(|holder| {
        let is_open = !holder.is_orphan();
        (holder.owner.is_none(), holder.is_likely, !is_open)
    })?;
    Some(Connections {
        count: as_count(sockets.len()),
        time_wait: as_count(in_time_wait.count()),
        time_wait_ends_ms,
        example,
    })
}

/// Decides on which side a connection was made.
///
/// If the other end is on this host as well, whoever listens there tells it. Otherwise the ports do:
/// the kernel takes source ports from its range, and services have theirs outside of it.
struct Origin {
    range: Option<PortRange>,
    /// Connections on the same local port.
    count: usize,
    /// Listeners by their port.
    listeners: HashMap<u16, Vec<Socket>>,
}

impl Origin {
    fn new(count: usize) -> Self {
        Self {
            range: local_port_range().ok(),
            count,
            listeners: HashMap::new(),
        }
    }

    fn is_here(&mut self, socket: &Socket) -> bool {
        if is_local(socket.remote.ip()).unwrap_or(false) {
            return self.is_listened_on(socket);
        }
        self.looks_outgoing(socket.local.port(), socket.remote.port())
    }

    fn is_listened_on(&mut self, socket: &Socket) -> bool {
        let port = socket.remote.port();
        let listeners = self.listeners.entry(port).or_insert_with(|| {
            let filter = Filter {
                states: States::of(&[TcpState::Listen]),
                local_port: Some(port),
                ..Filter::default()
            };
            // The list that led here could be had as well.
            sockets::tcp(&filter).unwrap_or_default()
        });
        let remote = socket.remote.ip();
        listeners.iter().any(|listener| overlaps(remote, listener))
    }

    fn looks_outgoing(&self, local: u16, remote: u16) -> bool {
        let in_range = |port| self.range.is_some_and(|range| range.contains(port));
        match (in_range(local), in_range(remote)) {
            (true, false) => true,
            // Several on one source port are possible, but rare.
            (true, true) => self.count == 1,
            (false, _) => local < PRIVILEGED_BELOW && remote <= SERVICE_PORT_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_tell_the_side_of_a_remote_connection() {
        let origin = |count| Origin {
            range: Some(PortRange {
                first: 32_768,
                last: 60_999,
            }),
            count,
            listeners: HashMap::new(),
        };
        // Made from here to a web server, and from a peer to our listener in the range.
        assert!(origin(1).looks_outgoing(40_000, 443));
        assert!(origin(1).looks_outgoing(40_000, 50_000));
        assert!(!origin(2).looks_outgoing(40_000, 50_000));
        // A service's port, and peers of all kinds.
        assert!(!origin(1).looks_outgoing(7412, 50_000));
        assert!(!origin(1).looks_outgoing(7412, 1023));
        assert!(!origin(1).looks_outgoing(443, 50_000));
        // A NFS mount that took a privileged port.
        assert!(origin(1).looks_outgoing(993, 2049));
    }
}
