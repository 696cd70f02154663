//! The TCP and UDP sockets of this network namespace, whoever has them.
//!
//! Asked over sock_diag(7), which needs no privilege and lets the kernel choose by state and port:
//! /proc/net/tcp would make a text of every socket first. A mapped IPv4 address, as an IPv6 socket
//! for both families shows it, is given as IPv4.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::netlink::{Entry, Request, Tables};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const TIME_WAIT_TIMER: u8 = 3;

/// The states of RFC 9293 under the kernel's names (net/tcp_states.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TcpState {
    /// The connection is open. For UDP: connected to one peer.
    Established,
    /// A connection is being made from here.
    SynSent,
    /// A connection is being made from elsewhere.
    SynReceived,
    /// Closed here; neither acked nor closed by the peer.
    FinWait1,
    /// Closed here and acked; the peer has not closed.
    FinWait2,
    /// Over; the port pair is kept from being mistaken for the next connection, 60 s on Linux.
    TimeWait,
    /// Closed by the peer, and not by the process here.
    CloseWait,
    /// Closed by the peer, then here; the last ack is missing.
    LastAck,
    /// A listener.
    Listen,
    /// Closed on both sides at once.
    Closing,
    /// Bound to a port, and nothing else: neither listening nor connected. Seen on Linux 6.8 and
    /// later (TCP_BOUND_INACTIVE). For UDP: open, and not connected to one peer.
    Bound,
}

impl TcpState {
    /// Every one.
    pub const ALL: [Self; 11] = [
        Self::Established,
        Self::SynSent,
        Self::SynReceived,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
        Self::Bound,
    ];

    /// The kernel's name of it, such as "TIME_WAIT".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynReceived => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
            Self::Bound => "BOUND",
        }
    }

    /// The kernel's number in an answer. A bound socket is told as TCP_CLOSE.
    const fn number(self) -> u8 {
        match self {
            Self::Established => 1,
            Self::SynSent => 2,
            Self::SynReceived => 3,
            Self::FinWait1 => 4,
            Self::FinWait2 => 5,
            Self::TimeWait => 6,
            Self::Bound => 7,
            Self::CloseWait => 8,
            Self::LastAck => 9,
            Self::Listen => 10,
            Self::Closing => 11,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.number() == number)
    }
}

impl fmt::Display for TcpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States(u32);

impl States {
    /// Every one.
    pub const ALL: Self = Self::of(&TcpState::ALL);

    /// These.
    pub const fn of(states: &[TcpState]) -> Self {
        let mut bits = 0;
        let mut at = 0;
        while at < states.len() {
            bits |= 1 << states[at].number();
            at += 1;
        }
        Self(bits)
    }

    /// All others.
    pub const fn others(self) -> Self {
        Self(Self::ALL.0 & !self.0)
    }

    /// Whether it has this one.
    pub const fn contains(self, state: TcpState) -> bool {
        self.0 & (1 << state.number()) != 0
    }

    /// The bits that a TCP list is asked for: for bound sockets that of TCP_BOUND_INACTIVE, because
    /// that of TCP_CLOSE finds none (net/ipv4/inet_diag.c).
    const fn tcp_bits(self) -> u32 {
        let bound = 1 << TcpState::Bound.number();
        let inactive = 1 << 13;
        let wanted = if self.0 & bound == 0 { 0 } else { inactive };
        self.0 & !bound | wanted
    }
}

impl Default for States {
    /// All.
    fn default() -> Self {
        Self::ALL
    }
}

/// Which sockets are wanted. States and ports are chosen by the kernel, so that what is left out
/// costs next to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// In one of these states; all by default.
    pub states: States,
    /// On this local port.
    pub local_port: Option<u16>,
    /// Connected to this port.
    pub remote_port: Option<u16>,
    /// Connected to this address.
    pub remote: Option<IpAddr>,
}

