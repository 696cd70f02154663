//! What tests of this module share.

use std::time::Duration;

use crate::clock;

/// Looks again until `look` has found something: the kernel handles the packets of a loopback
/// connection a moment later when it is busy.
#[track_caller]
pub(super) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = clock::boot() + Duration::from_secs(10);
    loop {
        // Asked before looking: the last look is after the deadline.
        let is_over = clock::boot() >= deadline;
        match look() {
            Some(found) => return found,
            None if is_over => panic!("waited for {what}"),
            None => std::thread::yield_now(),
        }
    }
}
