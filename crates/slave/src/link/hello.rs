//! What this slave says of itself and of its spool.

use rollcall_protocol::limits::{VERSION_MAX, VERSION_MIN};
use rollcall_protocol::wire::{self, GoodbyeReason, Hello, to_master::Kind};

use super::LinkConfig;
use crate::spool::Standing;

/// The Hello of a session in `mode`, with which so many `frames` go.
pub(super) fn hello(
    config: &LinkConfig,
    standing: Standing,
    mode: wire::Mode,
    frames: u32,
) -> Hello {
    Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        slave_id: standing.slave_id.to_vec(),
        name: config.name.clone(),
        stream: standing.stream,
        next_sequence: standing.next_sequence,
        interval_ms: u32::try_from(config.interval.as_millis()).unwrap_or(u32::MAX),
        mode: mode.into(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        backlog: standing.backlog,
        pending: standing.pending,
        frames,
        labels: config.labels.clone(),
        previous: standing.previous,
        question: 0,
    }
}

/// The last word.
pub(super) fn goodbye() -> Kind {
    Kind::Goodbye(wire::SlaveGoodbye {
        reason: GoodbyeReason::Stop.into(),
        back_ms: 0,
    })
}
