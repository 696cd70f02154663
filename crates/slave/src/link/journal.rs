//! What the link says in the log: every change, and lasting trouble once a minute.

use std::net::SocketAddr;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::session::slave::Opened;
use rollcall_protocol::{Moment, wire};

use super::connection::ConnectError;
use super::{LinkError, ports};

/// Shortest time between two lines about the same trouble.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// Remembers what was said last.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// The trouble that lasts, and when it was logged.
    trouble: Option<(String, Moment)>,
    opened_before: bool,
}

impl Journal {
    /// A session is open. Each one of pooled mode is told; in per-message mode, where every message
    /// has its own, only the first and the one that ends some trouble.
    pub(super) fn opened(
        &mut self,
        master: &str,
        peer: Option<SocketAddr>,
        opened: &Opened,
        each: bool,
    ) {
        let over = self.trouble.take().is_some();
        let first = !std::mem::replace(&mut self.opened_before, true);
        if each || over || first {
            tracing::info!(
                event = "session_opened",
                master,
                peer = peer.map(tracing::field::display),
                master_version = opened.welcome.master_version,
                window = opened.welcome.window,
                forgotten = opened.gaps.len(),
                "the master has welcomed this slave"
            );
        }
    }

    /// A connection could not be made or was lost.
    pub(super) fn failed(&mut self, master: &str, error: &LinkError) {
        if !self.is_news(format!("{master}: {error}")) {
            return;
        }
        match error {
            LinkError::Connect(ConnectError::NoPort { address }) => ports::log_exhaustion(*address),
            LinkError::Connect(_) => tracing::warn!(
                event = "master_unreachable",
                master,
                error = %error,
                "can't reach a master; reports stay in the spool"
            ),
            _ => tracing::warn!(
                event = "session_lost",
                master,
                error = %error,
                "the session with the master has ended; what is not acked is sent again"
            ),
        }
    }

    /// The master refused the session.
    pub(super) fn refused(&mut self, master: &str, error: &wire::Error) {
        let code = error.code().as_str_name();
        if self.is_news(format!("{master}: {code} {}", error.text)) {
            tracing::error!(
                event = "session_refused",
                master,
                code,
                error = error.text,
                retry = error.retry,
                "the master refuses this slave"
            );
        }
    }

    fn is_news(&mut self, text: String) -> bool {
        let now = clock::boot();
        let known = self.trouble.as_ref().is_some_and(|(known, logged)| {
            *known == text && now.saturating_since(*logged) < REPEAT_AFTER
        });
        if !known {
            self.trouble = Some((text, now));
        }
        !known
    }
}
