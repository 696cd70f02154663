//! Text in lines of a given width.

use unicode_width::UnicodeWidthStr;

/// `text` in lines of at most `width` columns, as far as its words allow: the first after `first`,
/// the others after `next`.
pub(crate) fn wrap(text: &str, width: usize, first: &str, next: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in text.split_whitespace() {
        if !is_empty && line.width() + 1 + word.width() > width {
            lines.push(std::mem::replace(&mut line, next.to_owned()));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::wrap;

    #[test]
    fn lines_are_as_long_as_they_may_be() {
        assert_eq!(
            wrap("one two three  four", 9, "- ", "  "),
            ["- one two", "  three", "  four"]
        );
        assert_eq!(wrap("long-word x", 4, "", ""), ["long-word", "x"]);
        assert_eq!(wrap("", 4, "- ", ""), ["- "]);
    }
}
