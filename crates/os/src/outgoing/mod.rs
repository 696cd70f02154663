//! How an outgoing connection gets its source address and port.
//!
//! ```text
//!   asked for            done
//!   nothing              the kernel picks both at connect
//!   source addresses     bind with IP_BIND_ADDRESS_NO_PORT: the kernel picks the port at connect, when it
//!                        knows the destination; the addresses take turns
//!   a range of ports     IP_LOCAL_PORT_RANGE, where the kernel has it and the range is inside its own;
//!                        else bind to one port after the other, with SO_REUSEADDR
//!   a privileged port    bind to one port after the other, from a changing one on (bindresvport(3))
//!   an interface         SO_BINDTODEVICE
//! ```
//!
//! A connection is the pair of its two addresses and ports: the ports of one source address are used
//! up for one destination at a time, and each further source address has as many again. To bind
//! without IP_BIND_ADDRESS_NO_PORT would take a port for all destinations at once (ip(7)).

mod error;
mod narrow;
mod scope;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::diag::ports::{LocalPorts, PortRange, local_port_range, reserved_ports};

pub use error::OutgoingError;
pub use narrow::narrow;
pub use scope::{ScopeError, ScopedAddress, ScopedAddressError, is_interface};

/// The ports that only a privileged process can bind to, as far as they are fit for connections
/// (bindresvport(3)): below them are those of well-known services.
pub const PRIVILEGED_PORTS: PortRange = PortRange {
    first: 512,
    last: 1023,
};

/// Where connections are to come from. The default leaves everything to the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// They take turns; one whose ports are used up is passed over. Empty: the kernel picks.
    pub source_addresses: Vec<ScopedAddress>,
    /// Only these ports. Not together with `privileged`.
    pub source_ports: Option<PortRange>,
    /// Only [`PRIVILEGED_PORTS`].
    pub privileged: bool,
    /// Only through this interface.
    pub interface: Option<String>,
}

impl Outgoing {
    /// The ports that connections may come from, if they are not the kernel's.
    pub fn ports(&self) -> Option<PortRange> {
        if self.privileged {
            Some(PRIVILEGED_PORTS)
        } else {
            self.source_ports
        }
    }

    /// The source addresses that fit a destination: those of its family.
    pub fn sources(&self, destination: IpAddr) -> impl Iterator<Item = &ScopedAddress> + Clone {
        let fits = move |source: &&ScopedAddress| source.ip.is_ipv4() == destination.is_ipv4();
        self.source_addresses.iter().filter(fits)
    }
}

/// Begins connections as an [`Outgoing`] asks for.
#[derive(Debug)]
pub struct Connector {
    outgoing: Outgoing,
    /// What the kernel picks from by itself; `None` if it does not tell.
    kernel_range: Option<PortRange>,
    /// What the kernel gives to nobody who does not name it.
    reserved: Vec<PortRange>,
    /// The source address whose turn it is.
    turn: AtomicU32,
    /// Where the next search for a port begins.
    next_port: AtomicU32,
}

/// What kind of socket it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
}

/// How a socket gets its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ports {
    /// The kernel picks it when the destination is known.
    Kernel,
    /// They are tried one after the other.
    Explicit(PortRange),
}

impl Connector {
    /// A connector that begins at a random port.
    pub fn new(outgoing: Outgoing) -> Self {
        Self {
            outgoing,
            kernel_range: local_port_range().ok(),
            reserved: reserved_ports().unwrap_or_default(),
            turn: AtomicU32::new(0),
            next_port: AtomicU32::new(getrandom::u32().unwrap_or_default()),
        }
    }

    /// What was asked for.
    pub fn outgoing(&self) -> &Outgoing {
        &self.outgoing
    }

    /// The ports that connections from one address to one destination may take, as they were when
    /// this was made; `None` if the kernel does not tell its range.
    pub fn local_ports(&self) -> Option<LocalPorts> {
        let range = self.outgoing.ports().or(self.kernel_range)?;
        Some(LocalPorts::new(range, self.reserved.clone()))
    }

