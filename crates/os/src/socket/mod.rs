//! TCP sockets as Rollcall wants them: how they listen, how they notice a dead peer, and how bytes
//! are looked at before they are taken.

mod listen;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::Duration;

use rollcall_protocol::limits::FRAME_BYTES_MAX;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{SockRef, TcpKeepalive};

pub use self::listen::{BACKLOG, ListenError, ListenOptions, listen, listen_with};

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
    use std::net::{SocketAddr, TcpListener, TcpStream};

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
}
