//! What the spool's thread shows of itself to those who must not wait for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rollcall_protocol::Moment;

/// Written by the spool's thread only.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// When the work in hand began, in milliseconds on the boot clock; 0 between two.
    busy_since_ms: AtomicU64,
    backlog: AtomicU64,
}

impl Figures {
    /// Work begins.
    pub(crate) fn begin(&self, now: Moment) {
        self.busy_since_ms
            .store(milliseconds(now).max(1), Ordering::Relaxed);
    }

    /// It has ended, with that many reports unacked.
    pub(super) fn end(&self, backlog: u64) {
        self.backlog.store(backlog, Ordering::Relaxed);
        self.busy_since_ms.store(0, Ordering::Relaxed);
    }

    /// How long the work in hand has taken; zero between two.
    pub(crate) fn busy_for(&self, now: Moment) -> Duration {
        match self.busy_since_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since_ms => Duration::from_millis(milliseconds(now).saturating_sub(since_ms)),
        }
    }

    /// Reports that were not acked when the last work ended.
    pub(crate) fn backlog(&self) -> u64 {
        self.backlog.load(Ordering::Relaxed)
    }
}

fn milliseconds(at: Moment) -> u64 {
    u64::try_from(at.since_origin().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use rollcall_os::clock;

    use super::*;

    #[test]
    fn work_in_hand_grows_old_until_it_ends() {
        let figures = Figures::default();
        let begun = clock::boot();
        assert_eq!(figures.busy_for(begun), Duration::ZERO);
        figures.begin(begun);
        let later = begun + Duration::from_secs(7);
        assert_eq!(figures.busy_for(later).as_secs(), 7);
        figures.end(3);
        assert_eq!(figures.busy_for(later), Duration::ZERO);
        assert_eq!(figures.backlog(), 3);
    }
}
