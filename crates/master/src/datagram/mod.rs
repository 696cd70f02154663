//! Datagram mode: questions that come over UDP, each of them a connection of its own to the rest of
//! the master.
//!
//! ```text
//!  kernel ── recvmmsg ──> rate of the address? ──> whole frames of one Hello? ──> not in hand? room?
//!                          no: dropped, and nothing is kept or answered on the way ┘        │
//!                                                                                           v
//!  kernel <── sendmsg ── answer(): named, never longer than the question <── close ── Connection
//! ```
//!
//! What a datagram says is read, committed and acked by the same code as what a connection brings: a
//! [`Transport`](crate::connection::Transport) that holds one question stands for the socket. A master
//! that dies in between has answered nothing, and the slave asks again.

mod figures;
mod in_hand;
mod transport;

use std::cell::{Cell, RefCell};
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::rc::Rc;
use std::time::Duration;

use quinn_udp::{RecvMeta, UdpSocketState};
use rollcall_os::buckets::Buckets;
use rollcall_os::clock;
use rollcall_os::socket::{ListenError, ListenOptions};
use rollcall_os::udp;
use rollcall_protocol::Moment;
use rollcall_protocol::datagram::{Malformed, Question};
use rollcall_protocol::session::Refusal;
use rollcall_protocol::wire::ErrorCode;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::connection::Connection;
use crate::listener::Accepting;
use crate::reactor::Reactor;
pub(crate) use figures::DatagramFigures;
use in_hand::{InHand, NoRoom};
use transport::{DatagramTransport, Origin};

/// How long a bind is tried again while a process that was killed still lets go of its port.
const BIND_PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries.
const BIND_PAUSE: Duration = Duration::from_millis(20);
/// After a receive that failed for want of memory.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);
/// Lasting trouble is told at most this often.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Room for what one receive brings: the kernel may hand over several datagrams of one sender as one
/// piece, of no more than this (UDP_GRO, udp(7)).
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that one system call may bring.
const PIECES: usize = 8;

/// Where questions may come, and how many of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DatagramRules {
    /// Addresses and ports; none: the mode is off.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Questions of one address a second …
    pub(crate) rate: u32,
    /// … and at once.
    pub(crate) burst: u32,
    /// Questions that wait for their answer at a time.
    pub(crate) in_hand_max: usize,
}

/// What all sockets share.
#[derive(Clone)]
pub(crate) struct Datagrams {
    reactor: Rc<Reactor>,
    tasks: TaskTracker,
    stop: CancellationToken,
    buckets: Rc<RefCell<Buckets>>,
    in_hand: Rc<InHand>,
    dropped_told: Rc<Cell<Option<Moment>>>,
}

impl Datagrams {
    /// Its tasks are among those of the connections, and end with them.
    pub(crate) fn new(accepting: &Accepting, rules: &DatagramRules) -> Self {
        Self {
            reactor: Rc::clone(&accepting.reactor),
            tasks: accepting.tasks.clone(),
            stop: accepting.stop.clone(),
            buckets: Rc::new(RefCell::new(Buckets::new(rules.rate, rules.burst))),
            in_hand: InHand::new(rules.in_hand_max),
            dropped_told: Rc::default(),
        }
    }