    /// A non-blocking socket that is bound as asked for and not connected. Whether its port is free
    /// for this destination shows at connect: [`Self::connect`] goes on to the next one then.
    ///
    /// # Errors
    /// [`OutgoingError`]
    pub fn socket_for(&self, destination: SocketAddr) -> Result<Socket, OutgoingError> {
        self.each_source(destination, |source| {
            let (socket, ports) = self.open(destination, Kind::Stream)?;
            match ports {
                Ports::Kernel => bind_address(&socket, source, destination)?,
                Ports::Explicit(range) => {
                    let mut ports = self.search(range);
                    bind_next(&socket, source, &mut ports, range, destination)?;
                }
            }
            Ok(socket)
        })
    }

    /// A non-blocking socket that connects: it is writable when that is done, and SO_ERROR says how
    /// it went. All source addresses and ports are tried before this fails for want of one.
    ///
    /// # Errors
    /// [`OutgoingError::Exhausted`] if every port for this destination is taken; or what keeps this
    /// host from connecting at all.
    pub fn connect(&self, destination: SocketAddr) -> Result<Socket, OutgoingError> {
        self.begin(destination, Kind::Stream)
    }

    /// A non-blocking socket for datagrams to and from the destination only.
    ///
    /// # Errors
    /// As for [`Self::connect`].
    pub fn connect_datagram(&self, destination: SocketAddr) -> Result<Socket, OutgoingError> {
        self.begin(destination, Kind::Datagram)
    }

    fn begin(&self, destination: SocketAddr, kind: Kind) -> Result<Socket, OutgoingError> {
        self.each_source(destination, |source| {
            let (mut socket, ports) = self.open(destination, kind)?;
            let Ports::Explicit(range) = ports else {
                bind_address(&socket, source, destination)?;
                start(&socket, destination)?;
                return Ok(socket);
            };
            let mut ports = self.search(range);
            loop {
                bind_next(&socket, source, &mut ports, range, destination)?;
                match start(&socket, destination) {
                    Ok(()) => return Ok(socket),
                    // Another connection to the destination has this port, or had it a moment ago.
                    Err(OutgoingError::Exhausted { .. }) => {
                        socket = self.open(destination, kind)?.0;
                    }
                    Err(error) => return Err(error),
                }
            }
        })
    }

    /// Runs `begin` with one source address after the other, until one can be used.
    fn each_source(
        &self,
        destination: SocketAddr,
        begin: impl Fn(Option<SocketAddr>) -> Result<Socket, OutgoingError>,
    ) -> Result<Socket, OutgoingError> {
        if self.outgoing.source_addresses.is_empty() {
            return begin(None);
        }
        let fitting = self.outgoing.sources(destination.ip());
        let count = fitting.clone().count();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let turn = usize::try_from(turn).unwrap_or_default() % count.max(1);
        let mut failed = None;
        for source in fitting.cycle().skip(turn).take(count) {
            let source = source.with_port(0).map_err(OutgoingError::from);
            match source.and_then(|source| begin(Some(source))) {
                Err(error) if error.is_of_one_source() => failed = Some(worse(failed, error)),
                begun => return begun,
            }
        }
        Err(failed.unwrap_or(OutgoingError::Family { destination }))
    }

    fn open(&self, destination: SocketAddr, kind: Kind) -> Result<(Socket, Ports), OutgoingError> {
        let other = |source| OutgoingError::Connect {
            destination,
            source,
        };
        let domain = Domain::for_address(destination);
        let (kind, protocol) = match kind {
            Kind::Stream => (Type::STREAM, Protocol::TCP),
            Kind::Datagram => (Type::DGRAM, Protocol::UDP),
        };
        let socket = Socket::new(domain, kind.nonblocking(), Some(protocol)).map_err(other)?;
        if let Some(interface) = &self.outgoing.interface {
            socket
                .bind_device(Some(interface.as_bytes()))
                .map_err(|error| OutgoingError::interface(interface, error))?;
        }
        let ports = match self.outgoing.ports() {
            None => Ports::Kernel,
            Some(range) if narrow(&socket, range, self.kernel_range) => Ports::Kernel,
            Some(range) => {
                // Connections to other destinations, and those in TIME_WAIT, keep no port from it. A
                // datagram socket has its port for itself: another would get what is sent to it.
                if protocol == Protocol::TCP {
                    socket.set_reuse_address(true).map_err(other)?;
                }
                if destination.is_ipv6() {
                    // IPv4 has ports of its own.
                    socket.set_only_v6(true).map_err(other)?;
                }
                Ports::Explicit(range)
            }
        };
        Ok((socket, ports))
    }

