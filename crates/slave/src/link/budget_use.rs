//! What the link does by its budget of ports: a connection for each message, a pooled one, or none.

use rollcall_os::clock;
use rollcall_protocol::wire;

use super::budget::PortUse;
use super::dial::ConnectError;
use super::{Link, LinkError, OnExhaustion};

impl Link {
    /// Whether the next exchange is one for a message: not while it falls back to a pooled one.
    pub(super) fn is_per_message(&self) -> bool {
        let pools = self.config.on_exhaustion == OnExhaustion::Pool && self.budget.is_exhausted();
        self.config.mode != wire::Mode::Pooled && !pools
    }

    /// Whether it has fallen back to a pooled connection.
    pub(super) fn is_fallen_back(&self) -> bool {
        self.config.mode != wire::Mode::Pooled && !self.is_per_message()
    }

    /// Per-message mode: whether a port may be taken for one more message.
    pub(super) async fn has_port(&mut self) -> bool {
        let open = self.count_closing();
        if !self.budget.is_exhausted() && self.budget.has_room(open, clock::boot()) {
            return true;
        }
        self.find_ports().await
    }

    /// The same in doubt, and whether enough are free once they were used up.
    pub(super) async fn find_ports(&mut self) -> bool {
        let in_use = self.budget.ask_kernel().await;
        let open = self.count_closing();
        let now = clock::boot();
        let was_exhausted = self.budget.is_exhausted();
        let found = match in_use {
            Some(in_use) => self.budget.handle_in_use(in_use, open, now),
            None => self.budget.handle_unknown(open, now),
        };
        if !found {
            self.budget.handle_exhausted(now);
        }
        let port_use = self.publish_ports();
        if found != was_exhausted {
            return found;
        }
        if let Some(port_use) = port_use {
            self.journal
                .ports_changed(&port_use, self.config.on_exhaustion);
        }
        found
    }

    /// Takes in what has become of the connections that wait for the master's close. Returns how
    /// many still do.
    pub(super) fn count_closing(&mut self) -> u32 {
        let now = clock::boot();
        while let Some(peer) = self.closing.closed_first() {
            self.budget.handle_closed_first(peer, now);
        }
        u32::try_from(self.closing.len()).unwrap_or(u32::MAX)
    }

    /// Per-message mode: shows the use of the ports.
    pub(super) fn publish_ports(&mut self) -> Option<PortUse> {
        if self.config.mode != wire::Mode::PerMessage {
            return None;
        }
        // A pooled connection that it has fallen back to is one of the reserve.
        let open = self.count_closing();
        let port_use = self.budget.port_use(open, clock::boot());
        self.port_use.send_replace(port_use);
        port_use
    }

    /// Per-message mode: there is no port at all. Returns whether a pooled connection is tried now.
    pub(super) fn falls_back(&mut self, error: &LinkError) -> bool {
        let LinkError::Connect(ConnectError::NoPort { address }) = error else {
            return false;
        };
        if !self.is_per_message() {
            return false;
        }
        self.budget.handle_connected(*address);
        self.budget.handle_exhausted(clock::boot());
        self.publish_ports();
        self.is_fallen_back()
    }
}
