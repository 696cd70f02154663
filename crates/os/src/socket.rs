//! TCP sockets as Rollcall wants them: how they listen, how they notice a dead peer, and how bytes
//! are looked at before they are taken.

use std::io;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use rollcall_protocol::limits::FRAME_BYTES_MAX;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::diag::bind::{self, Explanation, Transport};

/// Connections that the kernel completes and queues until they are accepted. `net.core.somaxconn`
/// caps it (listen(2)); a short queue makes clients wait 1, 2, 4 s for the retries of their SYN.
pub const BACKLOG: u16 = 4096;

/// How a connection notices that its peer is gone.
///
/// Both are needed: the user timeout bounds unacked data only, keepalive sees a dead peer on an idle
/// connection (tcp(7), RFC 5482).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Idle time before the first keepalive probe (TCP_KEEPIDLE), whole seconds.
    pub keepalive_idle: Duration,
    /// Time between two probes (TCP_KEEPINTVL), whole seconds. The first probe that is still unanswered
    /// when the peer has been silent for the user timeout ends the connection: with TCP_USER_TIMEOUT
    /// set, Linux does not go by their number (`tcp_keepalive_timer`, net/ipv4/tcp_timer.c).
    pub keepalive_interval: Duration,
    /// How long sent data may stay unacked by the peer's kernel (TCP_USER_TIMEOUT).
    pub user_timeout: Duration,
}

/// Why an address can't be listened on.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address}{}: {source}; {}", self.suffix(), self.advice())]
pub struct ListenError {
    transport: Transport,
    /// The address and port.
    pub address: SocketAddr,
    /// What the kernel said.
    pub source: io::Error,
    explanation: Option<Box<Explanation>>,
}

impl ListenError {
    pub(crate) fn new(transport: Transport, address: SocketAddr, source: io::Error) -> Self {
        Self {
            transport,
            address,
            source,
            explanation: None,
        }
    }

    /// Whether the port is taken, which it may be for a moment while a killed process still lets go
    /// of its sockets.
    pub fn is_in_use(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }

    /// Looks up who or what is in the way ([`bind::explain`]), and has the message tell it. To be
    /// called once, when nothing more will be tried: it lists sockets and looks through processes.
    #[must_use]
    pub fn explained(self) -> Self {
        let explanation = bind::explain(self.transport, self.address, &self.source);
        Self {
            explanation: Some(Box::new(explanation)),
            ..self
        }
    }

    /// The same, and writes it to the log with what was found as fields.
    #[must_use]
    pub fn reported(self) -> Self {
        let error = self.explained();
        if let Some(explanation) = &error.explanation {
            explanation.log(&error.source);
        }
        error
    }

    /// What [`Self::explained`] has found.
    pub fn explanation(&self) -> Option<&Explanation> {
        self.explanation.as_deref()
    }

    fn suffix(&self) -> &'static str {
        match self.transport {
            Transport::Tcp => "",
            Transport::Udp => " (UDP)",
        }
    }

    fn advice(&self) -> String {
        match (&self.explanation, self.source.kind()) {
            (Some(explanation), _) => explanation.to_string(),
            (None, io::ErrorKind::AddrInUse) => "the port is taken".to_owned(),
            (None, io::ErrorKind::AddrNotAvailable) => "this host has no such address".to_owned(),
            (None, io::ErrorKind::PermissionDenied) => {
                "the port may need CAP_NET_BIND_SERVICE".to_owned()
            }
            (None, _) => "check the address".to_owned(),
        }
    }
}

/// How an address is listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenOptions {
    /// Connections that wait to be accepted, see [`BACKLOG`].
    pub backlog: u16,
    /// An IPv6 address takes IPv6 only (IPV6_V6ONLY, ipv6(7)). Without it `[::]` takes IPv4 too, and
    /// such peers have IPv4-mapped addresses. Always set here, either way, so that it never depends
    /// on the sysctl net.ipv6.bindv6only whether the same port is free on IPv4.
    pub ipv6_only: bool,
    /// The address need not be one of this host's yet (IP_FREEBIND, ip(7); IPV6_FREEBIND). It takes no
    /// privilege.
    pub freebind: bool,
}

impl ListenOptions {
    /// IPv6 apart from IPv4, and only addresses that the host has.
    pub const fn new(backlog: u16) -> Self {
        Self {
            backlog,
            ipv6_only: true,
            freebind: false,
        }
    }

