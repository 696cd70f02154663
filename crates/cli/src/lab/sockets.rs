//! Plain sockets, both ends in this process: what servers and clients do, without a framework around
//! it, so that an experiment shows the kernel and nothing else.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// The bytes of a report.
const REQUEST: [u8; 200] = [b'r'; 200];
/// The bytes of an answer to it.
const ANSWER: [u8; 8] = [b'a'; 8];
/// Loopback answers at once; an experiment that is wrong must not wait for ever.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Whether SO_REUSEADDR is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// It is.
    On,
    /// It is not: the kernel's default.
    Off,
}

/// Who closes a connection first, and so is left with its TIME_WAIT (RFC 9293, section 3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// Who connected.
    Client,
    /// Who accepted.
    Server,
}

/// Both ends of a connection.
#[derive(Debug)]
pub(super) struct Pair {
    /// The end that connected.
    pub(super) client: TcpStream,
    /// The end that was accepted.
    pub(super) server: TcpStream,
}

impl Pair {
    /// Takes the connection that `client` has made out of the queue of `listener`.
    ///
    /// # Errors
    /// What accept(2) says.
    pub(super) fn accepted(client: TcpStream, listener: &TcpListener) -> io::Result<Self> {
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
        }
        Ok(Self { client, server })
    }

    /// The client sends a report, the server reads it and answers, the client reads that.
    ///
    /// # Errors
    /// If the connection breaks.
    pub(super) fn exchange(&mut self) -> io::Result<()> {
        self.client.write_all(&REQUEST)?;
        self.server.read_exact(&mut [0; REQUEST.len()])?;
        self.server.write_all(&ANSWER)?;
        self.client.read_exact(&mut [0; ANSWER.len()])
    }

    /// Closes it in order: each end reads until the other's end of the stream.
    ///
    /// # Errors
    /// If the connection breaks.
    pub(super) fn close(self, first: First) -> io::Result<()> {
        let (mut first, mut second) = match first {
            First::Client => (self.client, self.server),
            First::Server => (self.server, self.client),
        };
        first.shutdown(Shutdown::Write)?;
        second.read_to_end(&mut Vec::new())?;
        drop(second);
        first.read_to_end(&mut Vec::new())?;
        Ok(())
    }
}

/// Listens on `address`.
///
/// # Errors
/// Which call failed, and what it said.
pub(super) fn listen(address: SocketAddr, reuse: Reuse) -> Result<TcpListener, CallError> {
    listen_with(address, |socket| {
        socket.set_reuse_address(reuse == Reuse::On)
    })
}

/// Listens on `address`, after `prepare` has set options on the socket.
///
/// # Errors
/// Which call failed, and what it said.
pub(super) fn listen_with(
    address: SocketAddr,
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
) -> Result<TcpListener, CallError> {
    let during = |call| move |source| CallError::new(call, source);
    let socket = stream_for(address).map_err(during("socket"))?;
    prepare(&socket).map_err(during("setsockopt"))?;
    socket.bind(&address.into()).map_err(during("bind"))?;
    socket.listen(BACKLOG).map_err(during("listen"))?;
    Ok(socket.into())
}

/// A client that binds `source` before it connects.
///
/// # Errors
/// Which of the two calls failed, and what it said.
pub(super) fn connect_from(
    source: SocketAddr,
    destination: SocketAddr,
    reuse: Reuse,
) -> Result<TcpStream, CallError> {
    let open = || -> io::Result<Socket> {
        let socket = stream_for(destination)?;
        socket.set_reuse_address(reuse == Reuse::On)?;
        Ok(socket)
    };
    let socket = open().map_err(|source| CallError::new("socket", source))?;
    connect_bound(&socket, source, destination)?;
    Ok(socket.into())
}

/// Binds and connects a socket.
///
/// # Errors
/// Which of the two calls failed, and what it said.
pub(super) fn connect_bound(
    socket: &Socket,
    source: SocketAddr,
    destination: SocketAddr,
) -> Result<(), CallError> {
    socket
        .bind(&source.into())
        .map_err(|source| CallError::new("bind", source))?;
    socket
        .connect(&destination.into())
        .map_err(|source| CallError::new("connect", source))
}

/// A TCP socket for connections to or from `address`.
///
/// # Errors
/// What socket(2) says.
pub(super) fn stream_for(address: SocketAddr) -> io::Result<Socket> {
    Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
}

/// A system call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call}() fails: {}", words(.source))]
pub(super) struct CallError {
    /// Its name.
    pub(super) call: &'static str,
    /// What the kernel said.
    pub(super) source: io::Error,
}

impl CallError {
    /// The call and its error.
    pub(super) fn new(call: &'static str, source: io::Error) -> Self {
        Self { call, source }
    }

    /// Whether it was this call that failed with this error.
    pub(super) fn is(&self, call: &str, errno: Errno) -> bool {
        self.call == call && self.errno() == errno
    }

    /// The kernel's number.
    pub(super) fn errno(&self) -> Errno {
        errno(&self.source)
    }
}

/// Whether it is error 98 from bind.
pub(super) fn is_in_use(error: Option<&CallError>) -> bool {
    error.is_some_and(|error| error.is("bind", Errno::EADDRINUSE))
}

/// Whether it is error 99 from connect.
pub(super) fn is_without_port(error: Option<&CallError>) -> bool {
    error.is_some_and(|error| error.is("connect", Errno::EADDRNOTAVAIL))
}

/// The kernel's number in an error.
pub(super) fn errno(error: &io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// An error by its name, its number and its meaning.
pub(super) fn words(error: &io::Error) -> String {
    let Some(number) = error.raw_os_error() else {
        return error.to_string();
    };
    let errno = Errno::from_raw(number);
    format!("{errno:?} ({number}), \"{}\"", errno.desc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_name_number_and_meaning() {
        let in_use = io::Error::from_raw_os_error(98);
        assert_eq!(
            words(&in_use),
            "EADDRINUSE (98), \"Address already in use\""
        );
        let error = CallError::new("bind", in_use);
        assert!(error.is("bind", Errno::EADDRINUSE) && !error.is("connect", Errno::EADDRINUSE));
        assert_eq!(
            error.to_string(),
            "bind() fails: EADDRINUSE (98), \"Address already in use\""
        );
    }

    #[test]
    fn a_connection_is_closed_in_order_by_either() {
        for first in [First::Client, First::Server] {
            let listener = listen(([127, 0, 0, 1], 0).into(), Reuse::On).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut pair = Pair::accepted(client, &listener).unwrap();
            pair.exchange().unwrap();
            pair.close(first).unwrap();
        }
    }
}
