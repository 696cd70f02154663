//! Connections of per-message mode on which all is said and acked, and which the master has not
//! closed yet. They wait here, so that the next message need not wait for them.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::Connection;

/// Most connections that wait at a time: more than come together in the time that they are given,
/// because each has been waited for a moment before it comes here.
const CLOSING_MAX: usize = 32;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Closing {
    waiting: JoinSet<Option<SocketAddr>>,
}

impl Closing {
    /// Whether one more may wait.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < CLOSING_MAX
    }

    /// Number of connections that wait: each has a port.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Waits for the master's close on `connection`, for `limit` at most; then it is closed here.
    pub(super) fn add(&mut self, mut connection: Connection, limit: Duration) {
        self.waiting.spawn(async move {
            let peer = connection.peer();
            let late = timeout(limit, connection.drain()).await.is_err();
            peer.filter(|_| late)
        });
    }

    /// Where a connection went that has ended since the last call and had to be closed here, which
    /// leaves its port in TIME_WAIT.
    pub(super) fn closed_first(&mut self) -> Option<SocketAddr> {
        while let Some(ended) = self.waiting.try_join_next() {
            if let Ok(Some(peer)) = ended {
                return Some(peer);
            }
        }
        None
    }
}