    /// Receives from `socket` until told to stop.
    pub(crate) async fn run(self, socket: Socket) {
        let socket = Rc::new(socket);
        if let Ok(inode) = udp::inode(&socket.socket) {
            self.reactor.stats().datagrams.add_socket(inode);
        }
        let mut buffer = vec![0; PIECES * PIECE_BYTES].into_boxed_slice();
        loop {
            let ready = tokio::select! {
                () = self.stop.cancelled() => return,
                ready = socket.socket.readable() => ready,
            };
            match ready.and_then(|()| self.receive(&socket, &mut buffer)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    tracing::error!(event = "receive_failed", error = %error, errno = error.raw_os_error(), "can't receive datagrams; they wait in the kernel's buffer");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                }
            }
        }
    }

    /// Takes what one system call brings.
    fn receive(&self, socket: &Rc<Socket>, buffer: &mut [u8]) -> io::Result<()> {
        let mut metas = [RecvMeta::default(); PIECES];
        let received = {
            let mut pieces = buffer.chunks_mut(PIECE_BYTES).map(IoSliceMut::new);
            // There are as many chunks as pieces.
            let mut slices: [_; PIECES] =
                std::array::from_fn(|_| pieces.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
            socket.receive(&mut slices, &mut metas)?
        };
        let pieces = buffer.chunks(PIECE_BYTES).zip(&metas).take(received);
        for (piece, meta) in pieces {
            let origin = Origin {
                peer: meta.addr,
                asked: meta.dst_ip,
            };
            for question in piece[..meta.len].chunks(meta.stride.max(1)) {
                self.take(socket, &origin, question);
            }
        }
        Ok(())
    }

    fn take(&self, socket: &Rc<Socket>, origin: &Origin, bytes: &[u8]) {
        let figures = &self.reactor.stats().datagrams;
        figures.received.add(1);
        let peer = origin.peer;
        // Nothing is kept and nothing looked at before.
        if !self.buckets.borrow_mut().take(peer.ip(), clock::boot()) {
            figures.limited.add(1);
            self.log_dropped(
                peer,
                "more questions than [limits] datagram_rate allows an address",
            );
            return;
        }
        let frame_bytes_max = self.reactor.rules().frame_bytes_max;
        let question = match Question::parse(bytes, frame_bytes_max) {
            Ok(question) if peer.port() != 0 => question,
            Ok(_) => return figures.malformed.add(1),
            Err(error) => return self.refuse(peer, &error),
        };
        let place = match self.in_hand.enter(peer, question.number, bytes.len()) {
            Ok(place) => place,
            Err(NoRoom::Repeat) => return figures.repeated.add(1),
            Err(NoRoom::Full) => {
                figures.full.add(1);
                self.log_dropped(
                    peer,
                    "as many questions are in hand as [limits] datagrams_max allows",
                );
                return;
            }
        };
        let transport = DatagramTransport::new(
            Rc::clone(socket),
            *origin,
            question.number,
            bytes,
            place,
            Rc::clone(&self.reactor),
        );
        let shown = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let connection = Connection::new(Rc::clone(&self.reactor), shown);
        let stop = self.stop.clone();
        self.tasks.spawn_local(connection.serve(transport, stop));
    }

    /// It is no question, and gets no answer.
    fn refuse(&self, peer: SocketAddr, error: &Malformed) {
        self.reactor.stats().datagrams.malformed.add(1);
        let refusal = Refusal::for_good(ErrorCode::Protocol, error.to_string());
        self.reactor.log_refused(peer, &refusal);
    }

    fn log_dropped(&self, peer: SocketAddr, why: &str) {
        let now = clock::boot();
        let told = self.dropped_told.get();
        if told.is_none_or(|told| now.saturating_since(told) >= TOLD_EVERY) {
            self.dropped_told.set(Some(now));
            let figures = &self.reactor.stats().datagrams;
            tracing::warn!(event = "datagrams_dropped", peer = %peer, reason = why, limited = figures.limited.get(), full = figures.full.get(), "datagrams are dropped, among them this peer's; slaves send theirs again");
        }
    }
}

/// A socket that knows which of this host's addresses was asked, and answers from it.
pub(crate) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    /// Prepares a socket that is bound.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub(crate) fn new(socket: StdSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let socket = UdpSocket::from_std(socket)?;
        Ok(Self { socket, state })
    }

    fn receive(&self, pieces: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        self.socket.try_io(Interest::READABLE, || {
            self.state.recv((&self.socket).into(), pieces, metas)
        })
    }

    /// Sends `bytes` to who asked, from the address that was asked.
    async fn send(&self, origin: &Origin, bytes: &[u8]) -> io::Result<()> {
        let transmit = quinn_udp::Transmit {
            destination: origin.peer,
            ecn: None,
            contents: bytes,
            segment_size: None,
            src_ip: origin.asked,
        };
        let send = || self.state.try_send((&self.socket).into(), &transmit);
        self.socket.async_io(Interest::WRITABLE, send).await
    }
}

/// Binds all of `addresses`, with patience while a port is only about to be free.
///
/// # Errors
/// The first address that can't be had, with the remedy.
pub(crate) async fn bind_all(
    addresses: &[SocketAddr],
    options: &ListenOptions,
) -> Result<Vec<StdSocket>, ListenError> {
    let mut sockets = Vec::with_capacity(addresses.len());
    for &address in addresses {
        let socket = bind(address, options).await?;
        log_bound(address, &socket);
        sockets.push(socket);
    }
    Ok(sockets)
}

async fn bind(address: SocketAddr, options: &ListenOptions) -> Result<StdSocket, ListenError> {
    let give_up = clock::boot() + BIND_PATIENCE;
    let mut told = false;
    loop {
        match udp::bind(address, options) {
            Err(error) if error.is_in_use() && clock::boot() < give_up => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(event = "bind_retried", address = %address, error = %error, "the port is taken; trying for a moment in case its holder is just ending");
                }
                tokio::time::sleep(BIND_PAUSE).await;
            }
            result => return result.map_err(ListenError::reported),
        }
    }
}

fn log_bound(address: SocketAddr, socket: &StdSocket) {
    let local = socket.local_addr().unwrap_or(address);
    tracing::info!(
        event = "listening_for_datagrams",
        address = %local,
        receive_buffer_bytes = udp::receive_buffer_bytes(socket).ok(),
        "slaves in datagram mode can ask"
    );
}
