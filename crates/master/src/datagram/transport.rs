//! One question as a transport: its bytes can be looked at, what is written is gathered, and closing
//! sends it as the one answer.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use rollcall_protocol::datagram::{ANSWER_BYTES, answer};

use super::Socket;
use super::in_hand::InHandPlace;
use crate::connection::Transport;
use crate::reactor::Reactor;

/// How long the kernel may take to have room for an answer.
const SEND_PATIENCE: Duration = Duration::from_secs(2);

/// Where a question came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    /// Who asks.
    pub(super) peer: SocketAddr,
    /// Which of this host's addresses was asked; the answer comes from it.
    pub(super) asked: Option<IpAddr>,
}

/// See the module's documentation.
pub(super) struct DatagramTransport {
    socket: Rc<Socket>,
    origin: Origin,
    number: u64,
    question: Box<[u8]>,
    /// Bytes of the question that were taken.
    taken: Cell<usize>,
    said: Vec<u8>,
    _place: InHandPlace,
    reactor: Rc<Reactor>,
}

impl DatagramTransport {
    pub(super) fn new(
        socket: Rc<Socket>,
        origin: Origin,
        number: u64,
        question: &[u8],
        place: InHandPlace,
        reactor: Rc<Reactor>,
    ) -> Self {
        Self {
            socket,
            origin,
            number,
            question: question.into(),
            taken: Cell::new(0),
            said: Vec::new(),
            _place: place,
            reactor,
        }
    }
}

impl Transport for DatagramTransport {
    async fn readable(&self) -> io::Result<()> {
        Ok(())
    }

    fn is_finished(&self) -> bool {
        true
    }

    fn peek(&self, buffer: &mut [u8], _left: bool) -> io::Result<Option<usize>> {
        let left = &self.question[self.taken.get()..];
        buffer[..left.len()].copy_from_slice(left);
        Ok(Some(left.len()))
    }

    fn consume(&self, count: usize, _scratch: &mut [u8]) -> io::Result<()> {
        self.taken.set(self.taken.get() + count);
        Ok(())
    }

    fn make_room_for_frame(&self) -> io::Result<()> {
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8], _timeout: Duration) -> io::Result<()> {
        self.said.extend_from_slice(bytes);
        Ok(())
    }

    /// Sends the answer. Nobody waits for it if it can't be sent: the slave asks again.
    async fn close(&mut self) {
        if self.said.is_empty() {
            return;
        }
        let figures = &self.reactor.stats().datagrams;
        let Some(answer) = answer(self.number, self.question.len(), &self.said) else {
            return figures.shortened.add(1);
        };
        if answer.len() < self.said.len() + ANSWER_BYTES {
            figures.shortened.add(1);
        }
        let sending = self.socket.send(&self.origin, &answer);
        match tokio::time::timeout(SEND_PATIENCE, sending).await {
            Ok(Ok(())) => figures.answered.add(1),
            failed => {
                figures.unsent.add(1);
                let error = match failed {
                    Ok(Err(error)) => error,
                    _ => io::ErrorKind::TimedOut.into(),
                };
                tracing::debug!(event = "answer_unsent", peer = %self.origin.peer, error = %error, "an answer could not be sent");
            }
        }
    }
}