    /// The ports of `range` that are not reserved, each once, from where the last search began on.
    fn search(&self, range: PortRange) -> impl Iterator<Item = u16> {
        let ports = LocalPorts::new(range, self.reserved.clone());
        let start = self.next_port.fetch_add(1, Ordering::Relaxed) % range.count();
        let middle = range.first + u16::try_from(start).unwrap_or_default();
        (middle..=range.last)
            .chain(range.first..middle)
            .filter(move |port| ports.contains(*port))
    }
}

/// Has the socket's close reset the connection (SO_LINGER with no time, socket(7)) or end it in
/// order. A reset leaves no TIME_WAIT, and whatever is under way is lost.
///
/// # Errors
/// What setsockopt(2) says.
pub fn reset_on_close(socket: &impl AsFd, reset: bool) -> io::Result<()> {
    SockRef::from(socket).set_linger(reset.then_some(Duration::ZERO))
}

/// Of two failures the one to tell: used-up ports before addresses that are not there.
fn worse(failed: Option<OutgoingError>, error: OutgoingError) -> OutgoingError {
    match failed {
        Some(failed @ OutgoingError::Exhausted { .. }) => failed,
        _ => error,
    }
}

/// Binds to an address and leaves the port to connect.
fn bind_address(
    socket: &Socket,
    source: Option<SocketAddr>,
    destination: SocketAddr,
) -> Result<(), OutgoingError> {
    let Some(source) = source else {
        return Ok(());
    };
    setsockopt(&socket.as_fd(), IpBindAddressNoPort, &true).map_err(|errno| {
        OutgoingError::Connect {
            destination,
            source: errno.into(),
        }
    })?;
    let bound = socket.bind(&source.into());
    bound.map_err(|error| bind_failed(error, source, None, destination))
}

/// Binds to the next of `ports` that can be bound to.
fn bind_next(
    socket: &Socket,
    source: Option<SocketAddr>,
    ports: &mut impl Iterator<Item = u16>,
    range: PortRange,
    destination: SocketAddr,
) -> Result<(), OutgoingError> {
    let mut source = source.unwrap_or_else(|| unspecified(destination));
    for port in ports {
        source.set_port(port);
        match socket.bind(&source.into()) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(bind_failed(error, source, Some(range), destination)),
        }
    }
    Err(OutgoingError::Exhausted { destination })
}

fn bind_failed(
    error: io::Error,
    source: SocketAddr,
    range: Option<PortRange>,
    destination: SocketAddr,
) -> OutgoingError {
    match (error.kind(), range) {
        (io::ErrorKind::AddrNotAvailable, _) => OutgoingError::NotHere {
            address: source.ip(),
        },
        (io::ErrorKind::PermissionDenied, Some(ports)) => OutgoingError::NotPermitted { ports },
        _ => OutgoingError::Connect {
            destination,
            source: error,
        },
    }
}

/// Begins to connect.
fn start(socket: &Socket, destination: SocketAddr) -> Result<(), OutgoingError> {
    match socket.connect(&destination.into()) {
        Ok(()) => Ok(()),
        Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::AddrNotAvailable => {
            Err(OutgoingError::Connect {
                destination,
                source: error,
            })
        }
        // The kernel says the same when there is no address to send from.
        Err(_) if has_source(destination) => Err(OutgoingError::Exhausted { destination }),
        Err(_) => Err(OutgoingError::NoAddress { destination }),
    }
}

/// Whether this host has an address for the way to `destination`: a datagram socket that connects
/// looks the way up and sends nothing (udp(7)).
fn has_source(destination: SocketAddr) -> bool {
    let connect = || {
        let socket = Socket::new(Domain::for_address(destination), Type::DGRAM, None)?;
        socket.connect(&destination.into())
    };
    let error = connect().err().map(|error: io::Error| error.kind());
    error != Some(io::ErrorKind::AddrNotAvailable)
}

fn unspecified(destination: SocketAddr) -> SocketAddr {
    match destination {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
