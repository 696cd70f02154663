//! When to try again.

use core::time::Duration;

use crate::Moment;

/// For so long after a loss a slave that was told a window keeps its pauses within its width:
/// longer than most hosts take to boot.
pub const WINDOW_KEPT: Duration = Duration::from_secs(300);
/// How far the pauses grow in that time, with a quarter of it, if the window is narrower.
pub const WINDOW_KEPT_LEAST: Duration = Duration::from_secs(1);

/// Bounds of the pause between two attempts to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffLimits {
    /// The first pause is drawn from zero to this.
    pub base: Duration,
    /// Pauses grow no further than this, plus its jitter.
    pub cap: Duration,
    /// A session must have stayed up for this long before the pauses start from `base` again.
    pub reset_after: Duration,
}

/// Backoff with jitter: the first pause is drawn from zero to `base`, so that slaves that lost their
/// master together do not come back together; a later one from a quarter to the whole of the time for
/// which there has been no master, so that pauses grow exponentially and all slaves are back, evenly
/// spread, within as long again as the master was away. At the cap the pause is drawn from half of it to
/// one and a half, and grows no more.
///
/// A window that the master has told stands for `base` until the next session: slaves whose first
/// attempt was too early do not come in a narrower stream than those that have met the master. They do
/// not come in a broader one either: for [`WINDOW_KEPT`] the pauses grow no further than the window's
/// width, or [`WINDOW_KEPT_LEAST`] if that is longer, so that a whole fleet is back within that time of
/// the end of an outage. Each trying once in a window that was sized for all of them is no burden to
/// the master. After that the pauses grow with the time that the outage has lasted beyond it.
#[derive(Clone, Debug)]
pub struct Backoff {
    limits: BackoffLimits,
    attempts: u32,
    up_since: Option<Moment>,
    /// When the first of the attempts failed.
    down_since: Moment,
    told: Option<(Duration, Duration)>,
    /// The width of the window that was told last.
    spread: Duration,
}

impl Backoff {
    /// A backoff that has seen no failure.
    pub fn new(limits: BackoffLimits) -> Self {
        Self {
            limits,
            attempts: 0,
            up_since: None,
            down_since: Moment::ZERO,
            told: None,
            spread: Duration::ZERO,
        }
    }

    /// Other bounds from now on. What the master told stays.
    pub fn set_limits(&mut self, limits: BackoffLimits) {
        self.limits = limits;
    }

    /// Number of failures since the last session that stayed up.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A session has been established.
    pub fn handle_up(&mut self, now: Moment) {
        self.up_since = Some(now);
    }

    /// A connection has done what it was for, and ended as it should: pauses start from `base` again.
    /// What the master told stays.
    pub fn handle_done(&mut self) {
        self.up_since = None;
        self.attempts = 0;
    }

    /// The master told when to come back, in Welcome or Goodbye: it wins over the own pause, once.
    pub fn handle_window(&mut self, min: Duration, max: Duration) {
        self.told = Some((min, max.max(min)));
    }

    /// A session or an attempt has ended: how long to wait before the next one. `random` is drawn
    /// by the caller, uniformly from all values.
    pub fn handle_down(&mut self, now: Moment, random: u64) -> Duration {
        let stayed = self.up_since.take().map(|up| now.saturating_since(up));
        if stayed.is_some_and(|stayed| stayed >= self.limits.reset_after) {
            self.attempts = 0;
        }
        if self.attempts == 0 {
            self.down_since = now;
        }
        let pause = match self.told.take() {
            Some((min, max)) => {
                self.spread = max - min;
                min + share(max - min, random)
            }
            None => self.own_pause(now, random),
        };
        self.attempts = self.attempts.saturating_add(1);
        pause
    }

    fn own_pause(&self, now: Moment, random: u64) -> Duration {
        let BackoffLimits { base, cap, .. } = self.limits;
        let away = now.saturating_since(self.down_since);
        let grown = if self.spread.is_zero() {
            away
        } else {
            let beyond = away.checked_sub(WINDOW_KEPT).unwrap_or_default();
            beyond.max(WINDOW_KEPT_LEAST.min(away / 4))
        };
        let bound = grown.max(self.spread).max(base);
        if bound >= cap * 3 / 2 {
            return cap / 2 + share(cap, random);
        }
        let least = if self.attempts == 0 {
            Duration::ZERO
        } else {
            bound / 4
        };
        least + share(bound - least, random)
    }
}

