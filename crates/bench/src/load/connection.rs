//! One socket of a simulated slave: bytes in, bytes out, no waiting.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rollcall_protocol::Moment;
use rollcall_protocol::frame::FrameError;
use rollcall_protocol::wire::ToSlave;
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::inbox::Inbox;

/// An open socket, or one that is being connected.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    established: bool,
    inbox: Inbox,
    /// What the kernel would not take yet.
    unsent: Vec<u8>,
    /// What the poll was asked to tell.
    watched: Option<Interest>,
    /// When something was last heard, or when an answer began to be due.
    pub(crate) heard_at: Moment,
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// The first so many bytes of the buffer.
    Bytes(usize),
    /// Nothing more for now.
    Drained,
    /// The end of the stream.
    End,
}

impl Connection {
    /// Starts to connect to `master`, from `source` if one is given.
    pub(crate) fn open(
        master: SocketAddr,
        source: Option<IpAddr>,
        now: Moment,
    ) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(master), kind, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = source {
            // Without this the bind takes a port before the destination is known, for all of them.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&master.into()) {
            Ok(()) => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            stream: TcpStream::from_std(socket.into()),
            established: false,
            inbox: Inbox::default(),
            unsent: Vec::new(),
            watched: None,
            heard_at: now,
        })
    }

    /// Has the poll tell of input, and of room for output once that was missed. Most connections
    /// never miss it, and would be woken up for it in vain.
    pub(crate) fn watch(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let wanted = match self.watched {
            Some(interest) if interest.is_writable() || !self.has_unsent() => return Ok(()),
            _ if self.has_unsent() => Interest::READABLE | Interest::WRITABLE,
            _ => Interest::READABLE,
        };
        match self.watched.replace(wanted) {
            None => registry.register(&mut self.stream, token, wanted),
            Some(_) => registry.reregister(&mut self.stream, token, wanted),
        }
    }

    /// Whether the connection has come about, as far as is known.
    pub(crate) fn is_established(&self) -> bool {
        self.established
    }

    /// Has the close be a reset (SO_LINGER 0, socket(7)): no TIME_WAIT is left on either side, and
    /// what the peer has not read yet is lost.
    pub(crate) fn abort(self) -> io::Result<()> {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))
    }

    /// Whether bytes wait for the socket to take them.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends `bytes` as far as the socket takes them, and keeps the rest.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.has_unsent() {
            self.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let taken = self.write(bytes)?;
        self.unsent.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    /// The socket may take more, or the attempt to connect may have ended.
    pub(crate) fn writable(&mut self) -> io::Result<()> {
        if !self.established
            && let Some(error) = self.stream.take_error()?
        {
            return Err(error);
        }
        let unsent = std::mem::take(&mut self.unsent);
        let taken = self.write(&unsent)?;
        self.unsent = unsent;
        self.unsent.drain(..taken);
        if self.unsent.is_empty() {
            // Most connections need it once, and there are many of them.
            self.unsent = Vec::new();
        }
        Ok(())
    }

    /// Bytes that the socket took. While it is being connected it takes none.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.stream.write(&bytes[taken..]) {
                Ok(count) => {
                    self.established = true;
                    taken += count;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if !self.established && error.kind() == ErrorKind::NotConnected => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    /// Reads once into `buffer`.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Input> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return Ok(Input::End),
                Ok(count) => return Ok(Input::Bytes(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Input::Drained),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes in what was read, and hands each message that is whole to `handle`.
    pub(crate) fn take_in<E: From<FrameError>>(
        &mut self,
        bytes: &[u8],
        mut handle: impl FnMut(ToSlave) -> Result<(), E>,
    ) -> Result<(), E> {
        self.inbox.feed(bytes, |frame, _| handle(frame.decode()?))
    }
}
