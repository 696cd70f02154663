//! How many connections one destination has from here, and how many more it can have.
//!
//! The kernel gives a port out once for each (source address, destination address, destination
//! port): another destination has all ports again. A port in TIME_WAIT counts as taken, although
//! net.ipv4.tcp_tw_reuse may let it be taken again after a second; so does one that somebody has
//! bound, because the search for a free port passes over it whatever the destination is
//! (`__inet_hash_connect` in net/ipv4/inet_hashtables.c).

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::ports::LocalPorts;
use super::sockets::{self, Filter, Socket, States, TcpState};

/// States in which nobody but the socket's maker can have its port.
const BOUND: States = States::of(&[TcpState::Listen, TcpState::Bound]);

/// The use that is made of one destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DestinationUse {
    /// Open connections to it, on any port.
    pub established: u32,
    /// Connections to it in TIME_WAIT on this side, on any port.
    pub time_wait: u32,
    /// Connections to it in all other states.
    pub other: u32,
    /// How many milliseconds the last TIME_WAIT has left; 0 without any.
    pub time_wait_ends_ms: u32,
    /// Ports that new connections could have if it were not for those in use, over all source
    /// addresses.
    pub usable: u32,
    /// Those of them that a connection to it, a listener or a bound socket has.
    pub ports_in_use: u32,
    /// What remains of `usable`.
    pub left: u32,
}

impl DestinationUse {
    /// Connections to it in any state.
    pub const fn connections(&self) -> u32 {
        self.established + self.time_wait + self.other
    }
}

/// The use of `destination` by everybody on this host, from the addresses in `sources`; if there are
/// none, from the one that the kernel would choose.
///
/// # Errors
/// As [`sockets::tcp`].
pub fn destination_use(
    sources: &[IpAddr],
    ports: &LocalPorts,
    destination: SocketAddr,
) -> io::Result<DestinationUse> {
    let connections = connections(sources, destination)?;
    Ok(count(&connections, &bound()?, sources.len(), ports))
}

/// All sockets whose ports nobody else can have.
pub(super) fn bound() -> io::Result<Vec<Socket>> {
    sockets::tcp(&Filter {
        states: BOUND,
        ..Filter::default()
    })
}

/// All sockets that are connected to `destination` from one of `sources`.
pub(super) fn connections(sources: &[IpAddr], destination: SocketAddr) -> io::Result<Vec<Socket>> {
    let mut found = sockets::tcp(&Filter {
        states: BOUND.others(),
        remote_port: Some(destination.port()),
        remote: Some(destination.ip()),
        ..Filter::default()
    })?;
    let chosen: Vec<IpAddr> = match sources {
        [] => source_for(destination).into_iter().collect(),
        sources => sources.iter().map(IpAddr::to_canonical).collect(),
    };
    // Without a route nobody knows: then every address counts.
    found.retain(|socket| chosen.is_empty() || chosen.contains(&socket.local.ip()));
    Ok(found)
}

pub(super) fn count(
    connections: &[Socket],
    bound: &[Socket],
    sources: usize,
    ports: &LocalPorts,
) -> DestinationUse {
    let mut found = DestinationUse::default();
    let mut taken = HashSet::new();
    for socket in connections {
        match socket.state {
            TcpState::Established => found.established += 1,
            TcpState::TimeWait => {
                found.time_wait += 1;
                let left = socket.expires_ms.unwrap_or(0);
                found.time_wait_ends_ms = found.time_wait_ends_ms.max(left);
            }
            _ => found.other += 1,
        }
        taken.insert((Some(socket.local.ip()), socket.local.port()));
    }
    let sources = u32::try_from(sources.max(1)).unwrap_or(u32::MAX);
    let bound: HashSet<u16> = bound.iter().map(|socket| socket.local.port()).collect();
    let is_ours = |port: u16| ports.contains(port);
    let by_connections = taken
        .iter()
        .filter(|(_, port)| is_ours(*port) && !bound.contains(port))
        .count();
    let by_binding = bound.iter().filter(|port| is_ours(**port)).count();
    let as_count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    found.usable = ports.usable().saturating_mul(sources);
    found.ports_in_use =
        as_count(by_connections).saturating_add(as_count(by_binding).saturating_mul(sources));
    found.left = found.usable.saturating_sub(found.ports_in_use);
    found
}