/// `whole` times random / 2^64.
fn share(whole: Duration, random: u64) -> Duration {
    let nanos = (whole.as_nanos() * u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const LIMITS: BackoffLimits = BackoffLimits {
        base: Duration::from_millis(100),
        cap: Duration::from_secs(10),
        reset_after: Duration::from_secs(60),
    };

    #[test]
    fn the_first_retry_is_jittered_over_its_whole_range() {
        let pause = |random| Backoff::new(LIMITS).handle_down(Moment::ZERO, random);
        assert_eq!(pause(0), Duration::ZERO);
        assert_eq!(pause(1 << 63), LIMITS.base / 2);
        assert!(pause(u64::MAX) < LIMITS.base);
    }

    /// The pauses that follow one another where all of them are drawn with `random`.
    fn pauses_ms(backoff: &mut Backoff, count: usize, random: u64) -> Vec<u128> {
        let mut now = Moment::ZERO + Duration::from_secs(1000);
        let next = |_| {
            let pause = backoff.handle_down(now, random);
            now = now + pause;
            pause.as_millis()
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn pauses_grow_with_the_time_away_up_to_the_cap_and_stay_spread_there() {
        let mut longest = Backoff::new(LIMITS);
        assert_eq!(
            pauses_ms(&mut longest, 10, u64::MAX),
            [99, 99, 199, 399, 799, 1599, 3199, 6399, 12_799, 14_999]
        );
        let half = 1 << 63;
        let mut middling = Backoff::new(LIMITS);
        let pauses = pauses_ms(&mut middling, 30, half);
        assert_eq!(pauses[..5], [50, 62, 70, 114, 185]);
        assert_eq!(pauses[29], 10_000);
        assert_eq!(
            Backoff::new(LIMITS).handle_down(Moment::ZERO, 0),
            Duration::ZERO
        );
    }

    #[test]
    fn only_a_session_that_stayed_up_resets() {
        let mut backoff = Backoff::new(LIMITS);
        for _ in 0..5 {
            backoff.handle_down(Moment::ZERO, 0);
        }
        backoff.handle_up(Moment::ZERO);
        let short = Moment::ZERO + Duration::from_secs(59);
        assert_eq!(backoff.handle_down(short, 0), LIMITS.cap / 2);
        assert_eq!(backoff.attempts(), 6);
        backoff.handle_up(Moment::ZERO);
        let long = Moment::ZERO + Duration::from_secs(60);
        assert_eq!(backoff.handle_down(long, 0), Duration::ZERO);
        assert_eq!(backoff.attempts(), 1);
    }

    #[test]
    fn what_is_done_resets_and_keeps_the_window() {
        let mut backoff = Backoff::new(LIMITS);
        for _ in 0..5 {
            backoff.handle_down(Moment::ZERO, 0);
        }
        backoff.handle_window(Duration::ZERO, Duration::from_secs(2));
        backoff.handle_done();
        assert_eq!(backoff.attempts(), 0);
        let pause = backoff.handle_down(Moment::ZERO, 1 << 63);
        assert_eq!(pause, Duration::from_secs(1));
    }

    #[test]
    fn new_limits_leave_the_window_as_it_is() {
        let mut backoff = Backoff::new(LIMITS);
        backoff.handle_window(Duration::ZERO, Duration::from_secs(4));
        backoff.set_limits(BackoffLimits {
            cap: Duration::from_secs(20),
            ..LIMITS
        });
        assert_eq!(pauses_ms(&mut backoff, 2, u64::MAX), [3999, 3999]);
        let later = Moment::ZERO + Duration::from_secs(10_000);
        assert_eq!(backoff.handle_down(later, 0), Duration::from_secs(10));
    }

    #[test]
    fn who_was_too_early_stays_within_the_width_of_the_window() {
        let mut backoff = Backoff::new(LIMITS);
        backoff.handle_window(Duration::from_secs(1), Duration::from_secs(5));
        assert_eq!(
            pauses_ms(&mut backoff, 3, 0),
            [1000, 1000, 1000],
            "from a quarter of the width"
        );
        backoff.handle_window(Duration::from_secs(1), Duration::from_secs(5));
        assert_eq!(
            pauses_ms(&mut backoff, 3, u64::MAX),
            [4999, 3999, 3999],
            "to all of it"
        );
    }

    #[test]
    fn the_window_keeps_pauses_from_growing_while_a_host_may_boot() {
        let told = |window: Duration| {
            let mut backoff = Backoff::new(LIMITS);
            backoff.handle_window(Duration::ZERO, window);
            backoff.handle_down(Moment::ZERO, 0);
            backoff
        };
        let longest = |backoff: &Backoff, away: Duration| {
            backoff
                .clone()
                .handle_down(Moment::ZERO + away, u64::MAX)
                .as_millis()
        };
        let wide = told(Duration::from_secs(4));
        assert_eq!(longest(&wide, Duration::from_secs(1)), 3999);
        assert_eq!(longest(&wide, WINDOW_KEPT), 3999);
        let second = Duration::from_secs(1);
        assert_eq!(longest(&wide, WINDOW_KEPT + 8 * second), 7999);
        assert_eq!(longest(&wide, 2 * WINDOW_KEPT), 14_999);
        let narrow = told(Duration::from_millis(200));
        assert_eq!(longest(&narrow, Duration::from_millis(100)), 199);
        assert_eq!(longest(&narrow, Duration::from_millis(800)), 199);
        assert_eq!(longest(&narrow, Duration::from_millis(2000)), 499);
        assert_eq!(longest(&narrow, WINDOW_KEPT), 999);
    }

    #[test]
    fn the_masters_window_wins_once() {
        let mut backoff = Backoff::new(LIMITS);
        backoff.handle_window(Duration::from_secs(2), Duration::from_secs(6));
        let pause = backoff.handle_down(Moment::ZERO, 1 << 63);
        assert_eq!(pause, Duration::from_secs(4));
        let next = backoff.handle_down(Moment::ZERO, u64::MAX);
        assert!(next < Duration::from_secs(4), "{next:?}");
    }
}
