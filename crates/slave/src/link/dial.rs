//! From a master's name to a connection: its addresses are looked up each time anew and tried in
//! turn, a moment apart (Happy Eyeballs, RFC 8305). The first that connects wins.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rollcall_os::outgoing::{Connector, OutgoingError, ScopedAddress, reset_on_close};
use rollcall_os::socket::{self, Liveness};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::LinkConfig;

/// How long an address has before the next one is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// The name can't be resolved.
    #[error("can't resolve the master's name: {0}")]
    Resolve(io::Error),
    /// The name stands for no address.
    #[error("the master's name has no address")]
    NoAddress,
    /// No answer.
    #[error("no connection to {address} within {after:?}")]
    Timeout {
        /// Where to.
        address: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// EADDRNOTAVAIL (99): all ports for this destination are taken.
    #[error("no free local port for a connection to {address} (errno 99)")]
    NoPort {
        /// Where to.
        address: SocketAddr,
    },
    /// This host can't send from where it is configured to.
    #[error(transparent)]
    Source(OutgoingError),
    /// Anything else, usually a refusal.
    #[error("can't connect to {address}: {source}")]
    Refused {
        /// Where to.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl From<OutgoingError> for ConnectError {
    fn from(error: OutgoingError) -> Self {
        match error {
            OutgoingError::Connect {
                destination,
                source,
            } => Self::Refused {
                address: destination,
                source,
            },
            error => Self::Source(error),
        }
    }
}

/// How to connect.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    /// Where connections come from.
    pub(super) connector: Arc<Connector>,
    /// How long one address may take, and the lookup of the name.
    pub(super) connect_timeout: Duration,
    /// How a dead peer is noticed.
    pub(super) liveness: Liveness,
}

impl Dialer {
    /// A dialer as the link is configured.
    pub(super) fn new(config: &LinkConfig) -> Self {
        Self {
            connector: Arc::new(Connector::new(config.outgoing.clone())),
            connect_timeout: config.connect_timeout,
            liveness: config.liveness,
        }
    }

    /// Connects to `host:port`, `[IPv6]:port` or `[IPv6%interface]:port`.
    ///
    /// # Errors
    /// That of the last address, or that there is no port.
    pub(super) async fn dial(&self, master: &str) -> Result<TcpStream, ConnectError> {
        let addresses = timeout(self.connect_timeout, resolve(master))
            .await
            .map_err(|_| ConnectError::Resolve(io::ErrorKind::TimedOut.into()))??;
        self.race(interleaved(addresses)).await
    }

    async fn race(&self, mut waiting: VecDeque<SocketAddr>) -> Result<TcpStream, ConnectError> {
        let mut attempts = JoinSet::new();
        let mut failed = None;
        loop {
            if let Some(address) = waiting.pop_front() {
                let dialer = self.clone();
                attempts.spawn(async move { dialer.connect(address).await });
            }
            tokio::select! {
                ended = attempts.join_next() => match ended {
                    // The others are dropped with their sockets, which reset what may have become
                    // of them: no TIME_WAIT is left here.
                    Some(Ok(Ok((stream, address)))) => {
                        return match reset_on_close(&stream, false) {
                            Ok(()) => Ok(stream),
                            Err(source) => Err(ConnectError::Refused { address, source }),
                        };
                    }
                    Some(Ok(Err(error))) => failed = Some(worse(failed, error)),
                    Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                    None => return Err(failed.unwrap_or(ConnectError::NoAddress)),
                },
                () = sleep(ATTEMPT_DELAY), if !waiting.is_empty() => {}
            }
        }
    }

    /// Connects to one address. The socket is one that resets when it is closed.
    async fn connect(&self, address: SocketAddr) -> Result<(TcpStream, SocketAddr), ConnectError> {
        let refused = |source| ConnectError::Refused { address, source };
        let socket = self
            .connector
            .connect(address)
            .map_err(|error| match error {
                OutgoingError::Exhausted { destination } => ConnectError::NoPort {
                    address: destination,
                },
                error => error.into(),
            })?;
        reset_on_close(&socket, true).map_err(refused)?;
        let stream = TcpStream::from_std(socket.into()).map_err(refused)?;
        let after = self.connect_timeout;
        timeout(after, stream.writable())
            .await
            .map_err(|_| ConnectError::Timeout { address, after })?
            .map_err(refused)?;
        match stream.take_error() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => return Err(refused(error)),
        }
        // Nobody listens there, and the kernel has picked the very port as this end's: TCP lets a
        // socket connect to itself then (RFC 9293, simultaneous open).
        if stream.local_addr().ok() == Some(address) {
            return Err(refused(io::ErrorKind::ConnectionRefused.into()));
        }
        socket::tune(&stream, &self.liveness).map_err(refused)?;
        Ok((stream, address))
    }
}

/// The addresses of "host:port".
pub(super) async fn resolve(master: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    if let Some((address, port)) = scoped(master) {
        let address = address.with_port(port);
        let address = address.map_err(|error| ConnectError::Source(error.into()))?;
        return Ok(vec![address]);
    }
    let found = lookup_host(master).await.map_err(ConnectError::Resolve)?;
    Ok(found.collect())
}

/// The parts of "[IPv6%interface]:port".
pub(crate) fn scoped(master: &str) -> Option<(ScopedAddress, u16)> {
    let (address, port) = master.strip_prefix('[')?.rsplit_once("]:")?;
    let address: ScopedAddress = address.parse().ok()?;
    address.scope.as_ref()?;
    Some((address, port.parse().ok()?))
}

/// The addresses in turn by family, beginning with that of the first: the resolver has put the best
/// first (RFC 8305, section 4; RFC 6724).
fn interleaved(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let first_is_ipv6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_ipv6);
    let mut mixed = VecDeque::new();
    while !first.is_empty() || !second.is_empty() {
        mixed.extend(first.pop_front());
        mixed.extend(second.pop_front());
    }
    mixed
}

/// Of two failures the one to tell: that there is no port, else the later one.
fn worse(failed: Option<ConnectError>, error: ConnectError) -> ConnectError {
    match failed {
        Some(failed @ ConnectError::NoPort { .. }) => failed,
        _ => error,
    }
}

#[cfg(test)]
mod tests;
