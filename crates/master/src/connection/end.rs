//! How a connection ends.

use std::io;

use rollcall_protocol::session::Refusal;
use rollcall_protocol::wire::to_slave::Kind;

use super::{Connection, Transport, message};

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// The peer closed, between two frames.
    Closed,
    /// All that was announced is acked.
    Complete,
    /// The peer closed in the middle of a frame.
    CutFrame,
    /// The peer broke the protocol, or claims what is another's.
    Refused(Refusal),
    /// The connection broke.
    Broken(io::Error),
    /// The master is going away.
    Stopping,
}

impl Connection {
    /// Ends it.
    pub(super) async fn part(mut self, mut transport: impl Transport, end: End) {
        let hands_over = self.reactor.parking().is_handing_over();
        if matches!(end, End::Stopping) && self.place.is_some() && hands_over {
            // It does not end: the successor goes on with it.
            return;
        }
        self.say_last_words(&mut transport, &end).await;
        self.log(&end);
        if !matches!(end, End::Broken(_)) {
            transport.close().await;
        }
        self.give_up_place(&transport);
    }

    /// What the slave is told before the connection is closed.
    async fn say_last_words(&self, transport: &mut impl Transport, end: &End) {
        let words = match (end, self.slot) {
            (End::Refused(refusal), _) => refusal.to_message(),
            (End::Stopping, Some(slot)) => {
                // Nothing of this connection is half done, but its slave may have opened another.
                self.reactor.durable().await;
                let marks = self.reactor.roll().marks(slot).to_vec();
                message(Kind::Goodbye(self.reactor.goodbye(marks)))
            }
            // What it says may not have been looked at yet; it is told when to say it again.
            (End::Stopping, None) => message(Kind::Goodbye(self.reactor.goodbye(Vec::new()))),
            _ => return,
        };
        let mut out = Vec::new();
        self.encode(&words, &mut out);
        // Whether it arrives or not, the connection is over.
        let _ = self.write(transport, &out).await;
    }

    fn log(&self, end: &End) {
        let peer = self.peer;
        match end {
            End::Refused(refusal) => self.reactor.log_refused(peer, refusal),
            End::CutFrame => self.reactor.log_cut(peer),
            End::Broken(error) => {
                tracing::debug!(event = "connection_broken", peer = %peer, error = %error, "the connection broke");
            }
            End::Closed | End::Complete | End::Stopping => {
                tracing::trace!(event = "connection_closed", peer = %peer, "the connection has ended");
            }
        }
    }
}

impl Drop for Connection {
    /// Also when its task panics: its place on the roll is given up, and the panic is counted.
    fn drop(&mut self) {
        if let Some(admission) = &self.admission {
            admission.leave(self.peer.ip());
        }
        let stats = self.reactor.stats();
        stats.connections.subtract(1);
        if std::thread::panicking() {
            stats.connection_panics.add(1);
            if let Some(place) = &self.place {
                // The parked copy would keep the connection open, and nobody serves it.
                self.reactor.parking().evict(place);
            }
        }
        if let Some(slot) = self.slot {
            self.reactor.roll().handle_disconnect(slot, self.id);
        }
    }
}
