//! Why bind(2) or listen(2) failed: who holds the port, and what helps.
//!
//! What makes a bind fail although SO_REUSEADDR is set (`inet_csk_bind_conflict` in
//! net/ipv4/inet_connection_sock.c): a socket on the same port whose address is the same or one of
//! the two is the wildcard, and which either listens, or had not set SO_REUSEADDR itself. A
//! connection has what its listener had, or, if it was made from here, what its socket had: nothing,
//! as a rule. Whether a socket had set it can't be asked, so what is told are the sockets that are in
//! the way, the surest first: a listener, an outgoing connection, what a listener left, a bound
//! socket.

mod connections;
mod words;

use std::io;
use std::net::{IpAddr, SocketAddr};

pub use connections::Connections;

use super::address::{LocalAddress, local_addresses};
use super::owner::{Holder, Owner, holders};
use super::ports::unprivileged_from;
use super::sockets::{self, Filter, Socket, TcpState};
use super::text::moment;

/// What a failed bind comes to. It displays as one line: what is in the way, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What was to be bound.
    pub address: SocketAddr,
    /// For which protocol.
    pub transport: Transport,
    /// Why it could not be.
    pub cause: Cause,
}

/// Who a port belongs to: TCP and UDP have their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// "tcp" or "udp".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    fn sockets(self, filter: &Filter) -> io::Result<Vec<Socket>> {
        match self {
            Self::Tcp => sockets::tcp(filter),
            Self::Udp => sockets::udp(filter),
        }
    }
}

/// Why an address can't be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Somebody listens there; over UDP: has it open.
    Listener(Box<Holder>),
    /// The kernel gave the port to connections from this host as their source port.
    Outgoing(Box<Connections>),
    /// Connections that a listener without SO_REUSEADDR had accepted.
    Remnants(Box<Connections>),
    /// A socket that is bound and does not listen.
    Bound(Box<Holder>),
    /// In use, and nobody is seen who has it.
    Unseen,
    /// In use, and the sockets can't be listed, for this reason.
    NotListed(String),
    /// The port is below the first that needs no privilege.
    Privileged {
        /// That first port.
        unprivileged_from: u16,
    },
    /// No permission, although the port needs no privilege: a security module.
    Forbidden,
    /// The address is not this host's.
    NotLocal {
        /// Those that are.
        local: Vec<LocalAddress>,
    },
    /// The address is this host's and can't be used: IPv6 is still looking for a duplicate of it, or
    /// has found one.
    NotReady {
        /// Where it is.
        interface: String,
    },
    /// A link-local address without its interface.
    NoScope,
    /// This kernel has no such address family.
    NoFamily,
    /// The process has no descriptor left.
    NoDescriptor,
    /// Anything else.
    Other,
}

/// Looks for the reason of `error`, which a bind or listen of `address` came to.
///
/// Blocks for as long as listing sockets and processes takes.
pub fn explain(transport: Transport, address: SocketAddr, error: &io::Error) -> Explanation {
    const EMFILE: i32 = 24;
    const EAFNOSUPPORT: i32 = 97;
    const EINVAL: i32 = 22;
    let cause = match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::AddrInUse, _) => in_use(transport, address),
        (io::ErrorKind::AddrNotAvailable, _) => not_available(address.ip()),
        (io::ErrorKind::PermissionDenied, _) => match unprivileged_from() {
            first if address.port() < first => Cause::Privileged {
                unprivileged_from: first,
            },
            _ => Cause::Forbidden,
        },
        (_, Some(EINVAL)) if is_link_local(address.ip()) => Cause::NoScope,
        (_, Some(EAFNOSUPPORT)) => Cause::NoFamily,
        (_, Some(EMFILE)) => Cause::NoDescriptor,
        _ => Cause::Other,
    };
    Explanation {
        address,
        transport,
        cause,
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(six) if six.is_unicast_link_local())
}

fn not_available(ip: IpAddr) -> Cause {
    // Without a list the remedy is still right.
    let local = local_addresses().unwrap_or_default();
    match local.iter().find(|one| one.ip == ip.to_canonical()) {
        Some(one) => Cause::NotReady {
            interface: one.interface.clone(),
        },
        None => Cause::NotLocal { local },
    }
}

fn in_use(transport: Transport, address: SocketAddr) -> Cause {
    let on_port = Filter {
        local_port: Some(address.port()),
        ..Filter::default()
    };
    let sockets = match transport.sockets(&on_port) {
        Ok(sockets) => sockets,
        Err(error) => return Cause::NotListed(error.to_string()),
    };
    let rivals = rivals(address.ip(), &sockets);
    match transport {
        Transport::Tcp => tcp_cause(&rivals),
        // Without a peer it receives from everybody, as a listener does.
        Transport::Udp => first_holder(&rivals, TcpState::Bound)
            .or_else(|| first_holder(&rivals, TcpState::Established))
            .map_or(Cause::Unseen, Cause::Listener),
    }
}

