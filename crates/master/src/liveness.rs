//! Whether the master lives, seen from outside of its reactor: what `/healthz` answers, and what the
//! service manager's watchdog is fed by.
//!
//! Accepting, the roll and its deadlines share the reactor's thread: its sign of life is that of all
//! three. (A task of them that ends or panics takes the daemon with it.) The store has a thread of its own.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_os::systemd::notify::Pulse;
use rollcall_protocol::Moment;
use rollcall_protocol::api::Presence;
use tokio::sync::watch;

use crate::stats::{Stats, milliseconds};
use crate::view::RollSnapshot;

/// How old the reactor's last sign of life may be. It gives ten a second; a machine that is busy
/// with other things gets this long.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How long a commit may take of which the store says nothing. A disk that refuses is told at once, and
/// tried again for as long as it takes; one that hangs for so long may as well be a bug of ours.
const COMMIT_MAX: Duration = Duration::from_secs(300);

/// Looks at the master from outside.
#[derive(Clone, Debug)]
pub(crate) struct Liveness {
    roll: watch::Receiver<Arc<RollSnapshot>>,
    stats: Arc<Stats>,
    started: Moment,
}

impl Liveness {
    /// Of the master that publishes these.
    pub(crate) fn new(roll: watch::Receiver<Arc<RollSnapshot>>, stats: Arc<Stats>) -> Self {
        Self {
            roll,
            stats,
            started: clock::boot(),
        }
    }

    /// Why the master can't be said to live; none if it does.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.reactor_trouble()
            .or_else(|| self.store_hangs(clock::boot()))
    }

    fn reactor_trouble(&self) -> Option<String> {
        if self.roll.has_changed().is_err() {
            return Some("the reactor has ended".to_owned());
        }
        let silence = silence(
            milliseconds(clock::boot()),
            self.stats.reactor_beat_ms.get(),
            milliseconds(self.started),
        );
        (silence > SILENCE_MAX).then(|| {
            format!(
                "the reactor has given no sign of life for {} s",
                silence.as_secs()
            )
        })
    }

    fn store_hangs(&self, now: Moment) -> Option<String> {
        let commit = Duration::from_millis(self.stats.commit_age_ms(now));
        let hangs = commit > COMMIT_MAX && self.stats.store_refuses.get() == 0;
        hangs.then(|| {
            format!(
                "the store has been in one commit for {} s",
                commit.as_secs()
            )
        })
    }

    /// The master's figures as one line, with the rate of reports since the last look.
    pub(crate) fn pulses(self) -> impl FnMut() -> Pulse + Send {
        let mut last = (clock::boot(), self.stats.applied.get());
        move || {
            let now = (clock::boot(), self.stats.applied.get());
            let rate = per_second(now.1.saturating_sub(last.1), now.0.saturating_since(last.0));
            last = now;
            let trouble = self.trouble();
            let mut status = status(&self.roll.borrow(), rate);
            if let Some(trouble) = &trouble {
                status = format!("{trouble}; {status}");
            }
            Pulse {
                status,
                alive: trouble.is_none(),
            }
        }
    }
}

/// For how long the reactor has been silent. Before its first sign of life it is as old as this look.
fn silence(now_ms: u64, beat_ms: u64, started_ms: u64) -> Duration {
    Duration::from_millis(now_ms.saturating_sub(beat_ms.max(started_ms)))
}

/// Rounded to the nearest; within a millisecond nothing can be said.
fn per_second(count: u64, time: Duration) -> u64 {
    let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    count
        .saturating_mul(1000)
        .saturating_add(time_ms / 2)
        .checked_div(time_ms)
        .unwrap_or(0)
}

