//! UDP sockets as Rollcall wants them: room for a fleet that asks at once, and no fragments.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use rustix::fs::fstat;
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

/// The inode of a socket, by which [`overflowed`] knows it.
///
/// # Errors
/// What fstat(2) says.
pub fn inode(socket: &impl AsFd) -> io::Result<u64> {
    Ok(fstat(socket)?.st_ino)
}

/// How many datagrams the kernel has dropped because the receive buffers of the sockets with these
/// inodes were full (the column "drops" of /proc/net/udp, proc_net(5)).
///
/// # Errors
/// If the kernel's table can't be read.
pub fn overflowed(inodes: &[u64]) -> io::Result<u64> {
    let mut all = 0;
    for table in ["/proc/net/udp", "/proc/net/udp6"] {
        match fs::read_to_string(table) {
            Ok(text) => {
                let drops = text.lines().filter_map(|line| drops(line, inodes));
                all += drops.sum::<u64>();
            }
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// What a line of the table says of one of these sockets.
fn drops(line: &str, inodes: &[u64]) -> Option<u64> {
    let mut words = line.split_whitespace();
    let inode: u64 = words.nth(9)?.parse().ok()?;
    let drops = words.nth(2)?.parse().ok()?;
    inodes.contains(&inode).then_some(drops)
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

    #[test]
    fn what_overflows_is_counted_for_its_socket_only() {
        let [full, other] = [(), ()].map(|()| bind(loopback(), &OPTIONS).unwrap());
        SockRef::from(&full).set_recv_buffer_size(1).unwrap();
        let sender = UdpSocket::bind(loopback()).unwrap();
        sender.connect(full.local_addr().unwrap()).unwrap();
        let count = |socket| overflowed(&[inode(socket).unwrap()]).unwrap();
        assert_eq!(count(&full), 0);
        for _ in 0..100 {
            sender.send(&[0; 1000]).unwrap();
        }
        let mut received = 0;
        while full.recv(&mut [0; 1000]).is_ok() {
            received += 1;
        }
        assert!(received < 100);
        assert_eq!(count(&full), 100 - received);
        assert_eq!(count(&other), 0);
    }
}
