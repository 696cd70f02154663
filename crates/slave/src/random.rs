//! Randomness for jitter: so that the slaves of a fleet do not act in step.

use rollcall_os::clock;

/// Random bits. Without a source of randomness the clock has to do.
pub(crate) fn bits() -> u64 {
    getrandom::u64().unwrap_or_else(|_| {
        let nanos = clock::boot().since_origin().subsec_nanos();
        u64::from(nanos) << 32
    })
}

/// A random number from 0 to 1.
pub(crate) fn unit() -> f64 {
    // 32 bits are exact in an f64.
    f64::from(u32::try_from(bits() >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}
