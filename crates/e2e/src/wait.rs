//! Waiting for a condition, never for a time.

use std::thread;
use std::time::Duration;

use rollcall_os::clock;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// Enough for anything that takes under a second on an idle machine, on one that is very busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks until `look` has found something, and returns it.
///
/// # Panics
/// If it has not within `limit`; the message says that `what` was waited for.
#[track_caller]
pub fn wait_until<T>(limit: Duration, what: &str, look: impl FnMut() -> Option<T>) -> T {
    match poll_until(limit, look) {
        Some(found) => found,
        None => panic!("waited {limit:?} for {what}"),
    }
}

/// Looks until `look` has found something, or `None` if it has not within `limit`.
pub fn poll_until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = clock::boot() + limit;
    loop {
        // Asked before looking: the last look is after the deadline, so a slow look is no failure.
        let is_over = clock::boot() >= deadline;
        if let Some(found) = look() {
            return Some(found);
        }
        if is_over {
            return None;
        }
        thread::sleep(PAUSE);
    }
}

/// Looks again and again for all of `time`, and returns the first thing that was found: for what
/// must not happen.
pub fn watch_for<T>(time: Duration, look: impl FnMut() -> Option<T>) -> Option<T> {
    poll_until(time, look)
}
