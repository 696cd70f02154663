//! When to try again.

use core::time::Duration;

use crate::Moment;

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

/// Exponential backoff with full jitter: each pause is drawn from zero to a bound that doubles, on
/// the first retry too, so that slaves that lost their master together do not come back together.
/// At the cap the pause is drawn from half of it to one and a half, which keeps a herd spread.
#[derive(Clone, Debug)]
pub struct Backoff {
    limits: BackoffLimits,
    attempts: u32,
    up_since: Option<Moment>,
    told: Option<(Duration, Duration)>,
}

impl Backoff {
    /// A backoff that has seen no failure.
    pub fn new(limits: BackoffLimits) -> Self {
        Self {
            limits,
            attempts: 0,
            up_since: None,
            told: None,
        }
    }

    /// Number of failures since the last session that stayed up.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// A session has been established.
    pub fn handle_up(&mut self, now: Moment) {
        self.up_since = Some(now);
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
        let pause = match self.told.take() {
            Some((min, max)) => min + share(max - min, random),
            None => self.own_pause(random),
        };
        self.attempts = self.attempts.saturating_add(1);
        pause
    }

    fn own_pause(&self, random: u64) -> Duration {
        let BackoffLimits { base, cap, .. } = self.limits;
        let grown = base.saturating_mul(1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX));
        if grown < cap {
            share(grown, random)
        } else {
            cap / 2 + share(cap, random)
        }
    }
}

/// `whole` times random / 2^64.
fn share(whole: Duration, random: u64) -> Duration {
    let nanos = (whole.as_nanos() * u128::from(random)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn pauses_double_up_to_the_cap_and_stay_spread_there() {
        let mut backoff = Backoff::new(LIMITS);
        let half = 1 << 63;
        for expected_ms in [50, 100, 200, 400, 800, 1600, 3200, 10_000, 10_000] {
            let pause = backoff.handle_down(Moment::ZERO, half);
            assert_eq!(pause.as_millis(), expected_ms);
        }
        for _ in 0..100 {
            assert_eq!(backoff.handle_down(Moment::ZERO, 0), LIMITS.cap / 2);
        }
        assert!(backoff.handle_down(Moment::ZERO, u64::MAX) < LIMITS.cap * 3 / 2);
    }

    #[test]
    fn only_a_session_that_stayed_up_resets() {
        let mut backoff = Backoff::new(LIMITS);
        for _ in 0..5 {
            backoff.handle_down(Moment::ZERO, 0);
        }
        backoff.handle_up(Moment::ZERO);
        backoff.handle_down(Moment::ZERO + Duration::from_secs(59), 0);
        assert_eq!(backoff.attempts(), 6);
        backoff.handle_up(Moment::ZERO);
        backoff.handle_down(Moment::ZERO + Duration::from_secs(60), 0);
        assert_eq!(backoff.attempts(), 1);
    }

    #[test]
    fn the_masters_window_wins_once() {
        let mut backoff = Backoff::new(LIMITS);
        backoff.handle_window(Duration::from_secs(2), Duration::from_secs(6));
        let pause = backoff.handle_down(Moment::ZERO, 1 << 63);
        assert_eq!(pause, Duration::from_secs(4));
        assert!(backoff.handle_down(Moment::ZERO, u64::MAX) < Duration::from_secs(1));
    }
}
