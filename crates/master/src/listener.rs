//! Listening: sockets that bind at once after a crash, and an accept loop that only accepts.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_os::socket::{self, ListenError};
use rollcall_protocol::session::Refusal;
use rollcall_protocol::wire::ErrorCode;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::Connection;
use crate::reactor::Reactor;

/// How long a bind is tried again while a process that was killed still lets go of its port.
const BIND_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries.
const BIND_PAUSE: Duration = Duration::from_millis(20);
/// After an accept that failed for want of descriptors or memory: the connection stays queued.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A failing accept is told at most this often.
const ACCEPT_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Listens on all of `addresses`.
///
/// # Errors
/// The first address that can't be had, with the remedy.
pub(crate) async fn bind_all(
    addresses: &[SocketAddr],
    backlog: u16,
) -> Result<Vec<StdListener>, ListenError> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for &address in addresses {
        listeners.push(bind(address, backlog).await?);
    }
    Ok(listeners)
}

/// Listens on `address`, with patience while the port is only about to be free.
///
/// # Errors
/// [`ListenError`] with the remedy.
pub(crate) async fn bind(address: SocketAddr, backlog: u16) -> Result<StdListener, ListenError> {
    let give_up = clock::boot() + BIND_PATIENCE;
    let mut told = false;
    loop {
        match socket::listen(address, backlog) {
            Err(error) if error.is_in_use() && clock::boot() < give_up => {
                if !told {
                    told = true;
                    tracing::warn!(event = "bind_retried", address = %address, error = %error, "the port is taken; trying for a moment in case its holder is just ending");
                }
                tokio::time::sleep(BIND_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// What every connection of a listener is given.
#[derive(Clone)]
pub(crate) struct Accepting {
    pub(crate) reactor: Rc<Reactor>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) connections_max: usize,
}

impl Accepting {
    /// Accepts from `listener` until told to stop, and does nothing else: whatever a peer says is
    /// its own task's business.
    ///
    /// # Errors
    /// When the listener can't be registered with the runtime.
    pub(crate) async fn run(self, listener: StdListener) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let mut told = None;
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.serve(stream, peer),
                Err(error) if is_peers_fault(&error) => self.reactor.stats().accept_errors.add(1),
                Err(error) => {
                    self.reactor.stats().accept_errors.add(1);
                    let now = clock::boot();
                    if told.is_none_or(|told| now.saturating_since(told) > ACCEPT_TOLD_EVERY) {
                        told = Some(now);
                        tracing::error!(event = "accept_failed", error = %error, errno = error.raw_os_error(), "can't accept connections; they wait in the queue (raise LimitNOFILE if descriptors have run out)");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        self.reactor.stats().accepted.add(1);
        if self.tasks.len() >= self.connections_max {
            let text = format!(
                "all {} connections are in use; raise [limits] connections_max and LimitNOFILE",
                self.connections_max
            );
            let busy = Refusal::for_now(ErrorCode::Busy, text, ACCEPT_PAUSE);
            self.reactor.log_refused(peer, &busy);
            return;
        }
        let connection = Connection::new(Rc::clone(&self.reactor), peer);
        let stop = self.stop.clone();
        self.tasks.spawn_local(connection.serve(stream, stop));
    }
}

/// accept(2): errors that are pending on the new connection, not on the listener.
fn is_peers_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown, NetworkUnreachable,
        PermissionDenied, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | NetworkDown
            | NetworkUnreachable
            | PermissionDenied
            | TimedOut
    )
}
