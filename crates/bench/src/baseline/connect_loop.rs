//! The server of the bare loop of connections: what is least to be done for one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::mpsc::{Receiver, TryRecvError};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::wakeups::{EVENTS_MAX, LISTENER, WAKER, WakeUps};

/// As long as the smallest ack is good for.
const ANSWER: [u8; 8] = [0; 8];

struct Server {
    poll: Poll,
    listener: mio::net::TcpListener,
    /// Each with whether it has been answered.
    connections: Vec<Option<(TcpStream, bool)>>,
    free: Vec<usize>,
    buffer: Box<[u8]>,
}

/// Serves until standard input ends.
///
/// # Errors
/// If the poll fails.
pub(super) fn serve(listener: TcpListener) -> anyhow::Result<()> {
    let WakeUps {
        poll,
        listener,
        waker: _waker,
        end,
    } = WakeUps::new(listener)?;
    let mut server = Server {
        poll,
        listener,
        connections: Vec::new(),
        free: Vec::new(),
        buffer: super::bare::read_buffer(),
    };
    Ok(server.run(&end)?)
}

impl Server {
    fn run(&mut self, end: &Receiver<()>) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if end.try_recv() == Err(TryRecvError::Disconnected) {
                return Ok(());
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    WAKER => {}
                    Token(at) => {
                        // A broken connection is the client's to count.
                        if !self.ready(at).unwrap_or(false) {
                            self.connections[at] = None;
                            self.free.push(at);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let at = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.poll
                .registry()
                .register(&mut stream, Token(at), Interest::READABLE)?;
            self.connections[at] = Some((stream, false));
        }
    }

    /// Answers, closes first, and reads to the end; `false` there.
    fn ready(&mut self, at: usize) -> io::Result<bool> {
        let Some(Some((stream, answered))) = self.connections.get_mut(at) else {
            // A second event of one turn: the connection is gone.
            return Ok(true);
        };
        loop {
            match stream.read(&mut self.buffer) {
                Ok(0) => return Ok(false),
                Ok(_) if *answered => {}
                Ok(_) => {
                    *answered = true;
                    stream.write_all(&ANSWER)?;
                    stream.shutdown(Shutdown::Write)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
