//! What became of datagrams, for `/metrics`.

use std::sync::{PoisonError, RwLock};

use rollcall_os::udp;

use crate::stats::Counter;

/// One for all sockets.
#[derive(Debug, Default)]
pub(crate) struct DatagramFigures {
    /// Datagrams received.
    pub(crate) received: Counter,
    /// Dropped before they were looked at: the address has had its share.
    pub(crate) limited: Counter,
    /// Dropped because they are no questions of this protocol.
    pub(crate) malformed: Counter,
    /// Dropped because the same question is in hand, and its answer is on the way.
    pub(crate) repeated: Counter,
    /// Dropped because too many questions are in hand.
    pub(crate) full: Counter,
    /// Answers sent.
    pub(crate) answered: Counter,
    /// Answers of which a part was left out, so as not to be longer than the question.
    pub(crate) shortened: Counter,
    /// Answers that the kernel did not take.
    pub(crate) unsent: Counter,
    /// The sockets, by their inodes.
    sockets: RwLock<Vec<u64>>,
}

impl DatagramFigures {
    /// One more socket.
    pub(crate) fn add_socket(&self, inode: u64) {
        let mut sockets = self.sockets.write().unwrap_or_else(PoisonError::into_inner);
        sockets.push(inode);
    }

    /// Datagrams that the kernel has dropped before anybody could look at them; `None` if it does not
    /// tell.
    pub(crate) fn overflowed(&self) -> Option<u64> {
        let sockets = self.sockets.read().unwrap_or_else(PoisonError::into_inner);
        if sockets.is_empty() {
            return Some(0);
        }
        udp::overflowed(&sockets).ok()
    }

    /// All counters of the master's own, with their names and what they mean.
    pub(crate) fn all(&self) -> [(&'static str, &'static str, &Counter); 8] {
        [
            (
                "rollcall_datagrams_received",
                "Datagrams received",
                &self.received,
            ),
            (
                "rollcall_datagrams_limited",
                "Datagrams dropped unread because their address has had its share",
                &self.limited,
            ),
            (
                "rollcall_datagrams_malformed",
                "Datagrams dropped because they are no questions of this protocol",
                &self.malformed,
            ),
            (
                "rollcall_datagrams_repeated",
                "Datagrams dropped because the same question is in hand",
                &self.repeated,
            ),
            (
                "rollcall_datagrams_full",
                "Datagrams dropped because too many questions are in hand",
                &self.full,
            ),
            (
                "rollcall_datagram_answers",
                "Datagrams answered",
                &self.answered,
            ),
            (
                "rollcall_datagram_answers_shortened",
                "Answers shortened, so as not to be longer than the question",
                &self.shortened,
            ),
            (
                "rollcall_datagram_answers_unsent",
                "Answers that could not be sent",
                &self.unsent,
            ),
        ]
    }
}