    /// Sets what has to be set before a socket is bound to `address`.
    pub(crate) fn apply(&self, socket: &Socket, address: SocketAddr) -> io::Result<()> {
        match address {
            SocketAddr::V4(_) if self.freebind => socket.set_freebind_v4(true)?,
            SocketAddr::V4(_) => {}
            SocketAddr::V6(_) => {
                socket.set_only_v6(self.ipv6_only)?;
                if self.freebind {
                    socket.set_freebind_v6(true)?;
                }
            }
        }
        Ok(())
    }
}

/// Listens on `address` with [`ListenOptions::new`].
///
/// # Errors
/// [`ListenError`] with the remedy.
pub fn listen(address: SocketAddr, backlog: u16) -> Result<TcpListener, ListenError> {
    listen_with(address, &ListenOptions::new(backlog))
}

/// Listens on `address`, non-blocking.
///
/// SO_REUSEADDR lets it bind while connections of an earlier listener, which must have set it too,
/// are in TIME_WAIT or still held elsewhere (socket(7)). SO_REUSEPORT is never set: with it, closing
/// one of two listeners resets the connections that are queued on it.
///
/// # Errors
/// [`ListenError`] with the remedy.
pub fn listen_with(
    address: SocketAddr,
    options: &ListenOptions,
) -> Result<TcpListener, ListenError> {
    let open = || -> io::Result<Socket> {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        options.apply(&socket, address)?;
        socket.bind(&address.into())?;
        socket.listen(i32::from(options.backlog))?;
        Ok(socket)
    };
    match open() {
        Ok(socket) => Ok(socket.into()),
        Err(source) => Err(ListenError::new(Transport::Tcp, address, source)),
    }
}

/// Prepares a socket: acks and reports leave at once (TCP_NODELAY), a dead peer is noticed.
///
/// On a listener it holds for every connection that is accepted from then on: on Linux those inherit
/// the listener's options.
///
/// # Errors
/// What setsockopt(2) says; the connection is of no use then.
pub fn tune(socket: &impl AsFd, liveness: &Liveness) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(liveness.keepalive_idle)
            .with_interval(liveness.keepalive_interval)
            .with_retries(3),
    )?;
    socket.set_tcp_user_timeout(Some(liveness.user_timeout))
}

/// Looks at what has been received and leaves it in the kernel's buffer (MSG_PEEK, recv(2)).
/// Returns the number of bytes; 0 at the end of the stream.
///
/// # Errors
/// `WouldBlock` if there is nothing; otherwise the connection is broken.
pub fn peek(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    receive(socket, buffer, RecvFlags::PEEK)
}

/// Takes `count` bytes that were peeked out of the kernel's buffer without copying them (MSG_TRUNC
/// on a TCP socket, tcp(7)). `scratch` bounds one call and is not written to.
///
/// # Errors
/// `UnexpectedEof` if the kernel has fewer bytes, which it can't after a peek; otherwise the
/// connection is broken.
pub fn discard(socket: impl AsFd, count: usize, scratch: &mut [u8]) -> io::Result<()> {
    let mut left = count;
    while left > 0 {
        let part = left.min(scratch.len());
        match receive(&socket, &mut scratch[..part], RecvFlags::TRUNC)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            taken => left -= taken,
        }
    }
    Ok(())
}

fn receive(socket: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    loop {
        match recv(&socket, &mut *buffer, flags) {
            Err(Errno::INTR) => {}
            // With MSG_TRUNC the second number may exceed the buffer on datagram sockets only.
            received => return received.map(|(_, bytes)| bytes).map_err(io::Error::from),
        }
    }
}

/// Writes what the kernel has room for, without waiting, and returns how much that was.
///
/// # Errors
/// `WouldBlock` if there is no room; otherwise the connection is broken.
pub fn write_now(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match send(&socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            sent => return sent.map_err(io::Error::from),
        }
    }
}

/// Makes room for a whole frame in the kernel's receive buffer.
///
/// Bytes that are only peeked stay there, and the kernel grows the buffer by itself only as bytes
/// are taken out: a frame larger than the advertised window would never become whole. To be called
/// when a large frame has arrived in part. The kernel doubles the value for its own bookkeeping
/// (SO_RCVBUF, socket(7)).
///
/// # Errors
/// What setsockopt(2) says.
pub fn make_room_for_frame(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let wanted = 3 * FRAME_BYTES_MAX;
    if socket.recv_buffer_size()? < wanted {
        socket.set_recv_buffer_size(wanted)?;
    }
    Ok(())
}

