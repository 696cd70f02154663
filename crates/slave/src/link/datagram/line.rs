//! A datagram socket that is connected to one address of a master: the kernel drops what others
//! send to it, and tells when nobody listens there.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rollcall_os::outgoing::Connector;
use rollcall_os::udp;
use rollcall_protocol::limits::{DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_SAFE};
use rustix::io::Errno;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::link::dial::{ConnectError, resolve};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Line {
    socket: UdpSocket,
    peer: SocketAddr,
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is on its way, or lost like any other.
    Away,
    /// It does not fit the path (EMSGSIZE).
    TooLarge,
}

impl Line {
    /// A line to "host:port": to the address of it whose turn it is.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub(super) async fn open(
        master: &str,
        connector: &Connector,
        turn: usize,
        patience: Duration,
    ) -> Result<Self, ConnectError> {
        let addresses = timeout(patience, resolve(master))
            .await
            .map_err(|_| ConnectError::Resolve(io::ErrorKind::TimedOut.into()))??;
        let at = turn.checked_rem(addresses.len());
        let peer = at.and_then(|at| addresses.get(at)).copied();
        Self::to(peer.ok_or(ConnectError::NoAddress)?, connector)
    }

    fn to(address: SocketAddr, connector: &Connector) -> Result<Self, ConnectError> {
        let socket = connector.connect_datagram(address)?;
        let open = || {
            udp::forbid_fragments(&socket, address)?;
            UdpSocket::from_std(socket.into())
        };
        match open() {
            Ok(socket) => Ok(Self {
                socket,
                peer: address,
            }),
            Err(source) => Err(ConnectError::Refused { address, source }),
        }
    }

    /// The address at the other end.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The largest datagram that fits the path, as far as the kernel knows.
    pub(super) fn room(&self) -> usize {
        udp::datagram_bytes_max(&self.socket, self.peer)
            .map_or(DATAGRAM_BYTES_SAFE, |room| room.min(DATAGRAM_BYTES_MAX))
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// The master can't be reached.
    pub(super) async fn send(&self, bytes: &[u8]) -> io::Result<Sent> {
        match self.socket.send(bytes).await {
            Err(error) => fate_of(error),
            Ok(_) => Ok(Sent::Away),
        }
    }

    /// Waits for a datagram from the master. Cancel safe.
    ///
    /// # Errors
    /// Nobody listens there (ECONNREFUSED), or the path is narrower than what was sent (EMSGSIZE).
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(buffer).await
    }
}

/// What an error means for what was sent.
///
/// # Errors
/// The same, if it means that the master can't be reached.
pub(super) fn fate_of(error: io::Error) -> io::Result<Sent> {
    match Errno::from_io_error(&error) {
        Some(Errno::MSGSIZE) => Ok(Sent::TooLarge),
        // A queue is full: it is lost, and sent again.
        Some(Errno::NOBUFS) => Ok(Sent::Away),
        _ => Err(error),
    }
}
