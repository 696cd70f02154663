//! What is given up when the spool has reached one of its bounds.

use rollcall_protocol::wire::GapReason;
use rusqlite::Transaction;

use super::{Queue, State};
use crate::spool::entries::{self, Totals};

/// Most reports given up in one transaction: it has to stay small where space is short.
const GIVEN_UP_MAX: u32 = 256;
/// Until a host without a battery-backed clock has asked for the time, it believes that it is 1970.
/// What was reported before this (2020-01-01) is not judged by its age.
const CLOCK_SET_MS: i64 = 1_577_836_800_000;

/// What decides how much may stay.
#[derive(Clone, Copy, Debug)]
pub(in crate::spool) struct Room {
    /// The wall clock in milliseconds.
    pub(in crate::spool) now_ms: i64,
    /// Free bytes of the file system; `None` if they can't be told.
    pub(in crate::spool) free_bytes: Option<u64>,
}

/// How many reports were given up, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::spool) struct GivenUp {
    pub(in crate::spool) expired: u64,
    pub(in crate::spool) full: u64,
}

impl Queue {
    /// Gives up as many reports as the bounds ask for.
    pub(super) fn make_room(
        &self,
        transaction: &Transaction<'_>,
        state: &mut State,
        room: Room,
    ) -> rusqlite::Result<GivenUp> {
        let mut given_up = GivenUp::default();
        let mut left = GIVEN_UP_MAX;
        let age_ms = i64::try_from(self.limits.age_max.as_millis()).unwrap_or(i64::MAX);
        let oldest_ms = room.now_ms.saturating_sub(age_ms);
        let mut missing = room
            .free_bytes
            .map_or(0, |free| self.limits.free_bytes_min.saturating_sub(free));
        // Repeats before changes, each oldest first.
        for repeat in [true, false] {
            while left > 0 {
                let Some(line) = entries::oldest(transaction, repeat, state.newest)? else {
                    break;
                };
                let expired = (CLOCK_SET_MS..oldest_ms).contains(&line.to_ms);
                let full = missing > 0 || state.totals.bytes > self.limits.bytes_max;
                let reason = match (expired, full) {
                    (true, _) => GapReason::Expired,
                    (false, true) => GapReason::SpoolFull,
                    (false, false) => break,
                };
                let freed = entries::give_up(transaction, line, reason, self.reader)?;
                missing = missing.saturating_sub(freed);
                state.totals = state.totals.minus(Totals {
                    reports: 1,
                    bytes: freed,
                });
                left -= 1;
                given_up.expired += u64::from(expired);
                given_up.full += u64::from(!expired);
            }
        }
        Ok(given_up)
    }
}
