//! Listeners, and what is said where there can't be one.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use crate::diag::bind::{self, Explanation, Transport};

/// Connections that the kernel completes and queues until they are accepted. `net.core.somaxconn`
/// caps it (listen(2)); a short queue makes clients wait 1, 2, 4 s for the retries of their SYN.
pub const BACKLOG: u16 = 4096;

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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;

    use super::*;

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn a_listener_binds_over_the_time_wait_of_the_last_one() {
        let listener = listen(loopback(), 16).unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        // The server closes first: TIME_WAIT is on its side.
        listener.set_nonblocking(false).unwrap();
        drop(listener.accept().unwrap());
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
        let mut failed = None;
        // Somebody else may have just that port on IPv4, but not one after the other.
        for _ in 0..5 {
            let Ok(six) = listen(SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], 0)), 16) else {
                eprintln!("SKIPPED: this host has no IPv6");
                return;
            };
            let port = six.local_addr().unwrap().port();
            match listen(SocketAddr::from(([127, 0, 0, 1], port)), 16) {
                Ok(_) => return,
                Err(error) => failed = Some(error),
            }
        }
        panic!("{failed:?}");
    }
}
