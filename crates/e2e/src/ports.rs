//! Ports on loopback that the kernel picks and nobody else gets.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port that is bound and not listened on.
///
/// A daemon under test, which sets SO_REUSEADDR, can listen on it. The kernel gives it to nobody who
/// asks for any port, and takes it for no outgoing connection, also not while the daemon is down:
/// otherwise a connection to the port from the port itself could come about.
#[derive(Debug)]
pub struct Reservation {
    _socket: Socket,
    address: SocketAddr,
}

impl Reservation {
    /// Takes a port on 127.0.0.1.
    ///
    /// # Panics
    /// If there is none.
    #[expect(clippy::new_without_default, reason = "it takes a resource")]
    pub fn new() -> Self {
        let reserve = || -> std::io::Result<Self> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.cloexec(), None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
            let address = socket.local_addr()?.as_socket();
            Ok(Self {
                _socket: socket,
                address: address.ok_or(std::io::ErrorKind::InvalidData)?,
            })
        };
        match reserve() {
            Ok(reservation) => reservation,
            Err(error) => panic!("can't reserve a port on 127.0.0.1: {error}"),
        }
    }

    /// The address with the port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
