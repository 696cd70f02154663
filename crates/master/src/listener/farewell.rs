//! The last words to a peer that is not let in: an Error frame that says why.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use rollcall_os::socket;
use rollcall_protocol::frame;
use rollcall_protocol::session::Refusal;
use socket2::{SockRef, Socket};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::connection::Transport;

/// Refused peers that are waited for at a time. Whoever comes when there are more is told as well,
/// and may lose the words to a reset if it is quick to send.
const LINGERING_MAX: usize = 64;
/// A peer's empty receive buffer takes an Error frame at once, or the peer is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Reads of input that nobody will look at, 4 KiB each.
const DRAINS_MAX: usize = 4;

/// Counts the refused peers that are waited for.
#[derive(Debug, Default)]
pub(super) struct Farewells {
    lingering: Cell<usize>,
}

impl Farewells {
    /// Tells `stream`'s peer, and closes when it has closed or has had its time.
    pub(super) fn say(
        self: &Rc<Self>,
        mut stream: TcpStream,
        refusal: &Refusal,
        tasks: &TaskTracker,
    ) {
        let words = words(refusal);
        if self.lingering.get() >= LINGERING_MAX {
            say_at_once(&SockRef::from(&stream), &words);
            return;
        }
        let lingering = Lingering::new(self);
        tasks.spawn_local(async move {
            let _lingering = lingering;
            if Transport::write(&mut stream, &words, WRITE_TIMEOUT)
                .await
                .is_ok()
            {
                Transport::close(&mut stream).await;
            }
        });
    }
}

/// One of those that are waited for.
struct Lingering(Rc<Farewells>);

impl Lingering {
    fn new(farewells: &Rc<Farewells>) -> Self {
        farewells.lingering.set(farewells.lingering.get() + 1);
        Self(Rc::clone(farewells))
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        self.0
            .lingering
            .set(self.0.lingering.get().saturating_sub(1));
    }
}

/// Tells the peer of a non-blocking socket that is closed right after.
pub(super) fn say_and_close(socket: Socket, refusal: &Refusal) {
    say_at_once(&socket, &words(refusal));
}

fn say_at_once(socket: &Socket, words: &[u8]) {
    // Whether it arrives or not, the connection is over.
    let _ = socket.send(words);
    // Unread input would make the close a reset, which could overtake the words.
    for _ in 0..DRAINS_MAX {
        match socket::drain(socket) {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
    }
}

fn words(refusal: &Refusal) -> Vec<u8> {
    let mut words = Vec::new();
    // A text of ours is far below the limit of a frame.
    let _ = frame::encode(&refusal.to_message(), &mut words);
    words
}
