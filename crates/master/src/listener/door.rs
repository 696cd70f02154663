//! The accept loop of one listener. It accepts and does nothing else: whatever a peer says is its own
//! task's business.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::Moment;
use rustix::io::Errno;
use socket2::{SockRef, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::Accepting;
use super::farewell::{Farewells, say_and_close};
use super::reserve::Reserve;
use crate::admission::{Denied, ListenerFigures};
use crate::connection::Connection;

/// After an accept that failed for want of descriptors or memory: the connection stays queued.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For how long peers are left in the queue when there is no descriptor: some are given back all the
/// time. After that they are told to come back, by means of the reserve.
const STARVED_MAX: Duration = Duration::from_millis(500);
/// A failing accept is told at most this often.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// See the module's documentation.
pub(super) struct Door {
    address: SocketAddr,
    accepting: Accepting,
    farewells: Rc<Farewells>,
    privileged: Rc<Cell<bool>>,
    figures: Arc<ListenerFigures>,
    reserve: Reserve,
    /// Since when there has been no descriptor.
    starved_since: Option<Moment>,
    told_at: Option<Moment>,
    suppressed: u64,
}

impl Door {
    pub(super) fn new(
        address: SocketAddr,
        accepting: Accepting,
        farewells: Rc<Farewells>,
        privileged: Rc<Cell<bool>>,
        figures: Arc<ListenerFigures>,
    ) -> Self {
        Self {
            address,
            accepting,
            farewells,
            privileged,
            figures,
            reserve: Reserve::new(),
            starved_since: None,
            told_at: None,
            suppressed: 0,
        }
    }

    /// Accepts until told to stop. Returns its address as it is configured.
    pub(super) async fn run(
        mut self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> SocketAddr {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    self.starved_since = None;
                    self.serve(stream, peer);
                }
                Err(error) => self.fail(&listener, &error).await,
            }
        }
        if !self.accepting.reactor.parking().is_handing_over() {
            self.serve_queue(listener);
        }
        self.address
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let Accepting {
            reactor,
            tasks,
            stop,
            admission,
            ..
        } = &self.accepting;
        let peer = canonical(peer);
        self.count_accepted();
        match admission.admit(peer, self.privileged.get()) {
            Ok(()) => {
                let connection = Connection::new(Rc::clone(reactor), peer);
                let connection = connection.let_in_by(Rc::clone(admission));
                tasks.spawn_local(connection.serve(stream, stop.clone()));
            }
            Err(denied) => {
                self.count_refused(peer, &denied);
                self.farewells.say(stream, &denied.refusal, tasks);
            }
        }
    }

    /// Takes in who has connected and was not accepted yet: closing the listener would reset them.
    fn serve_queue(&mut self, listener: TcpListener) {
        let Ok(listener) = listener.into_std() else {
            return;
        };
        loop {
            match accept(&SockRef::from(&listener)) {
                Ok((socket, peer)) => {
                    if let Ok(stream) = TcpStream::from_std(socket.into()) {
                        self.serve(stream, peer);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error)
                    if error.kind() == io::ErrorKind::Interrupted || is_peers_fault(&error) => {}
                Err(error) => return self.tell(&error, clock::boot()),
            }
        }
    }

    /// An accept has failed.
    async fn fail(&mut self, listener: &TcpListener, error: &io::Error) {
        self.accepting.reactor.stats().accept_errors.add(1);
        if is_peers_fault(error) {
            return;
        }
        let now = clock::boot();
        self.tell(error, now);
        if is_want_of_descriptors(error) {
            let since = *self.starved_since.get_or_insert(now);
            if now.saturating_since(since) >= STARVED_MAX && self.turn_one_away(listener) {
                return;
            }
        }
        tokio::select! {
            () = self.accepting.shut.cancelled() => {}
            () = tokio::time::sleep(ACCEPT_PAUSE) => {}
        }
    }

    /// Accepts one peer with the reserved descriptor, and tells it to come back. `false` if that could
    /// not be done either.
    fn turn_one_away(&mut self, listener: &TcpListener) -> bool {
        let turned_away = self.reserve.spend(|| {
            let (socket, peer) = accept(&SockRef::from(listener)).ok()?;
            let denied = Denied::no_descriptor();
            say_and_close(socket, &denied.refusal);
            Some((canonical(peer), denied))
        });
        let Some(Some((peer, denied))) = turned_away else {
            return false;
        };
        self.count_accepted();
        self.count_refused(peer, &denied);
        true
    }

    fn count_accepted(&self) {
        self.accepting.reactor.stats().accepted.add(1);
        self.figures.accepted.add(1);
    }

    fn count_refused(&self, peer: SocketAddr, denied: &Denied) {
        self.figures.refused(denied.reason).add(1);
        self.accepting.reactor.log_refused(peer, &denied.refusal);
    }

    fn tell(&mut self, error: &io::Error, now: Moment) {
        let is_due = |told: Moment| now.saturating_since(told) > TOLD_EVERY;
        if !self.told_at.is_none_or(is_due) {
            self.suppressed += 1;
            self.accepting.reactor.stats().suppressed.add(1);
            return;
        }
        self.told_at = Some(now);
        let suppressed = std::mem::take(&mut self.suppressed);
        tracing::error!(
            event = "accept_failed",
            address = %self.address,
            error = %error,
            errno = error.raw_os_error(),
            remedy = remedy(error),
            suppressed,
            "can't accept connections at present; they wait in the queue, and are told to come back if it lasts"
        );
    }
}

/// Accepts what is queued, non-blocking.
fn accept(listener: &Socket) -> io::Result<(Socket, SocketAddr)> {
    let (socket, peer) = listener.accept()?;
    socket.set_nonblocking(true)?;
    let peer = peer.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok((socket, peer))
}

/// An IPv4 peer of a listener for both has an IPv4-mapped address (RFC 4291, 2.5.5.2): it is shown
/// and counted as what it is.
pub(crate) fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V6(mapped) => match mapped.ip().to_ipv4_mapped() {
            Some(address) => SocketAddrV4::new(address, mapped.port()).into(),
            None => peer,
        },
        SocketAddr::V4(_) => peer,
    }
}

/// EMFILE: of this process; ENFILE: of the whole system (accept(2)).
fn is_want_of_descriptors(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE)
    )
}

fn remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => "raise LimitNOFILE, or lower [limits] connections_max",
        Some(Errno::NFILE) => "raise the sysctl fs.file-max, or find who holds so many files",
        Some(Errno::NOBUFS | Errno::NOMEM) => "the kernel has no memory for it: free some",
        _ => "see accept(2) for this error",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_peer_is_shown_as_ipv4() {
        let shown = |text: &str| canonical(text.parse().unwrap()).to_string();
        assert_eq!(shown("[::ffff:192.0.2.1]:7"), "192.0.2.1:7");
        assert_eq!(shown("[fe80::1%3]:7"), "[fe80::1%3]:7");
        assert_eq!(shown("192.0.2.1:7"), "192.0.2.1:7");
    }
}
