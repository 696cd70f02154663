//! Names and texts that come from other hosts, made safe for a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

/// `text` with every character that could steer a terminal or forge a line written as an escape:
/// the C0 and C1 controls, DEL, line and paragraph separators, and the marks that turn the
/// direction of writing.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\n' => safe.push_str("\\n"),
            '\r' => safe.push_str("\\r"),
            '\t' => safe.push_str("\\t"),
            other if is_dangerous(other) => {
                // Writing into a String can't fail.
                let _ = write!(safe, "\\u{{{:x}}}", u32::from(other));
            }
            other => safe.push(other),
        }
    }
    Cow::Owned(safe)
}

/// Whether a terminal may take `character` for more than a glyph.
pub(crate) fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{200e}' | '\u{200f}' | '\u{061c}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert_eq!(escape("\u{1b}[31mred\u{9b}2J"), "\\u{1b}[31mred\\u{9b}2J");
        assert_eq!(escape("a\nb\r\tc\u{7f}"), "a\\nb\\r\\tc\\u{7f}");
        assert_eq!(escape("\u{202e}txt.exe"), "\\u{202e}txt.exe");
    }

    #[test]
    fn plain_text_of_any_language_is_left_alone() {
        assert_eq!(escape("Füllstand 80 % — 満"), "Füllstand 80 % — 満");
    }
}
