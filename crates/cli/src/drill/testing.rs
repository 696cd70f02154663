//! What slaves send and are answered, for tests.

use rollcall_protocol::wire::{Mark, Report};

/// A report of the stream 7.
pub(super) fn report(sequence: u64, time_ms: i64) -> Report {
    Report {
        stream: 7,
        sequence,
        time_ms,
        ..Report::default()
    }
}

/// That the stream 7 is acked up to here.
pub(super) fn mark(sequence: u64) -> Mark {
    Mark {
        stream: 7,
        sequence,
    }
}
