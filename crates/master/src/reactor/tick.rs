//! The passing of time: deadlines, what the reactor suspects of itself, and the proof that it listens.

use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::Moment;

use super::Reactor;
use crate::roll::Stamp;

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// A tick that comes later than this was held up: the process was stopped, the machine suspended or
/// overloaded. Slaves that could not be heard meanwhile are excused.
const LAG_MAX: Duration = Duration::from_millis(100);
/// From this lag on it is worth a line in the log.
const LAG_TOLD: Duration = Duration::from_secs(1);
/// While one commit takes longer than this, connections are not being read, and silence proves nothing.
const COMMIT_MAX: Duration = Duration::from_millis(200);
/// A commit that takes longer than this is told: the disk hangs.
const COMMIT_TOLD: Duration = Duration::from_secs(1);
/// How often the moment of listening becomes durable.
const LISTENING_EVERY: Duration = Duration::from_secs(1);

impl Reactor {
    /// Ticks for as long as the daemon lives.
    pub(crate) async fn keep_time(&self) {
        let mut last = clock::boot();
        loop {
            tokio::time::sleep(TICK).await;
            let now = clock::boot();
            self.tick(last, now);
            last = now;
        }
    }

    fn tick(&self, last: Moment, now: Moment) {
        self.stats().beat(now);
        let passed = now.saturating_since(last);
        let commit = self
            .committing_since
            .get()
            .map_or(Duration::ZERO, |since| now.saturating_since(since));
        let stalled = commit > COMMIT_MAX;
        let lag = passed.saturating_sub(TICK);
        // After a halt of the process itself the commit may be over by now.
        if commit > COMMIT_TOLD && lag <= LAG_MAX && !self.is_degraded() {
            self.tell_stalled();
        }
        let mut roll = self.roll();
        if stalled || lag > LAG_MAX {
            roll.excuse(passed);
        }
        if lag > LAG_TOLD {
            tracing::warn!(
                event = "reactor_stalled",
                lag_ms = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX),
                "the master itself was not listening; no slave is blamed for it"
            );
        }
        roll.handle_tick(Stamp {
            at: now,
            wall_ms: clock::wall_ms(),
        });
        let wanted = roll.has_group();
        let reports_bytes = u64::try_from(roll.reports_bytes()).unwrap_or(u64::MAX);
        self.stats().reports_bytes.set(reports_bytes);
        drop(roll);
        self.count_parked();
        let listened = now.saturating_since(self.committed_at.get()) >= LISTENING_EVERY;
        if wanted || listened {
            self.want_commit();
        }
        self.publish_if_quiet();
    }

    fn count_parked(&self) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let stats = self.stats();
        stats.parked.set(count(self.parking.len()));
        stats.parking_shards.set(count(self.parking.shards()));
    }

    /// The store's thread is busy with the commit that hangs and can't tell of it itself.
    fn tell_stalled(&self) {
        const REASON: &str =
            "stalled: the disk has not taken a commit in time; look at its load and health";
        tracing::warn!(
            event = "store_stalled",
            reason = REASON,
            "a commit hangs: nothing is acked until it is on disk"
        );
        self.degrade(REASON.to_owned());
    }
}
