//! Times as people write and read them.

use jiff::civil;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use rollcall_os::clock;
use rollcall_os::units::{self, UnitError};

/// How long ago `then_ms` is at `now_ms`, in its largest unit: "3s ago", "in 2m", "now".
pub(crate) fn relative(now_ms: i64, then_ms: i64) -> String {
    let ago = now_ms.saturating_sub(then_ms);
    let distance = largest_unit(ago.unsigned_abs());
    if ago.unsigned_abs() < 1000 {
        "now".to_owned()
    } else if ago > 0 {
        format!("{distance} ago")
    } else {
        format!("in {distance}")
    }
}

/// A length of time in its two largest units: "250ms", "1.5s", "1m 30s", "2d 3h".
pub(crate) fn length(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0 => format!("{ms}ms"),
        1..10 if ms % 1000 >= 100 => format!("{seconds}.{}s", ms % 1000 / 100),
        1..60 => format!("{seconds}s"),
        60..3_600 => two_units(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two_units(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        86_400.. => two_units(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// A moment by the local clock: "2026-06-01 10:00:03".
pub(crate) fn local(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(
        |_| format!("{ms} ms"),
        |at| {
            at.to_zoned(TimeZone::system())
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string()
        },
    )
}

/// "12:00-12:40" by the local clock, with the dates if they differ; none beyond the calendar.
pub(crate) fn clock_range(from_ms: i64, to_ms: i64) -> Option<String> {
    clock_range_in(&TimeZone::system(), from_ms, to_ms)
}

/// The same in UTC, as the master writes it into texts.
pub(crate) fn clock_range_utc(from_ms: i64, to_ms: i64) -> Option<String> {
    clock_range_in(&TimeZone::UTC, from_ms, to_ms)
}

fn clock_range_in(zone: &TimeZone, from_ms: i64, to_ms: i64) -> Option<String> {
    let at = |ms| {
        let at = Timestamp::from_millisecond(ms).ok()?;
        Some(at.to_zoned(zone.clone()))
    };
    let (from, to) = (at(from_ms)?, at(to_ms)?);
    let format = match from.date() == to.date() {
        true => "%H:%M",
        false => "%Y-%m-%d %H:%M",
    };
    Some(format!("{}-{}", from.strftime(format), to.strftime(format)))
}

/// A moment as the API writes it, in ms since 1970.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    Some(text.parse::<Timestamp>().ok()?.as_millisecond())
}

/// A positive length of time such as "90s", "1h 30m", "2d" (days have 24 hours).
pub(crate) fn parse_length(text: &str) -> Result<units::Duration, String> {
    let length: units::Duration = text.parse().map_err(|error: UnitError| error.to_string())?;
    if length.get().is_zero() {
        return Err(format!("{text:?} is not longer than zero"));
    }
    Ok(length)
}

/// A moment in ms since 1970: a length of time before now ("1h"), a date or a time of day by the
/// local clock ("2026-06-01 10:00", "10:00"), or a full time stamp ("2026-06-01T10:00:00Z").
pub(crate) fn parse_moment(text: &str) -> Result<i64, String> {
    if let Ok(back) = parse_length(text) {
        let back_ms = i64::try_from(back.get().as_millis()).unwrap_or(i64::MAX);
        return Ok(clock::wall_ms().saturating_sub(back_ms));
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.as_millisecond());
    }
    let civil = text.parse::<civil::DateTime>().or_else(|_| {
        text.parse::<civil::Time>()
            .map(|time| Zoned::now().date().to_datetime(time))
    });
    civil
        .and_then(|civil| civil.to_zoned(TimeZone::system()))
        .map(|at| at.timestamp().as_millisecond())
        .map_err(|_| {
            format!(
                "{text:?} is no time; write 1h (ago), 10:30 (today), 2026-06-01 10:30 (local) \
                 or 2026-06-01T10:30:00Z"
            )
        })
}

fn largest_unit(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        86_400.. => format!("{}d", seconds / 86_400),
    }
}

fn two_units(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit} {small}{small_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let at = |ago_ms: i64| relative(1_000_000_000, 1_000_000_000 - ago_ms);
        assert_eq!(at(0), "now");
        assert_eq!(at(-999), "now");
        assert_eq!(at(3_999), "3s ago");
        assert_eq!(at(59_999), "59s ago");
        assert_eq!(at(60_000), "1m ago");
        assert_eq!(at(-120_000), "in 2m");
        assert_eq!(at(3_600_000), "1h ago");
        assert_eq!(at(2 * 86_400_000), "2d ago");
        assert_eq!(relative(i64::MAX, i64::MIN), at(i64::MAX));
    }

    #[test]
    fn lengths_have_two_units_at_most() {
        for (ms, text) in [
            (250, "250ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (1_050, "1s"),
            (10_000, "10s"),
            (90_000, "1m 30s"),
            (3_600_000, "1h"),
            (183_600_000, "2d 3h"),
        ] {
            assert_eq!(length(ms), text);
        }
    }

    #[test]
    fn lengths_are_read() {
        assert_eq!(parse_length("1h 30m"), Ok(units::Duration::from_secs(5400)));
        assert_eq!(parse_length("2d"), Ok(units::Duration::from_secs(172_800)));
        for bad in ["", "ten", "0s", "-5s", "10"] {
            assert!(parse_length(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_has_dates_only_if_they_differ() {
        let minute = 60_000;
        let range = |from, to| clock_range_utc(from, to).unwrap();
        assert_eq!(range(720 * minute, 760 * minute), "12:00-12:40");
        assert_eq!(
            range(1430 * minute, 1450 * minute),
            "1970-01-01 23:50-1970-01-02 00:10"
        );
        assert_eq!(clock_range(i64::MIN, 0), None);
        assert_eq!(parse_rfc3339("1970-01-01T00:00:01.500Z"), Some(1_500));
    }

    #[test]
    fn moments_are_read() {
        assert_eq!(parse_moment("1970-01-01T00:00:01.5Z"), Ok(1_500));
        let hour_ago = parse_moment("1h").unwrap();
        let distance = clock::wall_ms() - hour_ago;
        assert!((3_600_000..3_660_000).contains(&distance), "{distance}");
        let civil = parse_moment("2026-06-01 10:30").unwrap();
        assert_eq!(local(civil), "2026-06-01 10:30:00");
        assert_eq!(
            parse_moment("2026-06-01").map(local),
            Ok("2026-06-01 00:00:00".into())
        );
        assert!(parse_moment("10:30").is_ok());
        assert!(parse_moment("yesterday").unwrap_err().contains("10:30"));
    }
}
