//! What tests of this module share.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Socket, Type};

use crate::clock;

/// Looks again until `look` has found something: the kernel handles the packets of a loopback
/// connection a moment later when it is busy.
#[track_caller]
pub(super) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = clock::boot() + Duration::from_secs(10);
    loop {
        // Asked before looking: the last look is after the deadline.
        let is_over = clock::boot() >= deadline;
        match look() {
            Some(found) => return found,
            None if is_over => panic!("waited for {what}"),
            None => std::thread::yield_now(),
        }
    }
}

/// Whether this kernel lists sockets that are only bound. It is said if it does not.
pub(super) fn lists_bound_sockets() -> bool {
    let release = super::sysctl::read("kernel.osrelease").unwrap();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    if version < (6, 8) {
        eprintln!("SKIPPED: before Linux 6.8 a bound socket can't be seen");
    }
    version >= (6, 8)
}

/// An address of loopback that no other test uses: what a test leaves in TIME_WAIT would be seen by
/// one that happens to get the same port within a minute.
pub(super) fn own_address() -> Ipv4Addr {
    let [a, b, c, _] = getrandom::u32().unwrap().to_ne_bytes();
    Ipv4Addr::new(127, a, b, c.clamp(2, 254))
}

/// A listener on [`own_address`], and where it is.
pub(super) fn own_listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((own_address(), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A connection from `source`, with a port that the kernel takes for it as for any other.
pub(super) fn connect(source: Ipv4Addr, destination: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    setsockopt(&socket, IpBindAddressNoPort, &true).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&destination.into()).unwrap();
    socket.into()
}
