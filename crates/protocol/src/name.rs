//! The names of slaves.

use crate::limits::NAME_BYTES_MAX;

/// What [`is_valid`] accepts, for messages to people.
pub const RULE: &str = "1 to 63 characters: lower-case letters, digits, '.' and '-', beginning and ending with a letter or digit";

/// Whether `name` may name a slave: `[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?`.
pub fn is_valid(name: &str) -> bool {
    let bytes = name.as_bytes();
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    bytes.len() <= NAME_BYTES_MAX
        && alphanumeric(first)
        && alphanumeric(last)
        && bytes
            .iter()
            .all(|byte| alphanumeric(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn the_rule_of_the_design_holds() {
        let longest = "a".repeat(63);
        for good in ["a", "0", "web-1", "a.b-c", "a--b", longest.as_str()] {
            assert!(is_valid(good), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            ".a",
            "A",
            "a_b",
            "ä",
            "a b",
            too_long.as_str(),
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
