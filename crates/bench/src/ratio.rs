//! Figures divided by each other.

use std::time::Duration;

/// So many per second; 0 over no time at all.
pub(crate) fn rate_per_s(count: u64, elapsed: Duration) -> f64 {
    ratio(float(count), elapsed.as_secs_f64()).unwrap_or(0.0)
}

/// `None` where there is nothing to divide by.
pub(crate) fn ratio(numerator: f64, denominator: f64) -> Option<f64> {
    (denominator > 0.0).then(|| numerator / denominator)
}

/// A count as a number to divide with.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}
