//! One TCP connection to a master, as frames.

use std::io;
use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use rollcall_os::outgoing;
use rollcall_protocol::frame::{self, Frame, FrameError, TooLarge};
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::wire::{ToMaster, ToSlave};
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

/// Bytes read at once; what a master says is short.
const READ_BYTES: usize = 4096;

/// What [`Connection::io`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Io {
    /// Bytes went out or came in.
    Progress,
    /// The master has closed its side.
    End,
}

/// A connection and what is on its way in and out of it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    peer: Option<SocketAddr>,
    input: BytesMut,
    output: Vec<u8>,
    /// Bytes of `output` that have been written.
    written: usize,
    is_ended: bool,
}

impl Connection {
    /// A connection on which nothing has been said.
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            peer: stream.peer_addr().ok(),
            stream,
            input: BytesMut::new(),
            output: Vec::new(),
            written: 0,
            is_ended: false,
        }
    }

    /// The address at the other end; `None` if it had broken before anything was said.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Whether the master has closed its side or the connection is broken: to close this side leaves
    /// no TIME_WAIT here then.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Closes with a reset, which leaves no TIME_WAIT: for connections on which all is acked.
    ///
    /// # Errors
    /// What setsockopt(2) says; it is closed in order then.
    pub(super) fn reset(self) -> io::Result<()> {
        outgoing::reset_on_close(&self.stream, true)
    }

    /// Waits for the end of what the master sends, without looking at it. Cancel safe.
    pub(super) async fn drain(&mut self) {
        while !self.is_ended {
            self.input.clear();
            // An error is an end.
            let _ = self.io().await;
        }
    }

    /// Puts a message at the end of what is to be written.
    ///
    /// # Errors
    /// [`TooLarge`]
    pub(super) fn queue(&mut self, message: &ToMaster) -> Result<(), TooLarge> {
        frame::encode(message, &mut self.output)
    }

    /// Bytes that are queued and not written.
    pub(super) fn unwritten(&self) -> usize {
        self.output.len() - self.written
    }

    /// Waits until the socket can take or give something, and lets it. Cancel safe.
    ///
    /// # Errors
    /// The connection is broken.
    pub(super) async fn io(&mut self) -> io::Result<Io> {
        let interest = if self.unwritten() > 0 {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        };
        // The only wait; all that follows happens at once.
        let ready = self.stream.ready(interest).await;
        let done = ready.and_then(|ready| self.transfer(ready));
        self.is_ended |= !matches!(done, Ok(Io::Progress));
        done
    }

    fn transfer(&mut self, ready: Ready) -> io::Result<Io> {
        if ready.is_writable() {
            self.write()?;
        }
        if ready.is_readable() {
            return self.read();
        }
        Ok(Io::Progress)
    }

    fn write(&mut self) -> io::Result<()> {
        match self.stream.try_write(&self.output[self.written..]) {
            Ok(bytes) => self.written += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if self.unwritten() == 0 {
            self.output.clear();
            self.output.shrink_to(READ_BYTES);
            self.written = 0;
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<Io> {
        self.input.reserve(READ_BYTES);
        match self.stream.try_read_buf(&mut self.input) {
            Ok(0) => Ok(Io::End),
            Ok(_) => Ok(Io::Progress),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Io::Progress),
            Err(error) => Err(error),
        }
    }

    /// The next whole message that has come; `None` if more bytes are needed.
    ///
    /// # Errors
    /// What came is no message: nothing that follows can be read.
    pub(super) fn next_message(&mut self) -> Result<Option<ToSlave>, FrameError> {
        let Some(frame) = Frame::peek(&self.input, FRAME_PAYLOAD_BYTES_MAX)? else {
            return Ok(None);
        };
        let message = frame.decode()?;
        let taken = frame.taken;
        self.input.advance(taken);
        Ok(Some(message))
    }
}
