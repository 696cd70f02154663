//! What lasted from one moment to another, as events tell it.

use jiff::Timestamp;
use rollcall_protocol::api::EventKind;

use super::gathering::Change;
use super::{Roll, Stamp};

impl Roll {
    /// Since `from_ms` nothing could be stored, for that reason, and now it can again.
    pub(crate) fn handle_degraded(&mut self, reason: &str, from_ms: i64, now: Stamp) {
        let lasted_ms = now.wall_ms.saturating_sub(from_ms).max(0);
        let mut text = format!(
            "nothing was stored for {}.{} s",
            lasted_ms / 1000,
            lasted_ms % 1000 / 100
        );
        let range = clock_range(from_ms, now.wall_ms);
        for part in range.as_deref().into_iter().chain([reason]) {
            text.push_str(", ");
            text.push_str(part);
        }
        let change = Change {
            kind: EventKind::Degraded,
            subject: None,
            from: rfc3339(from_ms),
            to: rfc3339(now.wall_ms),
            text,
            time_ms: from_ms,
            replayed: false,
        };
        self.gathering.push_event(None, now, change);
    }
}

/// The moment as the API writes it; none if the calendar does not reach that far.
pub(super) fn rfc3339(ms: i64) -> Option<String> {
    Some(format!("{:.3}", Timestamp::from_millisecond(ms).ok()?))
}

/// "12:00-12:40", in UTC, with the dates if they differ.
pub(super) fn clock_range(from_ms: i64, to_ms: i64) -> Option<String> {
    let from = Timestamp::from_millisecond(from_ms).ok()?;
    let to = Timestamp::from_millisecond(to_ms).ok()?;
    let day = |at: Timestamp| at.strftime("%Y-%m-%d").to_string();
    let format = match day(from) == day(to) {
        true => "%H:%M",
        false => "%Y-%m-%d %H:%M",
    };
    Some(format!("{}-{}", from.strftime(format), to.strftime(format)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_dates_only_if_they_differ() {
        let minute = 60_000;
        let range = |from, to| clock_range(from, to).unwrap();
        assert_eq!(range(720 * minute, 760 * minute), "12:00-12:40");
        assert_eq!(
            range(1430 * minute, 1450 * minute),
            "1970-01-01 23:50-1970-01-02 00:10"
        );
        assert_eq!(clock_range(i64::MIN, 0), None);
        assert_eq!(rfc3339(1).as_deref(), Some("1970-01-01T00:00:00.001Z"));
    }
}
