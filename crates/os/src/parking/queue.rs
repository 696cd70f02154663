//! One shard: a pair of sockets, of which the one sends and the other never receives, so that its
//! queue holds what was sent.
//!
//! A message in the middle of a queue can't be taken out. What works, and leaves nothing out if the
//! process dies half way, is to turn the queue: look at the first message, send a copy of it to the
//! end, and only then take the first one away. A death in between leaves a message twice, which
//! [`socket_cookie`] tells.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_send_buffer_size, socket_cookie, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg,
    sendmsg, socketpair,
};

use super::RECORD_BYTES_MAX;

/// What is asked for the sender's buffer: the default of net.core.wmem_max. The kernel doubles it
/// (SO_SNDBUF, socket(7)) and counts some 1.3 KiB for a message with the largest record.
const SEND_BUFFER_BYTES: usize = 212_992;

/// The first byte of a message.
const CONNECTION: u8 = 1;
const MARKER: u8 = 2;

/// What a queue holds.
#[derive(Debug)]
pub(super) enum Message {
    /// A connection and what was said of it.
    Connection {
        /// A copy of the descriptor.
        socket: OwnedFd,
        /// Names the connection in every process.
        cookie: u64,
        /// As it was sent.
        record: Vec<u8>,
    },
    /// Marks the place at which a turn began. One of another turn is a remnant of a death half way.
    Marker(u64),
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Queue {
    entrance: OwnedFd,
    exit: OwnedFd,
}

impl Queue {
    /// An empty one.
    pub(super) fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let (entrance, exit) = pair;
        set_socket_send_buffer_size(&entrance, SEND_BUFFER_BYTES)?;
        Ok(Self { entrance, exit })
    }

    /// Both ends of an earlier process's, in whichever order: what was sent lies at one of them.
    pub(super) fn from_ends(ends: [OwnedFd; 2]) -> io::Result<Self> {
        let [one, other] = ends;
        for end in [&one, &other] {
            if socket_type(end)? != SocketType::SEQPACKET {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
        let is_exit = receive(&other, &mut [0; 1], RecvFlags::PEEK)?.is_some();
        let (entrance, exit) = if is_exit { (one, other) } else { (other, one) };
        Ok(Self { entrance, exit })
    }

    /// Both ends.
    pub(super) fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.entrance.as_fd(), self.exit.as_fd()]
    }

    /// The same, for another process.
    pub(super) fn into_ends(self) -> [OwnedFd; 2] {
        [self.entrance, self.exit]
    }

    /// Puts a connection at the end.
    ///
    /// # Errors
    /// EAGAIN if the queue is full, ETOOMANYREFS if this user has as many descriptors under way as it
    /// may have files open (unix(7)).
    pub(super) fn push(&self, socket: BorrowedFd<'_>, record: &[u8]) -> io::Result<()> {
        let sockets = [socket];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !rights.push(SendAncillaryMessage::ScmRights(&sockets)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.send(CONNECTION, record, &mut rights)
    }

    /// Puts a marker at the end.
    pub(super) fn push_marker(&self, turn: u64) -> io::Result<()> {
        let mut nothing = SendAncillaryBuffer::default();
        self.send(MARKER, &turn.to_be_bytes(), &mut nothing)
    }

    fn send(
        &self,
        kind: u8,
        payload: &[u8],
        rights: &mut SendAncillaryBuffer<'_, '_, '_>,
    ) -> io::Result<()> {
        let kind = [kind];
        let parts = [IoSlice::new(&kind), IoSlice::new(payload)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match sendmsg(&self.entrance, &parts, rights, flags) {
                Err(Errno::INTR) => {}
                // A message is sent whole or not at all.
                sent => return sent.map(|_| ()).map_err(io::Error::from),
            }
        }
    }

    /// A copy of the first message, which stays; `None` if there is none.
    ///
    /// # Errors
    /// EMFILE if there was no descriptor left for it; otherwise what recvmsg(2) says, or that it is
    /// no message of ours.
    pub(super) fn first(&self) -> io::Result<Option<Message>> {
        let mut payload = [0; 1 + RECORD_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut payload)];
            match recvmsg(&self.exit, &mut parts, &mut rights, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                received => break received?,
            }
        };
        let sockets = rights.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
            _ => None,
        });
        let mut sockets: Vec<OwnedFd> = sockets.flatten().collect();
        // What does not fit into the table of open files is left out, and only this says so.
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Errno::MFILE.into());
        }
        match (payload[..received.bytes].split_first(), sockets.pop()) {
            (Some((&CONNECTION, record)), Some(socket)) => Ok(Some(Message::Connection {
                cookie: socket_cookie(&socket)?,
                socket,
                record: record.to_vec(),
            })),
            (Some((&MARKER, turn)), None) => {
                let turn = turn.try_into().map_err(|_| io::ErrorKind::InvalidData)?;
                Ok(Some(Message::Marker(u64::from_be_bytes(turn))))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Takes the first message away. If no other process has its descriptor, the connection ends.
    pub(super) fn pop(&self) -> io::Result<()> {
        // Without room for them the kernel drops the descriptors.
        match receive(&self.exit, &mut [0; 1], RecvFlags::empty())? {
            Some(_) => Ok(()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// One message; `None` if there is none.
fn receive(socket: &OwnedFd, buffer: &mut [u8], flags: RecvFlags) -> io::Result<Option<usize>> {
    loop {
        match recv(socket, &mut *buffer, flags | RecvFlags::DONTWAIT) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            // No message is empty: the other end is gone.
            Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => return Ok(Some(received?.1)),
        }
    }
}
