//! What a connection is made of: bytes that can be looked at before they are taken.
//!
//! Plain TCP peeks into the kernel's buffer. A TLS transport would peek into the plaintext that it
//! has decrypted, and stands beside this one behind the same trait.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use futures_util::FutureExt;
use rollcall_os::parking::{self, Mark};
use rollcall_os::socket;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;

/// How long the peer may take to close after us.
const LINGER: Duration = Duration::from_secs(2);

/// A connection whose input is peeked, committed, and only then consumed: a master that dies in
/// between leaves the bytes where its successor finds them.
pub(crate) trait Transport {
    /// Waits until there may be something to peek.
    async fn readable(&self) -> io::Result<()>;

    /// Whether the peer has closed its side: nothing can follow what is there.
    fn is_finished(&self) -> bool;

    /// Copies what has arrived and leaves it in place: its length, 0 at the end of the stream, `None`
    /// if nothing is there now. `left`: there are bytes that were peeked before and left there.
    fn peek(&self, buffer: &mut [u8], left: bool) -> io::Result<Option<usize>>;

    /// Takes `count` bytes that were peeked. `scratch` bounds one call.
    fn consume(&self, count: usize, scratch: &mut [u8]) -> io::Result<()>;

    /// Makes sure that a whole frame can arrive before anything is consumed.
    fn make_room_for_frame(&self) -> io::Result<()>;

    /// Writes all of `bytes`, within `timeout`.
    async fn write(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<()>;

    /// The same, and for as long as a frame may be written in part a mark says so, which outlives this
    /// process.
    async fn write_marked(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<()> {
        self.write(bytes, timeout).await
    }

    /// The socket, if another process can go on with what it has of it.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Closes first: says that nothing follows, then drops what still comes until the peer closes,
    /// because closing with unread input would reset the connection and could destroy an ack that
    /// the peer has not read yet.
    async fn close(&mut self);
}

impl Transport for TcpStream {
    async fn readable(&self) -> io::Result<()> {
        // Smaller than the future of `TcpStream::readable`, and there are many idle connections.
        poll_fn(|context| self.poll_read_ready(context)).await
    }

    fn is_finished(&self) -> bool {
        let ready = self.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
    }

    fn peek(&self, buffer: &mut [u8], left: bool) -> io::Result<Option<usize>> {
        let mut peeked = None;
        let emptied = self.try_io(Interest::READABLE, || {
            let count = socket::peek(self, buffer)?;
            peeked = Some(count);
            if count > 0 && count < buffer.len() {
                // All that was there: wait for more, without a second call that would say so.
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match emptied {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            // The runtime was told of those bytes once and does not ask the kernel again.
            _ if left && peeked.is_none() => socket::peek(self, buffer).map(Some),
            _ => Ok(peeked),
        }
    }

    fn consume(&self, count: usize, scratch: &mut [u8]) -> io::Result<()> {
        socket::discard(self, count, scratch)
    }

    fn make_room_for_frame(&self) -> io::Result<()> {
        socket::make_room_for_frame(self)
    }

    async fn write(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<()> {
        // An ack nearly always fits into the kernel's buffer: no timer is made for it then.
        let written = match self.try_write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if written == bytes.len() {
            return Ok(());
        }
        let rest = self.write_all(&bytes[written..]);
        // Boxed: an idle connection need not have the room for it.
        match Box::pin(tokio::time::timeout(timeout, rest)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer does not read what it is sent",
            )),
        }
    }

    async fn write_marked(&mut self, bytes: &[u8], timeout: Duration) -> io::Result<()> {
        let mut written = 0;
        if parking::has_room(self)? {
            // The runtime does not know yet of a connection that was just adopted that it has room.
            written = match socket::write_now(&*self, bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                written => written?,
            };
        }
        if written == bytes.len() {
            return Ok(());
        }
        // With room for it, only a kernel short of memory takes a part.
        Box::pin(write_torn(self, &bytes[written..], timeout)).await
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    async fn close(&mut self) {
        let drain = async {
            // Whatever fails here, the connection is over.
            let _ = self.shutdown().await;
            while self.readable().await.is_ok() {
                match self.try_io(Interest::READABLE, || socket::drain(self)) {
                    Ok(false) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(true) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, drain).await;
    }
}

/// Writes what may go out in parts.
async fn write_torn(stream: &mut TcpStream, bytes: &[u8], timeout: Duration) -> io::Result<()> {
    parking::leave(stream, Mark::Torn)?;
    Transport::write(stream, bytes, timeout).await?;
    parking::leave(stream, Mark::Whole)
}