/// A socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// What it does.
    pub state: TcpState,
    /// Its own end; the unspecified address for all of this host's.
    pub local: SocketAddr,
    /// The other end; the unspecified address and port 0 if there is none.
    pub remote: SocketAddr,
    /// The number under which processes have it open (/proc/PID/fd); 0 once none has: TIME_WAIT,
    /// and connections that the kernel ends on its own.
    pub inode: u32,
    /// The user who made it (0 in TIME_WAIT, which has none).
    pub uid: u32,
    /// How many milliseconds are left until the kernel forgets it: TIME_WAIT, and FIN_WAIT2 without
    /// a process.
    pub expires_ms: Option<u32>,
    /// Bytes that wait to be read; of a listener: connections that wait to be accepted.
    pub receive_queue: u32,
    /// Bytes that are not acked; of a listener: how many connections may wait.
    pub send_queue: u32,
    /// Index of the interface that it is bound to (SO_BINDTODEVICE); 0: any.
    pub interface: u32,
    /// An IPv6 listener that takes no IPv4 (IPV6_V6ONLY).
    pub ipv6_only: bool,
    /// The control group that it was made in: the inode of that folder in the cgroup2 file system
    /// (Linux 5.9 and later).
    pub cgroup: Option<u64>,
}

impl Socket {
    /// Listens or is open for IPv4 and IPv6 at all addresses.
    pub fn is_dual_stack(&self) -> bool {
        self.local.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !self.ipv6_only
    }
}

/// TCP sockets.
///
/// # Errors
/// What the kernel says; `NotFound` (ENOENT) if it has no sock_diag for TCP and can't load it,
/// `Unsupported` if a sandbox forbids netlink (systemd: `RestrictAddressFamilies=` without
/// AF_NETLINK).
pub fn tcp(filter: &Filter) -> io::Result<Vec<Socket>> {
    list(IPPROTO_TCP, filter.states.tcp_bits(), filter)
}

/// UDP sockets: [`TcpState::Established`] if they are connected to one peer, otherwise
/// [`TcpState::Bound`].
///
/// # Errors
/// As [`tcp`].
pub fn udp(filter: &Filter) -> io::Result<Vec<Socket>> {
    list(IPPROTO_UDP, filter.states.0, filter)
}

fn list(protocol: u8, states: u32, filter: &Filter) -> io::Result<Vec<Socket>> {
    let families: &[u8] = match filter.remote {
        Some(IpAddr::V6(address)) if address.to_ipv4_mapped().is_none() => &[AF_INET6],
        // A socket for both families has its IPv4 connections in the other table.
        _ => &[AF_INET, AF_INET6],
    };
    let tables = Tables::open()?;
    let mut found = Vec::new();
    for &family in families {
        let request = Request {
            family,
            protocol,
            states,
            local_port: filter.local_port.unwrap_or(0),
            remote_port: filter.remote_port.unwrap_or(0),
        };
        let listed = tables.list(request, |entry| {
            found.extend(socket(&entry).filter(|socket| is_wanted(socket, filter)));
        });
        match listed {
            // A kernel without IPv6.
            Err(error) if family == AF_INET6 && error.kind() == io::ErrorKind::NotFound => {}
            listed => listed?,
        }
    }
    Ok(found)
}

/// What the kernel does not choose: addresses, and the ports of sockets that are only bound.
fn is_wanted(socket: &Socket, filter: &Filter) -> bool {
    filter.states.contains(socket.state)
        && filter
            .local_port
            .is_none_or(|port| socket.local.port() == port)
        && filter
            .remote_port
            .is_none_or(|port| socket.remote.port() == port)
        && filter
            .remote
            .is_none_or(|address| socket.remote.ip() == address.to_canonical())
}

fn socket(entry: &Entry) -> Option<Socket> {
    let endpoint = |address, port| endpoint(entry.family, address, port, entry.interface);
    Some(Socket {
        state: TcpState::from_number(entry.state)?,
        local: endpoint(entry.local, entry.local_port),
        remote: endpoint(entry.remote, entry.remote_port),
        inode: entry.inode,
        uid: entry.uid,
        expires_ms: (entry.timer == TIME_WAIT_TIMER).then_some(entry.expires_ms),
        receive_queue: entry.receive_queue,
        send_queue: entry.send_queue,
        interface: entry.interface,
        ipv6_only: entry.ipv6_only,
        cgroup: entry.cgroup,
    })
}

fn endpoint(family: u8, address: [u8; 16], port: u16, interface: u32) -> SocketAddr {
    if family == AF_INET {
        let [a, b, c, d, ..] = address;
        return SocketAddr::from((Ipv4Addr::new(a, b, c, d), port));
    }
    let six = Ipv6Addr::from(address);
    match six.to_canonical() {
        IpAddr::V4(four) => SocketAddr::from((four, port)),
        IpAddr::V6(six) => {
            let scope = if six.is_unicast_link_local() {
                interface
            } else {
                0
            };
            SocketAddrV6::new(six, port, 0, scope).into()
        }
    }
}

#[cfg(test)]
mod tests;
