//! Text that came from outside, made fit for a terminal, a log line and the protocol.

/// `raw` as one clean line of at most `bytes_max` bytes.
///
/// Control characters, line breaks included, become spaces; characters that reorder or hide text
/// (bidirectional marks, line separators) become U+FFFD; spaces at the ends go. What is cut off at
/// a character's boundary is marked by `...`.
pub(crate) fn line(raw: &str, bytes_max: usize) -> String {
    let cleaned: String = raw.chars().map(clean).collect();
    let trimmed = cleaned.trim();
    if trimmed.len() <= bytes_max {
        return trimmed.to_owned();
    }
    cut(trimmed, bytes_max, "...")
}

/// Like [`line()`], for names: two different names stay different when they are cut.
pub(crate) fn distinct(raw: &str, bytes_max: usize) -> String {
    let cleaned: String = raw.chars().map(clean).collect();
    if cleaned == raw && raw.len() <= bytes_max {
        return cleaned;
    }
    let mark = format!("~{:016x}", fnv1a(raw.as_bytes()));
    cut(&cleaned, bytes_max, &mark)
}

/// Whether `name` needs no cleaning.
pub(crate) fn is_clean(name: &str) -> bool {
    name.chars().all(|c| clean(c) == c) && name.trim() == name
}

fn clean(c: char) -> char {
    match c {
        c if c.is_control() => ' ',
        '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c => c,
    }
}

/// The beginning of `text` that leaves room for `mark`, and `mark`.
fn cut(text: &str, bytes_max: usize, mark: &str) -> String {
    let mark = head(mark, bytes_max);
    let mut out = head(text, bytes_max - mark.len()).trim_end().to_owned();
    out.push_str(mark);
    out
}

/// The longest beginning of `text` that has at most `bytes_max` bytes.
fn head(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// FNV-1a, 64 bits: a name must be cut alike by every version, which std's hasher does not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_become_spaces() {
        assert_eq!(line("  a\tb\r\nc\u{1b}[1m\u{85}x ", 99), "a b  c [1m x");
        assert_eq!(line("abc\u{202e}gpj", 99), "abc\u{fffd}gpj");
    }

    #[test]
    fn a_cut_respects_characters_and_shows() {
        assert_eq!(line("ääää", 8), "ääää");
        assert_eq!(line("äääää", 8), "ää...");
        assert_eq!(line("abc", 2), "..");
    }

    #[test]
    fn long_names_stay_distinct() {
        let (a, b) = (
            format!("{}a", "/x".repeat(99)),
            format!("{}b", "/x".repeat(99)),
        );
        let (short_a, short_b) = (distinct(&a, 64), distinct(&b, 64));
        assert_ne!(short_a, short_b);
        assert!(short_a.len() <= 64 && short_b.len() <= 64);
        assert!(short_a.starts_with("/x/x/x"));
        assert_ne!(distinct("a\nb", 64), distinct("a\tb", 64));
        assert_eq!(distinct("disk:/", 64), "disk:/");
    }

    proptest! {
        #[test]
        fn any_text_comes_out_clean_and_short(raw in any::<String>(), bytes_max in 0_usize..80) {
            for out in [line(&raw, bytes_max), distinct(&raw, bytes_max)] {
                prop_assert!(out.len() <= bytes_max);
                prop_assert!(!out.contains(char::is_control));
            }
        }
    }
}