fn tcp_cause(rivals: &[Socket]) -> Cause {
    if let Some(holder) = first_holder(rivals, TcpState::Listen) {
        return Cause::Listener(holder);
    }
    let is_connection = |socket: &&Socket| socket.state != TcpState::Bound;
    let connections: Vec<_> = rivals.iter().filter(is_connection).copied().collect();
    connections::cause(&connections)
        .or_else(|| first_holder(rivals, TcpState::Bound).map(Cause::Bound))
        .unwrap_or(Cause::Unseen)
}

/// The first one in this state; one whose owner is known before others.
fn first_holder(sockets: &[Socket], state: TcpState) -> Option<Box<Holder>> {
    let in_state = sockets.iter().filter(|socket| socket.state == state);
    let holders = holders(&in_state.copied().collect::<Vec<_>>());
    let best = holders
        .into_iter()
        .min_by_key(|holder| match &holder.owner {
            Some(_) if !holder.is_likely => 0,
            Some(_) => 1,
            None => 2,
        });
    best.map(Box::new)
}

/// Those of `sockets`, which are on the same port, that can be in the way of `address`.
fn rivals(address: IpAddr, sockets: &[Socket]) -> Vec<Socket> {
    let overlap = |socket: &&Socket| overlaps(address.to_canonical(), socket);
    let found: Vec<_> = sockets.iter().filter(overlap).copied().collect();
    let is_wildcard = matches!(address, IpAddr::V6(six) if six.is_unspecified());
    if found.is_empty() && is_wildcard {
        // For both families, as it must have been then, it is in the way of all.
        return sockets.to_vec();
    }
    found
}

/// Whether two sockets on one port collide by their addresses.
fn overlaps(address: IpAddr, socket: &Socket) -> bool {
    let other = socket.local.ip();
    match (address, other) {
        (IpAddr::V4(_), IpAddr::V6(_)) => socket.is_dual_stack(),
        (IpAddr::V6(_), IpAddr::V4(_)) => false,
        _ => address == other || address.is_unspecified() || other.is_unspecified(),
    }
}

impl Explanation {
    /// A stable name of the cause, for logs.
    pub const fn name(&self) -> &'static str {
        match self.cause {
            Cause::Listener(_) => "listener",
            Cause::Outgoing(_) => "outgoing_connection",
            Cause::Remnants(_) => "connections_of_a_listener",
            Cause::Bound(_) => "bound_socket",
            Cause::Unseen | Cause::NotListed(_) => "unknown_holder",
            Cause::Privileged { .. } => "privileged_port",
            Cause::Forbidden => "forbidden",
            Cause::NotLocal { .. } => "not_local",
            Cause::NotReady { .. } => "not_ready",
            Cause::NoScope => "no_scope",
            Cause::NoFamily => "no_family",
            Cause::NoDescriptor => "no_descriptor",
            Cause::Other => "other",
        }
    }

    /// The socket that is in the way, and who has it.
    pub fn holder(&self) -> Option<&Holder> {
        match &self.cause {
            Cause::Listener(holder) | Cause::Bound(holder) => Some(holder),
            Cause::Outgoing(connections) | Cause::Remnants(connections) => {
                Some(&connections.example)
            }
            _ => None,
        }
    }

    /// Writes the failure to the log: the line, and what it says as fields.
    pub fn log(&self, error: &io::Error) {
        let holder = self.holder();
        let owner = self.owner();
        tracing::error!(
            event = "bind_failed",
            address = %self.address,
            transport = self.transport.name(),
            errno = error.raw_os_error(),
            cause = self.name(),
            error = %error,
            finding = self.finding(),
            remedy = self.remedy(),
            holder_pid = owner.map(|owner| owner.pid),
            holder_command = owner.map(|owner| owner.command.as_str()),
            holder_user = holder.and_then(|holder| holder.user.as_deref()),
            holder_unit = holder.and_then(|holder| holder.unit.as_deref()),
            holder_since = owner.map(|owner| moment(owner.since_ms)),
            holder_local = holder.map(|holder| tracing::field::display(holder.socket.local)),
            holder_remote = holder
                .map(|holder| holder.socket.remote)
                .filter(|remote| remote.port() != 0)
                .map(tracing::field::display),
            time_wait_ends_ms = self.time_wait_ends_ms(),
            "an address can't be listened on"
        );
    }

    /// The process that has it.
    pub fn owner(&self) -> Option<&Owner> {
        self.holder()?.owner.as_ref()
    }

    /// In how many milliseconds the last TIME_WAIT ends that is in the way.
    pub fn time_wait_ends_ms(&self) -> Option<u32> {
        match &self.cause {
            Cause::Outgoing(connections) | Cause::Remnants(connections)
                if connections.time_wait > 0 =>
            {
                Some(connections.time_wait_ends_ms)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
