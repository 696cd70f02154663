//! Counters that the reactor bumps and `/metrics` reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rollcall_protocol::Moment;

use crate::admission::Figures;
use crate::datagram::DatagramFigures;

/// Up to how many microseconds the commits of each bucket took.
pub(crate) const COMMIT_BOUNDS_US: [u64; 12] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
];

/// A number that only grows, or a gauge that one owner sets.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes `count` from a gauge.
    pub(crate) fn subtract(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The present value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All of the master's own figures.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    /// Of each listener.
    pub(crate) listeners: Figures,
    /// Of datagram mode.
    pub(crate) datagrams: DatagramFigures,
    /// Connections accepted since the start.
    pub(crate) accepted: Counter,
    /// accept(2) calls that failed.
    pub(crate) accept_errors: Counter,
    /// Connections open now.
    pub(crate) connections: Counter,
    /// Connections that wait for the next process as well, and the shards that they wait in.
    pub(crate) parked: Counter,
    pub(crate) parking_shards: Counter,
    /// Connections closed because of what the peer sent or did not send.
    pub(crate) refused: Counter,
    /// Connection tasks that panicked.
    pub(crate) connection_panics: Counter,
    /// Reports applied.
    pub(crate) applied: Counter,
    /// Reports that came again.
    pub(crate) duplicates: Counter,
    /// Acks written.
    pub(crate) acks: Counter,
    /// Groups committed.
    pub(crate) commits: Counter,
    /// Time spent committing, in microseconds.
    pub(crate) commit_time_us: Counter,
    /// Commits by how long they took: one count for each of [`COMMIT_BOUNDS_US`], and one beyond.
    pub(crate) commit_buckets: [Counter; COMMIT_BOUNDS_US.len() + 1],
    /// Bytes of redo written.
    pub(crate) redo_bytes: Counter,
    /// When the commit in hand began, in milliseconds on the boot clock; 0 between commits.
    pub(crate) committing_since_ms: Counter,
    /// 1 while the store itself says that it can't write, and tries again.
    pub(crate) store_refuses: Counter,
    /// Bytes that the remembered reports of all slaves take.
    pub(crate) reports_bytes: Counter,
    /// Databases that were set aside as damaged and are still there.
    pub(crate) set_aside: Counter,
    /// Events that could not be read because their rows are damaged.
    pub(crate) events_damaged: Counter,
    /// Log lines that rate limits held back.
    pub(crate) suppressed: Counter,
    /// The newest sign of life of the reactor: milliseconds on the boot clock. It must be set at
    /// least once a second, or `/healthz` says that the reactor hangs.
    pub(crate) reactor_beat_ms: Counter,
}

impl Stats {
    /// Notes that a commit has begun.
    pub(crate) fn commit_begun(&self, now: Moment) {
        self.committing_since_ms.set(milliseconds(now));
    }

    /// For how many milliseconds the commit in hand has been under way; 0 between commits.
    pub(crate) fn commit_age_ms(&self, now: Moment) -> u64 {
        match self.committing_since_ms.get() {
            0 => 0,
            since_ms => milliseconds(now).saturating_sub(since_ms),
        }
    }

    /// Notes a commit.
    pub(crate) fn committed(&self, took: Duration, redo_bytes: u64) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = COMMIT_BOUNDS_US.partition_point(|bound_us| *bound_us < took_us);
        self.committing_since_ms.set(0);
        self.store_refuses.set(0);
        self.commit_buckets[bucket].add(1);
        self.commits.add(1);
        self.commit_time_us.add(took_us);
        self.redo_bytes.add(redo_bytes);
    }

    /// Notes that the reactor lives.
    pub(crate) fn beat(&self, now: Moment) {
        self.reactor_beat_ms.set(milliseconds(now));
    }
}

/// A moment as [`Stats::reactor_beat_ms`] has it.
pub(crate) fn milliseconds(at: Moment) -> u64 {
    u64::try_from(at.since_origin().as_millis()).unwrap_or(u64::MAX)
}
