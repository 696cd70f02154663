//! Ports on loopback: the usual ones where they are free, others where they are not.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind as bind_to, getsockname, socket_with, sockopt,
};

use crate::client::url::MasterUrl;

/// Where masters listen for slaves.
const SLAVES: u16 = 7412;
/// Where masters answer over HTTP.
const HTTP: u16 = 7413;

/// The addresses of one master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    /// For slaves.
    pub(crate) slaves: SocketAddr,
    /// For HTTP.
    pub(crate) http: SocketAddr,
    are_free_asked_for: bool,
}

/// No port can be had.
#[derive(Debug, thiserror::Error)]
#[error("can't get a port on {address}")]
pub(crate) struct PortsError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

impl Ports {
    /// Two ports that are free at this moment.
    pub(crate) fn pick(are_free_asked_for: bool) -> Result<Self, PortsError> {
        let usual = |port| if are_free_asked_for { 0 } else { port };
        // Both are held until both are known, so that they differ.
        let slaves = bind(usual(SLAVES))?;
        let http = bind(usual(HTTP))?;
        Ok(Self {
            slaves: slaves.1,
            http: http.1,
            are_free_asked_for,
        })
    }

    /// What is not as usual.
    pub(crate) fn notes(&self) -> Vec<String> {
        if self.are_free_asked_for {
            return Vec::new();
        }
        [(SLAVES, self.slaves), (HTTP, self.http)]
            .into_iter()
            .filter(|(usual, picked)| *usual != picked.port())
            .map(|(usual, picked)| {
                format!(
                    "port {usual} is taken by another program; using {}",
                    picked.port()
                )
            })
            .collect()
    }

    /// Whether the other commands find the master by themselves.
    pub(crate) fn is_default_http(&self) -> bool {
        self.http.port() == HTTP
    }

    /// Where the master answers.
    pub(crate) fn url(&self) -> MasterUrl {
        MasterUrl::from(self.http)
    }
}

/// A port that is bound and not listened on.
///
/// A daemon, which sets SO_REUSEADDR, can listen on it. The kernel gives it to nobody who asks for
/// any port, and takes it for no outgoing connection, also not while the daemon is down.
#[derive(Debug)]
pub(crate) struct Reservation {
    address: SocketAddr,
    _socket: OwnedFd,
}

impl Reservation {
    /// Takes a port on 127.0.0.1.
    ///
    /// # Errors
    /// [`PortsError`] if there is none.
    pub(crate) fn new() -> Result<Self, PortsError> {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        reserve(wanted).map_err(|source| PortsError {
            address: wanted,
            source,
        })
    }

    /// The address with the port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

fn reserve(wanted: SocketAddr) -> io::Result<Reservation> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind_to(&socket, &wanted)?;
    let address = getsockname(&socket)?;
    Ok(Reservation {
        address: address.try_into()?,
        _socket: socket,
    })
}

fn bind(port: u16) -> Result<(TcpListener, SocketAddr), PortsError> {
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let bound = TcpListener::bind(at(port)).or_else(|error| match error.kind() {
        // A port that is not ours to bind is as good as taken.
        ErrorKind::AddrInUse | ErrorKind::PermissionDenied => TcpListener::bind(at(0)),
        _ => Err(error),
    });
    bound
        .and_then(|listener| {
            let address = listener.local_addr()?;
            Ok((listener, address))
        })
        .map_err(|source| PortsError {
            address: at(port),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_replaced() {
        let (_held, taken) = bind(0).unwrap();
        let (_other, other) = bind(taken.port()).unwrap();
        assert_ne!(other.port(), taken.port());
        let (slaves, http) = (other, SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP)));
        let mut ports = Ports {
            slaves,
            http,
            are_free_asked_for: false,
        };
        assert_eq!(
            ports.notes(),
            [format!(
                "port 7412 is taken by another program; using {}",
                other.port()
            )]
        );
        ports.are_free_asked_for = true;
        assert!(ports.notes().is_empty());
    }

    #[test]
    fn a_reserved_port_is_there_for_who_knows_it() {
        let reservation = Reservation::new().unwrap();
        // The standard library sets SO_REUSEADDR, as the daemons do.
        let listener = TcpListener::bind(reservation.address()).unwrap();
        assert_eq!(listener.local_addr().unwrap(), reservation.address());
        assert_ne!(Reservation::new().unwrap().address(), reservation.address());
    }

    #[test]
    fn free_ports_differ() {
        let ports = Ports::pick(true).unwrap();
        assert_ne!(ports.slaves, ports.http);
        assert_eq!(ports.url().to_string(), format!("http://{}", ports.http));
    }
}
