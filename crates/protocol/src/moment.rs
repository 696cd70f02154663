//! Time as an argument.

use core::ops::{Add, Sub};
use core::time::Duration;

/// A point on a monotonic clock that the caller owns.
///
/// The daemons count from the host's boot (CLOCK_BOOTTIME), the simulations from zero. The state
/// machines only compare moments and add durations to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Duration);

impl Moment {
    /// The clock's origin.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// The moment that lies `since_origin` after the clock's origin.
    pub const fn new(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// How long after the clock's origin this is.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// How much later this is than `earlier`; zero if it is not.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    /// Saturates at the origin.
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(rhs))
    }
}
