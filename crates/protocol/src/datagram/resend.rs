//! When a question is sent again.

use core::time::Duration;

/// Bounds of the pause before a question is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResendLimits {
    /// About the first one.
    pub first: Duration,
    /// They double up to about this.
    pub longest: Duration,
}

/// The pauses of one question: they double, and each is spread over a quarter less to a quarter
/// more, so that slaves that lost a master together do not ask again together.
#[derive(Clone, Copy, Debug)]
pub struct Resend {
    limits: ResendLimits,
    sent: u32,
}

impl Resend {
    /// For a question that was not sent yet.
    pub fn new(limits: ResendLimits) -> Self {
        Self { limits, sent: 0 }
    }

    /// How often it was sent.
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// It has been sent: how long to wait for the answer. `random` is drawn by the caller, uniformly
    /// from all values.
    pub fn handle_sent(&mut self, random: u64) -> Duration {
        let ResendLimits { first, longest } = self.limits;
        let doubled = 1_u32.checked_shl(self.sent).unwrap_or(u32::MAX);
        let about = first.saturating_mul(doubled).min(longest);
        self.sent = self.sent.saturating_add(1);
        let spread = ((about / 2).as_nanos() * u128::from(random)) >> 64;
        about / 4 * 3 + Duration::from_nanos(u64::try_from(spread).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ResendLimits = ResendLimits {
        first: Duration::from_millis(200),
        longest: Duration::from_secs(1),
    };

    #[test]
    fn pauses_double_up_to_the_longest_and_are_spread() {
        let mut middle = Resend::new(LIMITS);
        let pauses = [0; 5].map(|_: u8| middle.handle_sent(1 << 63).as_millis());
        assert_eq!(pauses, [200, 400, 800, 1000, 1000]);
        let mut resend = Resend::new(LIMITS);
        assert_eq!(resend.handle_sent(0), LIMITS.first / 4 * 3);
        assert!(resend.handle_sent(u64::MAX) < LIMITS.first * 2 / 4 * 5);
        assert_eq!(resend.sent(), 2);
        for _ in 0..100 {
            assert!(resend.handle_sent(u64::MAX) < LIMITS.longest / 4 * 5);
        }
    }
}
