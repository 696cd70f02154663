//! What the link says in the log: every change, and lasting trouble once a minute.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::session::slave::Opened;
use rollcall_protocol::{Moment, wire};

use super::budget::{Budget, PortUse};
use super::dial::ConnectError;
use super::end::LinkError;
use super::{OnExhaustion, ports};

/// Shortest time between two lines about the same trouble.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// Most kinds of trouble that are remembered: each master may have its own.
const TROUBLES_MAX: usize = 32;

/// Tells of a stream that runs backwards.
pub(super) fn log_resync(master: &str, stream: u64, sequence: u64) {
    tracing::warn!(
        event = "stream_resync",
        master,
        stream = %format_args!("{stream:016x}"),
        sequence,
        "the master knows more of this stream than the spool: the state folder is an older copy; its reports go on in a new stream"
    );
}

/// Tells that the master ends on purpose.
pub(super) fn log_goodbye(master: &str, goodbye: &wire::MasterGoodbye) {
    tracing::info!(
        event = "master_goodbye",
        master,
        back_min_ms = goodbye.back_min_ms,
        back_max_ms = goodbye.back_max_ms,
        "the master goes away for a while"
    );
}

/// Remembers what was said last.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// The troubles that last, and when each was logged.
    troubles: VecDeque<(String, Moment)>,
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
        let over = !std::mem::take(&mut self.troubles).is_empty();
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
    pub(super) fn failed(&mut self, master: &str, error: &LinkError, budget: &Budget) {
        if !self.is_news(format!("{master}: {error}")) {
            return;
        }
        match error {
            LinkError::Connect(ConnectError::NoPort { address }) => {
                let (sources, local_ports) = budget.origins(address.ip());
                ports::log_exhaustion(*address, sources, local_ports, ports::REPORTS_WAIT);
            }
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

    /// Per-message mode: the budget of ports was used up, or has room again.
    pub(super) fn ports_changed(&mut self, found: &PortUse, on_exhaustion: OnExhaustion) {
        if !found.is_exhausted {
            tracing::info!(
                event = "port_budget_free",
                peer = %found.destination,
                used = found.used,
                budget = found.budget,
                "ports are free again: each message has its own connection"
            );
            return;
        }
        let meanwhile = match on_exhaustion {
            OnExhaustion::Pool => "one pooled connection carries all until ports are free again",
            OnExhaustion::Wait => "reports stay in the spool until ports are free again",
        };
        tracing::warn!(
            event = "port_budget_used_up",
            peer = %found.destination,
            used = found.used,
            time_wait = found.time_wait,
            budget = found.budget,
            meanwhile,
            "this slave had to close first too often, and its ports for this master are in TIME_WAIT: something in between holds back that the master closes"
        );
    }

    fn is_news(&mut self, text: String) -> bool {
        let now = clock::boot();
        self.troubles
            .retain(|(_, logged)| now.saturating_since(*logged) < REPEAT_AFTER);
        if self.troubles.iter().any(|(known, _)| *known == text) {
            return false;
        }
        if self.troubles.len() == TROUBLES_MAX {
            self.troubles.pop_front();
        }
        self.troubles.push_back((text, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_is_told_once_however_they_take_turns() {
        let mut journal = Journal::default();
        for round in 0..3 {
            for master in ["a", "b"] {
                let news = journal.is_news(format!("{master}: refused"));
                assert_eq!(news, round == 0, "{master} in round {round}");
            }
        }
        for number in 0..2 * TROUBLES_MAX {
            assert!(journal.is_news(number.to_string()));
        }
        assert_eq!(journal.troubles.len(), TROUBLES_MAX);
    }
}
