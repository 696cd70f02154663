//! Parts of a master, for tests.

use std::sync::Arc;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use tokio::sync::{broadcast, watch};
use tokio::task::LocalSet;

use crate::reactor::{Publication, SessionRules};
use crate::roll::{Durable, PresenceRules, RingRules, Roll};
use crate::stats::Stats;

/// No test takes nearly as long.
const LIMIT: Duration = Duration::from_secs(20);

/// What slaves may do.
pub(crate) const RULES: SessionRules = SessionRules {
    hello_timeout: Duration::from_secs(5),
    write_timeout: Duration::from_secs(5),
    frame_bytes_max: FRAME_PAYLOAD_BYTES_MAX,
    window: 64,
    reconnect_rate: 5000,
};

/// A roll that begins with what is durable.
pub(crate) fn roll(durable: Durable) -> Roll {
    let presence = PresenceRules {
        late_after: 1.5,
        missing_after: 3.0,
        reconnect_window: Duration::from_secs(60),
    };
    let rings = RingRules {
        reports_max: 4,
        bytes_max: 1 << 20,
    };
    Roll::restore(durable, presence, rings, clock::boot()).unwrap()
}

/// Where readers would look.
pub(crate) fn publication() -> Publication {
    Publication {
        roll: watch::channel(Arc::default()).0,
        events: broadcast::channel(16).0,
        stats: Arc::new(Stats::default()),
    }
}

/// Runs a test as the reactor's thread runs everything.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bounded = async { tokio::time::timeout(LIMIT, test).await };
    LocalSet::new()
        .block_on(&runtime, bounded)
        .expect("the test hangs");
}
