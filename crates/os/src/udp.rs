//! UDP sockets as Rollcall wants them: room for a fleet that asks at once, and no fragments.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover,
    set_ipv6_mtu_discover,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::diag::bind::Transport;
use crate::socket::{ListenError, ListenOptions};

/// What the kernel is asked to keep for a socket that was not read yet: some 4,000 reports, as the
/// kernel counts (SO_RCVBUF, socket(7)). The sysctl net.core.rmem_max caps it.
pub const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// Bytes of the headers around a datagram (RFC 791, RFC 8200, RFC 768).
const UDP_HEADER_BYTES: usize = 8;
const IPV4_HEADER_BYTES: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;

/// Binds `address` for datagrams, non-blocking, with a large buffer for what comes.
///
/// Neither SO_REUSEADDR nor SO_REUSEPORT is set: on UDP they let another process have the port too,
/// and UDP knows no TIME_WAIT that would have to be got over (socket(7)).
///
/// # Errors
/// [`ListenError`] with the remedy.
pub fn bind(address: SocketAddr, options: &ListenOptions) -> Result<UdpSocket, ListenError> {
    let open = || -> io::Result<Socket> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
        options.apply(&socket, address)?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match open() {
        Ok(socket) => Ok(socket.into()),
        Err(source) => Err(ListenError::new(Transport::Udp, address, source)),
    }
}

/// The size of the receive buffer that the kernel has granted; it counts twice what was asked for,
/// for its own bookkeeping.
///
/// # Errors
/// What getsockopt(2) says.
pub fn receive_buffer_bytes(socket: &impl AsFd) -> io::Result<usize> {
    SockRef::from(socket).recv_buffer_size()
}

/// Has datagrams that are too large for the path refused (EMSGSIZE) instead of cut into fragments, of
/// which one lost loses all (IP_PMTUDISC_DO, ip(7)).
///
/// # Errors
/// What setsockopt(2) says.
pub fn forbid_fragments(socket: &impl AsFd, peer: SocketAddr) -> io::Result<()> {
    if peer.is_ipv4() {
        set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO)?;
    } else {
        set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DO)?;
    }
    Ok(())
}

/// The largest datagram that fits the path to `peer`, to whom the socket is connected, as far as the
/// kernel knows: the interface's MTU, or what routers have told since (IP_MTU, ip(7)).
///
/// # Errors
/// What getsockopt(2) says.
pub fn datagram_bytes_max(socket: &impl AsFd, peer: SocketAddr) -> io::Result<usize> {
    let (mtu, header) = if peer.is_ipv4() {
        (ip_mtu(socket)?, IPV4_HEADER_BYTES)
    } else {
        (ipv6_mtu(socket)?, IPV6_HEADER_BYTES)
    };
    let mtu = usize::try_from(mtu).unwrap_or(usize::MAX);
    Ok(mtu.saturating_sub(header + UDP_HEADER_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: ListenOptions = ListenOptions::new(1);

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn a_port_is_bound_once() {
        let socket = bind(loopback(), &OPTIONS).unwrap();
        let address = socket.local_addr().unwrap();
        assert!(receive_buffer_bytes(&socket).unwrap() > 0);
        let error = bind(address, &OPTIONS).unwrap_err();
        assert!(error.is_in_use(), "{error}");
        drop(socket);
        bind(address, &OPTIONS).unwrap();
    }

    #[test]
    fn what_does_not_fit_the_path_is_refused() {
        let master = bind(loopback(), &OPTIONS).unwrap();
        let peer = master.local_addr().unwrap();
        let slave = UdpSocket::bind(loopback()).unwrap();
        forbid_fragments(&slave, peer).unwrap();
        slave.connect(peer).unwrap();
        let fits = datagram_bytes_max(&slave, peer).unwrap();
        // Loopback's MTU of 65,536 is more than a datagram can have.
        let largest = fits.min(65_507);
        assert_eq!(slave.send(&vec![0; largest]).unwrap(), largest);
        let error = slave.send(&vec![0; largest + 1]).unwrap_err();
        // EMSGSIZE
        assert_eq!(error.raw_os_error(), Some(90));
    }
}