/// The address that a connection to `destination` would come from; `None` without a route.
///
/// A UDP socket is connected for it, which chooses the route and sends nothing (udp(7)).
pub fn source_for(destination: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(destination).ok()?;
    let chosen = socket.local_addr().ok()?.ip();
    Some(chosen.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::super::ports::PortRange;
    use super::super::testing::{eventually, own_listener};
    use super::*;

    #[test]
    fn connections_and_what_is_left_are_counted() {
        let (listener, destination) = own_listener();
        let ports = LocalPorts::read().unwrap();
        let before = destination_use(&[], &ports, destination).unwrap();
        assert_eq!(before.connections(), 0);
        let streams: Vec<_> = (0..5)
            .map(|_| TcpStream::connect(destination).unwrap())
            .collect();
        let during = destination_use(&[], &ports, destination).unwrap();
        assert_eq!((during.established, during.time_wait), (5, 0));
        // Closed here first: TIME_WAIT here.
        let accepted: Vec<_> = (0..5).map(|_| listener.accept().unwrap()).collect();
        drop(streams);
        drop(accepted);
        let after = eventually("TIME_WAIT", || {
            let after = destination_use(&[], &ports, destination).unwrap();
            (after.time_wait == 5).then_some(after)
        });
        assert_eq!((after.established, after.other), (0, 0));
        assert!((1..=60_000).contains(&after.time_wait_ends_ms));
        assert!(after.ports_in_use >= 5 && after.left <= after.usable - 5);
        // From another address all ports are there again.
        let elsewhere = "127.0.0.77".parse().unwrap();
        let other = destination_use(&[elsewhere], &ports, destination).unwrap();
        assert_eq!(other.connections(), 0);
    }

    fn socket(local: &str, state: TcpState) -> Socket {
        Socket {
            state,
            local: local.parse().unwrap(),
            remote: "192.0.2.1:7412".parse().unwrap(),
            inode: 0,
            uid: 0,
            expires_ms: Some(4000),
            receive_queue: 0,
            send_queue: 0,
            interface: 0,
            ipv6_only: false,
            cgroup: None,
        }
    }

    #[test]
    fn only_ports_of_the_range_are_in_its_use() {
        let range = PortRange {
            first: 1000,
            last: 1009,
        };
        let ports = LocalPorts::new(
            range,
            vec![PortRange {
                first: 1009,
                last: 1009,
            }],
        );
        let connections = [
            socket("10.0.0.1:1000", TcpState::Established),
            socket("10.0.0.2:1000", TcpState::TimeWait),
            socket("10.0.0.1:1001", TcpState::CloseWait),
            // Not in the range, reserved, and the port of a listener.
            socket("10.0.0.1:999", TcpState::TimeWait),
            socket("10.0.0.1:1009", TcpState::TimeWait),
            socket("10.0.0.1:1002", TcpState::TimeWait),
        ];
        let bound = [
            socket("0.0.0.0:1002", TcpState::Listen),
            socket("[::]:1002", TcpState::Listen),
            socket("0.0.0.0:80", TcpState::Listen),
        ];
        let found = count(&connections, &bound, 2, &ports);
        let wanted = DestinationUse {
            established: 1,
            time_wait: 4,
            other: 1,
            time_wait_ends_ms: 4000,
            usable: 18,
            ports_in_use: 5,
            left: 13,
        };
        assert_eq!(found, wanted);
    }

    #[test]
    fn the_source_is_that_of_the_route() {
        let local = source_for("127.0.0.1:9".parse().unwrap()).unwrap();
        assert_eq!(local.to_string(), "127.0.0.1");
    }
}