/// "roll 412: 409 up, 2 late, 1 missing; 41 reports/s"
fn status(snapshot: &RollSnapshot, reports_per_s: u64) -> String {
    let count = |presence| {
        let slaves = snapshot.slaves.iter();
        slaves.filter(|slave| slave.presence == presence).count()
    };
    let mut text = format!(
        "roll {}: {} up, {} late, {} missing",
        snapshot.slaves.len(),
        count(Presence::Up),
        count(Presence::Late),
        count(Presence::Missing),
    );
    let mut add = |count, word| {
        if count > 0 {
            // Writing to a String can't fail.
            let _ = write!(text, ", {count} {word}");
        }
    };
    add(count(Presence::Left), "left");
    add(count(Presence::Expected), "expected");
    let _ = write!(text, "; {reports_per_s} reports/s");
    if let Some(degraded) = &snapshot.degraded {
        let _ = write!(text, "; nothing is stored: {}", degraded.reason);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Degraded, SlaveView};

    #[test]
    fn silence_counts_from_the_newest_sign_of_life() {
        assert_eq!(silence(11_000, 0, 500), Duration::from_millis(10_500));
        assert_eq!(silence(11_000, 9_000, 500), Duration::from_secs(2));
        assert_eq!(silence(11_000, 11_001, 500), Duration::ZERO);
    }

    #[test]
    fn a_rate_is_rounded_and_needs_time() {
        assert_eq!(per_second(82, Duration::from_secs(2)), 41);
        assert_eq!(per_second(1, Duration::from_secs(2)), 1);
        assert_eq!(per_second(1, Duration::from_millis(2001)), 0);
        assert_eq!(per_second(7, Duration::ZERO), 0);
    }

    fn snapshot(presences: &[Presence]) -> RollSnapshot {
        let slave = |presence: &Presence| {
            let mut view = SlaveView::new([0; 16], "web-1".to_owned(), 0);
            view.presence = *presence;
            Arc::new(view)
        };
        RollSnapshot {
            slaves: presences.iter().map(slave).collect(),
            degraded: None,
        }
    }

    #[test]
    fn the_status_counts_the_roll() {
        let roll = snapshot(&[
            Presence::Up,
            Presence::Up,
            Presence::Late,
            Presence::Missing,
        ]);
        assert_eq!(
            status(&roll, 41),
            "roll 4: 2 up, 1 late, 1 missing; 41 reports/s"
        );
        let roll = snapshot(&[Presence::Left, Presence::Expected]);
        assert_eq!(
            status(&roll, 0),
            "roll 2: 0 up, 0 late, 0 missing, 1 left, 1 expected; 0 reports/s"
        );
    }

    fn liveness() -> (watch::Sender<Arc<RollSnapshot>>, Liveness) {
        let (sender, roll) = watch::channel(Arc::default());
        let stats = Arc::new(Stats::default());
        stats.beat(clock::boot());
        (sender, Liveness::new(roll, stats))
    }

    #[test]
    fn a_refusing_disk_is_told_and_is_no_hanging_store() {
        let (sender, liveness) = liveness();
        let begun = clock::boot();
        liveness.stats.commit_begun(begun);
        let later = begun + COMMIT_MAX;
        assert_eq!(liveness.store_hangs(later), None);
        let later = later + Duration::from_secs(1);
        let trouble = liveness.store_hangs(later).unwrap();
        assert_eq!(trouble, "the store has been in one commit for 301 s");
        liveness.stats.store_refuses.set(1);
        assert_eq!(liveness.store_hangs(later), None);
        sender.send_replace(Arc::new(RollSnapshot {
            slaves: Vec::new(),
            degraded: Some(Degraded {
                reason: "the disk is full".to_owned(),
                since: Moment::ZERO,
                since_ms: 0,
            }),
        }));
        let pulse = liveness.pulses()();
        assert!(pulse.alive, "{pulse:?}");
        assert!(
            pulse
                .status
                .ends_with("nothing is stored: the disk is full"),
            "{pulse:?}"
        );
    }

    #[test]
    fn a_reactor_that_has_ended_is_not_alive() {
        let (sender, liveness) = liveness();
        drop(sender);
        let pulse = liveness.pulses()();
        assert!(!pulse.alive);
        assert!(
            pulse.status.starts_with("the reactor has ended; roll 0"),
            "{pulse:?}"
        );
    }
}
