//! Counters that the reactor bumps and `/metrics` reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows, or a gauge that one owner sets.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
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
    /// Connections accepted since the start.
    pub(crate) accepted: Counter,
    /// accept(2) calls that failed.
    pub(crate) accept_errors: Counter,
    /// Connections open now.
    pub(crate) connections: Counter,
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
    /// Bytes of redo written.
    pub(crate) redo_bytes: Counter,
}
