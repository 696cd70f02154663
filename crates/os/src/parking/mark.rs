//! What a process has begun on a connection and not ended, written where its successor finds it: on
//! the connection itself.
//!
//! The mark is the timeout for sending (SO_SNDTIMEO, socket(7)), which means nothing on a
//! non-blocking socket. It belongs to the socket, so it outlives the process, and takes no privilege.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::SockRef;

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Nothing is half done.
    Whole,
    /// The greeting is being answered: the answer may not have been sent.
    Greeting,
    /// A frame may have been sent in part. Nothing more can be said on the connection.
    Torn,
}

impl Mark {
    const GREETING: Duration = Duration::from_secs(1);

    const fn timeout(self) -> Option<Duration> {
        match self {
            Self::Whole => None,
            Self::Greeting => Some(Self::GREETING),
            Self::Torn => Some(Duration::from_secs(2)),
        }
    }
}

/// Leaves `mark` on the connection.
///
/// # Errors
/// What setsockopt(2) says.
pub fn leave(socket: &impl AsFd, mark: Mark) -> io::Result<()> {
    SockRef::from(socket).set_write_timeout(mark.timeout())
}

/// The mark that was left last. One that is not known counts as [`Mark::Torn`].
///
/// # Errors
/// What getsockopt(2) says.
pub fn find(socket: &impl AsFd) -> io::Result<Mark> {
    Ok(match SockRef::from(socket).write_timeout()? {
        None => Mark::Whole,
        Some(Mark::GREETING) => Mark::Greeting,
        Some(_) => Mark::Torn,
    })
}

/// Whether a few hundred bytes are taken whole: the kernel calls a TCP socket writable while a third
/// of its buffer is free.
///
/// # Errors
/// What poll(2) says.
pub fn has_room(socket: &impl AsFd) -> io::Result<bool> {
    Ok(ready(socket, PollFlags::OUT)?.contains(PollFlags::OUT))
}

/// Whether both directions are over: nothing comes of it any more.
///
/// # Errors
/// What poll(2) says.
pub fn is_over(socket: &impl AsFd) -> io::Result<bool> {
    Ok(ready(socket, PollFlags::empty())?.intersects(PollFlags::HUP | PollFlags::ERR))
}

/// Ends a connection of which a copy is parked: to close one of them would tell the peer nothing.
///
/// # Errors
/// What shutdown(2) says; it is over then.
pub fn shut_down(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).shutdown(Shutdown::Both)
}

fn ready(socket: &impl AsFd, asked: PollFlags) -> io::Result<PollFlags> {
    let mut sockets = [PollFd::new(socket, asked)];
    loop {
        match poll(&mut sockets, Some(&Timespec::default())) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(sockets[0].revents()),
        }
    }
}
