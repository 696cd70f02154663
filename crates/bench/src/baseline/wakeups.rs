//! What wakes a bare server on one thread: its sockets, and the end of its standard input.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use mio::{Interest, Poll, Token, Waker};

/// Events taken from the kernel at once.
pub(super) const EVENTS_MAX: usize = 1024;
/// The listener's token. Connections have those from 0 on.
pub(super) const LISTENER: Token = Token(usize::MAX);
/// The token of the waker: there is nothing to do for it itself.
pub(super) const WAKER: Token = Token(usize::MAX - 1);

/// See the module's documentation.
pub(super) struct WakeUps {
    pub(super) poll: Poll,
    /// Registered with the poll.
    pub(super) listener: mio::net::TcpListener,
    /// To be kept as long as the poll: an eventfd that is closed wakes nobody.
    pub(super) waker: Arc<Waker>,
    /// Its sender is gone once standard input has ended; the poll is woken up then.
    pub(super) end: Receiver<()>,
}

impl WakeUps {
    /// Those of a server on `listener`.
    ///
    /// # Errors
    /// If the kernel has no poll, or no room for what is registered.
    pub(super) fn new(listener: TcpListener) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (ended, end) = sync_channel::<()>(1);
        let ending = Arc::clone(&waker);
        super::when_stdin_ends(move || {
            drop(ended);
            let _ = ending.wake();
        });
        let mut listener = mio::net::TcpListener::from_std(listener);
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            waker,
            end,
        })
    }
}
