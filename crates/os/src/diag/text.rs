//! Text from outside, such as a command line, as a part of one line.

use std::fmt::Write;

use jiff::Timestamp;

use crate::log::is_dangerous;

/// At most `characters_max` of `text`, with nothing in it that could end the line or drive a
/// terminal.
pub(super) fn bounded(text: &str, characters_max: usize) -> String {
    let mut out = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == characters_max {
            out.push('…');
            break;
        }
        if is_dangerous(character) {
            // A String takes everything.
            let _ = write!(out, "{}", character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// A moment in milliseconds since 1970, as RFC 3339 in whole seconds.
pub(super) fn moment(wall_ms: i64) -> String {
    match Timestamp::from_second(wall_ms.div_euclid(1000)) {
        Ok(moment) => moment.to_string(),
        Err(_) => format!("{wall_ms} ms"),
    }
}

/// "1 port", "2 ports".
pub(super) fn plural(count: u32, one: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        count => format!("{count} {one}s"),
    }
}

/// Milliseconds as whole seconds, rounded up.
pub(super) fn seconds(milliseconds: u32) -> u32 {
    milliseconds.div_ceil(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_and_made_harmless() {
        assert_eq!(bounded("ab\ncd\u{1b}[1m", 100), "ab\\ncd\\u{1b}[1m");
        assert_eq!(bounded("äöü", 2), "äö…");
        assert_eq!(bounded("äö", 2), "äö");
    }

    #[test]
    fn moments_and_counts_read_well() {
        assert_eq!(moment(1_700_000_000_999), "2023-11-14T22:13:20Z");
        assert_eq!(moment(i64::MAX), format!("{} ms", i64::MAX));
        assert_eq!(
            (plural(1, "port"), plural(2, "port")),
            ("1 port".into(), "2 ports".into())
        );
        assert_eq!((seconds(0), seconds(1), seconds(1000)), (0, 1, 1));
    }
}
