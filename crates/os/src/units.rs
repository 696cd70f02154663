//! Durations and sizes as people write them in a configuration file.
//!
//! Both types keep the exact value, read friendly text and write text that reads back as the same
//! value, so that `--check` prints what could be put into the file.

use std::fmt;
use std::str::FromStr;
use std::time;

use bytesize::ByteSize;
use garde::rules::range::{Bounds, OutOfBounds};
use jiff::SpanRelativeTo;
use jiff::fmt::friendly::{SpanParser, SpanPrinter};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
const DURATION_EXAMPLE: &str = r#"a number and a unit, such as "10s", "1m 30s" or "90d""#;
const BYTES_EXAMPLE: &str = r#"a number and a unit, such as "64 KiB", "512 MiB" or "10 GB""#;

/// Text that is no duration or size; the message shows how one is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad {what} {text:?}: expected {example}")]
pub struct UnitError {
    what: &'static str,
    text: String,
    example: &'static str,
}

/// A span of time, written as "10s", "1m 30s" or "90d". A day has 24 hours; months and years,
/// which have no fixed length, are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(time::Duration);

impl Duration {
    /// Wraps an exact duration.
    pub const fn new(exact: time::Duration) -> Self {
        Self(exact)
    }

    /// A duration of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(time::Duration::from_secs(seconds))
    }

    /// A duration of whole milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(time::Duration::from_millis(milliseconds))
    }

    /// The exact duration.
    pub const fn get(self) -> time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        SpanParser::new()
            .parse_span(text)
            .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()))
            .ok()
            .and_then(|signed| time::Duration::try_from(signed).ok())
            .map(Self)
            .ok_or_else(|| UnitError {
                what: "duration",
                text: text.to_owned(),
                example: DURATION_EXAMPLE,
            })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The printer's largest unit for an exact duration is the hour: "90d" would read "2160h".
        let days = self.0.as_secs() / SECONDS_PER_DAY;
        let rest = self.0 - time::Duration::from_secs(days * SECONDS_PER_DAY);
        if days > 0 {
            write!(f, "{days}d")?;
            if rest.is_zero() {
                return Ok(());
            }
            f.write_str(" ")?;
        }
        f.write_str(&SpanPrinter::new().unsigned_duration_to_string(&rest))
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a duration: {DURATION_EXAMPLE}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// So that `#[garde(range(min = …, max = …))]` works on durations.
impl Bounds for Duration {
    type Size = Self;

    const MIN: Self = Self(time::Duration::ZERO);
    const MAX: Self = Self(time::Duration::MAX);

    fn validate_bounds(&self, lower: Self, upper: Self) -> Result<(), OutOfBounds> {
        bounds(*self, lower, upper)
    }
}

/// A number of bytes, written as "64 KiB", "10 GB" or as a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

impl Bytes {
    /// Wraps an exact number of bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The exact number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Bytes {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse()
            .map(|ByteSize(bytes)| Self(bytes))
            .map_err(|_| UnitError {
                what: "size",
                text: text.to_owned(),
                example: BYTES_EXAMPLE,
            })
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // ByteSize rounds to one decimal, which would not read back as the same number.
        const UNITS: [(u32, &str); 5] = [
            (50, "PiB"),
            (40, "TiB"),
            (30, "GiB"),
            (20, "MiB"),
            (10, "KiB"),
        ];
        let exact = UNITS
            .iter()
            .find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift);
        match exact {
            Some((shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;

        impl Visitor<'_> for TextOrNumber {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a size in bytes: {BYTES_EXAMPLE}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Bytes, E> {
                u64::try_from(bytes)
                    .map(Bytes)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }
        }

        deserializer.deserialize_any(TextOrNumber)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// So that `#[garde(range(min = …, max = …))]` works on sizes.
impl Bounds for Bytes {
    type Size = Self;

    const MIN: Self = Self(0);
    const MAX: Self = Self(u64::MAX);

    fn validate_bounds(&self, lower: Self, upper: Self) -> Result<(), OutOfBounds> {
        bounds(*self, lower, upper)
    }
}

fn bounds<T: PartialOrd>(value: T, lower: T, upper: T) -> Result<(), OutOfBounds> {
    if value < lower {
        Err(OutOfBounds::Lower)
    } else if value > upper {
        Err(OutOfBounds::Upper)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Duration};

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, milliseconds) in [
            ("10s", 10_000),
            ("1m 30s", 90_000),
            ("1m30s", 90_000),
            ("90d", 90 * 86_400_000),
            ("2w", 14 * 86_400_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("0s", 0),
            ("3 minutes", 180_000),
        ] {
            let read: Duration = text.parse().unwrap();
            assert_eq!(read, Duration::from_millis(milliseconds), "{text}");
        }
    }

    #[test]
    fn what_has_no_length_is_no_duration() {
        for text in [
            "",
            "10",
            "-10s",
            "10s ago",
            "1 month",
            "1y",
            "soon",
            "10 parsecs",
            "9999999999999999999s",
        ] {
            let error = text.parse::<Duration>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    r#"bad duration {text:?}: expected a number and a unit, such as "10s", "1m 30s" or "90d""#
                )
            );
        }
    }

    #[test]
    fn a_written_duration_reads_back_as_itself() {
        for (text, written) in [
            ("0s", "0s"),
            ("90s", "1m 30s"),
            ("90d", "90d"),
            ("25h", "1d 1h"),
            ("1500ms", "1s 500ms"),
            ("1d 1ns", "1d 1ns"),
        ] {
            let read: Duration = text.parse().unwrap();
            assert_eq!(read.to_string(), written);
            assert_eq!(written.parse(), Ok(read));
        }
    }

    #[test]
    fn sizes_read_and_write_exactly() {
        for (text, bytes, written) in [
            ("64 MiB", 64 << 20, "64 MiB"),
            ("64MiB", 64 << 20, "64 MiB"),
            ("1.5 KiB", 1536, "1536 B"),
            ("10 kB", 10_000, "10000 B"),
            ("0", 0, "0 B"),
            ("2048", 2048, "2 KiB"),
        ] {
            let read: Bytes = text.parse().unwrap();
            assert_eq!(read.get(), bytes, "{text}");
            assert_eq!(read.to_string(), written);
            assert_eq!(written.parse(), Ok(read));
        }
        for text in ["", "MiB", "-1 KiB", "64 apples"] {
            let error = text.parse::<Bytes>().unwrap_err();
            assert!(error.to_string().starts_with("bad size"), "{error}");
        }
    }
}
