//! The two clocks: one that only runs forward, and the one that people read.

use std::time::Duration;

use rollcall_protocol::Moment;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Time since boot, including time in which the machine was suspended (CLOCK_BOOTTIME,
/// clock_gettime(2)). All deadlines run on it: no step of the wall clock moves them.
pub fn boot() -> Moment {
    Moment::new(to_duration(clock_gettime(ClockId::Boottime)))
}

/// The wall clock in milliseconds since 1970-01-01T00:00:00Z. For people and records only.
pub fn wall_ms() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec
        .saturating_mul(1000)
        .saturating_add(now.tv_nsec / 1_000_000)
}

fn to_duration(at: Timespec) -> Duration {
    // CLOCK_BOOTTIME is never negative and tv_nsec is below 10^9 (clock_gettime(2)).
    Duration::new(
        u64::try_from(at.tv_sec).unwrap_or(0),
        u32::try_from(at.tv_nsec).unwrap_or(0),
    )
}
