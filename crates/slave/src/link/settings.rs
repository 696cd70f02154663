//! How this slave talks to its masters, and what it says of itself.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_os::outgoing::Outgoing;
use rollcall_os::socket::Liveness;
use rollcall_protocol::backoff::BackoffLimits;
use rollcall_protocol::datagram::ResendLimits;
use rollcall_protocol::session::slave::SlaveTimeouts;
use rollcall_protocol::wire;

/// The link's configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LinkConfig {
    /// The slave's name.
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Time between two reports.
    pub(crate) interval: Duration,
    /// "host:port", the most preferred first; at least one.
    pub(crate) masters: Vec<String>,
    /// One connection for all, one for each message, or none.
    pub(crate) mode: wire::Mode,
    /// Where connections come from.
    pub(crate) outgoing: Outgoing,
    /// Per-message mode: who closes.
    pub(crate) close: Close,
    /// Per-message mode: what to do when the ports for a master are used up.
    pub(crate) on_exhaustion: OnExhaustion,
    /// How long an attempt to connect to one address may take.
    pub(crate) connect_timeout: Duration,
    /// How long answers may take.
    pub(crate) timeouts: SlaveTimeouts,
    /// Datagram mode: pauses before a question is sent again.
    pub(crate) resend: ResendLimits,
    /// Pauses between attempts.
    pub(crate) backoff: BackoffLimits,
    /// For how long the most preferred master must be there again before the slave goes back to it.
    pub(crate) return_after: Duration,
    /// Pooled mode: a connection on which nothing was sent for so long is closed until there is
    /// something to send. `None`: never.
    pub(crate) idle_timeout: Option<Duration>,
    /// Pooled mode: the longest life of a connection. `None`: no limit.
    pub(crate) lifetime_max: Option<Duration>,
    /// How a dead peer is noticed.
    pub(crate) liveness: Liveness,
    /// How long it may go on sending when it is to stop.
    pub(crate) drain: Duration,
}

/// How a connection of per-message mode ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// The master closes, right after its ack; so TIME_WAIT is on its side.
    MasterFirst,
    /// The slave resets it as soon as all is acked: there is no TIME_WAIT on either side.
    Abort,
}

/// What per-message mode does when a master's ports are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnExhaustion {
    /// Goes on over one pooled connection until ports are free again.
    Pool,
    /// Keeps the reports in the spool until ports are free again.
    Wait,
}
