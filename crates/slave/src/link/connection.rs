//! One TCP connection to a master, as frames.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rollcall_os::socket::{self, Liveness};
use rollcall_protocol::frame::{self, Frame, FrameError, TooLarge};
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::wire::{ToMaster, ToSlave};
use tokio::io::Interest;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// Bytes read at once; what a master says is short.
const READ_BYTES: usize = 4096;

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
    /// Anything else, usually a refusal.
    #[error("can't connect to {address}: {source}")]
    Refused {
        /// Where to.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

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
    input: BytesMut,
    output: Vec<u8>,
    /// Bytes of `output` that have been written.
    written: usize,
}

impl Connection {
    /// Connects to "host:port": to each of its addresses in turn, until one answers.
    ///
    /// # Errors
    /// That of the last address.
    pub(super) async fn open(
        master: &str,
        connect_timeout: Duration,
        liveness: &Liveness,
    ) -> Result<Self, ConnectError> {
        let addresses = timeout(connect_timeout, lookup_host(master))
            .await
            .map_err(|_| ConnectError::Resolve(io::ErrorKind::TimedOut.into()))?
            .map_err(ConnectError::Resolve)?;
        let mut last = ConnectError::NoAddress;
        for address in addresses {
            match connect(address, connect_timeout, liveness).await {
                Ok(stream) => {
                    return Ok(Self {
                        stream,
                        input: BytesMut::new(),
                        output: Vec::new(),
                        written: 0,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The address at the other end.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
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
        let ready = self.stream.ready(interest).await?;
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

async fn connect(
    address: SocketAddr,
    after: Duration,
    liveness: &Liveness,
) -> Result<TcpStream, ConnectError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrNotAvailable => ConnectError::NoPort { address },
        _ => ConnectError::Refused { address, source },
    };
    let stream = timeout(after, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectError::Timeout { address, after })?
        .map_err(failed)?;
    socket::tune(&stream, liveness).map_err(failed)?;
    Ok(stream)
}