/// Reads and drops what is there, without blocking. Returns true at the end of the stream.
///
/// # Errors
/// `WouldBlock` if nothing is there now; otherwise the connection is broken.
pub fn drain(socket: &impl AsFd) -> io::Result<bool> {
    let mut scratch = [MaybeUninit::uninit(); 4096];
    Ok(SockRef::from(socket).recv(&mut scratch)? == 0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    const LIVENESS: Liveness = Liveness {
        keepalive_idle: Duration::from_secs(33),
        keepalive_interval: Duration::from_secs(7),
        user_timeout: Duration::from_millis(4321),
    };

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn accept(listener: &TcpListener) -> TcpStream {
        listener.set_nonblocking(false).unwrap();
        listener.accept().unwrap().0
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = listen(loopback(), 16).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = accept(&listener);
        (client, server)
    }

    #[test]
    fn accepted_connections_inherit_what_the_listener_was_told() {
        let listener = listen(loopback(), 16).unwrap();
        tune(&listener, &LIVENESS).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = accept(&listener);
        let server = SockRef::from(&server);
        assert!(server.tcp_nodelay().unwrap());
        assert!(server.keepalive().unwrap());
        assert_eq!(
            server.tcp_keepalive_time().unwrap(),
            LIVENESS.keepalive_idle
        );
        assert_eq!(
            server.tcp_keepalive_interval().unwrap(),
            LIVENESS.keepalive_interval
        );
        assert_eq!(
            server.tcp_user_timeout().unwrap(),
            Some(LIVENESS.user_timeout)
        );
    }

    #[test]
    fn peeked_bytes_stay_until_they_are_discarded() {
        let (mut client, mut server) = pair();
        client.write_all(b"0123456789").unwrap();
        let mut buffer = [0; 64];
        let mut peeked = 0;
        while peeked < 10 {
            peeked = peek(&server, &mut buffer).unwrap();
        }
        let again = peek(&server, &mut buffer).unwrap();
        assert_eq!(&buffer[..again], b"0123456789");
        discard(&server, 4, &mut [0; 3]).unwrap();
        let mut rest = [0; 6];
        server.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"456789");
    }

    #[test]
    fn a_frame_of_the_largest_size_fits_without_being_taken() {
        let listener = listen(loopback(), 16).unwrap();
        // As on a host with a small net.ipv4.tcp_rmem.
        SockRef::from(&listener).set_recv_buffer_size(8192).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = accept(&listener);
        let writer = std::thread::spawn(move || {
            // Fails if the other side gives up.
            let _ = client.write_all(&vec![7; FRAME_BYTES_MAX]);
            client
        });
        make_room_for_frame(&server).unwrap();
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let deadline = crate::clock::boot() + Duration::from_secs(10);
        while peek(&server, &mut buffer).unwrap() < FRAME_BYTES_MAX {
            assert!(
                crate::clock::boot() < deadline,
                "the frame never became whole"
            );
            std::thread::yield_now();
        }
        writer.join().unwrap();
    }

    #[test]
    fn a_listener_binds_over_the_time_wait_of_the_last_one() {
        let listener = listen(loopback(), 16).unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        // The server closes first: TIME_WAIT is on its side.
        drop(accept(&listener));
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        drop(client);
        drop(listener);
        listen(address, 16).unwrap();
    }

    #[test]
    fn a_port_that_is_taken_is_told_with_the_remedy() {
        let listener = listen(loopback(), 16).unwrap();
        let address = listener.local_addr().unwrap();
        let error = listen(address, 16).unwrap_err();
        assert!(error.is_in_use() && error.explanation().is_none());
        let text = error.explained().to_string();
        assert!(
            text.contains(&format!("pid {}", std::process::id())) && text.contains("twice"),
            "{text}"
        );
    }

    #[test]
    fn an_ipv6_listener_leaves_the_same_port_free_on_ipv4() {
        let Ok(six) = listen(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0)), 16) else {
            eprintln!("SKIPPED: this host has no IPv6");
            return;
        };
        let port = six.local_addr().unwrap().port();
        match listen(SocketAddr::from(([127, 0, 0, 1], port)), 16) {
            Ok(_) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
