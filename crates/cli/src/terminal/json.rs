//! JSON for scripts that a terminal may show too: characters that could steer it are escaped.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

use crate::terminal::escape::is_dangerous;

/// `value` as one line.
pub(crate) fn line<T: Serialize>(value: &T) -> serde_json::Result<String> {
    render(value, CompactFormatter)
}

/// `value` indented over several lines.
pub(crate) fn pretty<T: Serialize>(value: &T) -> serde_json::Result<String> {
    render(value, PrettyFormatter::new())
}

fn render<T: Serialize, F: Formatter>(value: &T, inner: F) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, Safe(inner)))?;
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

/// `inner`, but with dangerous characters inside strings as `\uXXXX`; serde_json itself escapes
/// only those that JSON forbids.
struct Safe<F>(F);

impl<F: Formatter> Formatter for Safe<F> {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut plain_from = 0;
        for (at, character) in fragment.char_indices().filter(|(_, c)| is_dangerous(*c)) {
            writer.write_all(&fragment.as_bytes()[plain_from..at])?;
            write!(writer, "\\u{:04x}", u32::from(character))?;
            plain_from = at + character.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain_from..])
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    #[test]
    fn a_terminal_is_not_steered_and_the_value_is_the_same() {
        let value = BTreeMap::from([("text", "a\u{1b}[2J\u{9b}b\u{202e}ü\"\\"), ("x", "")]);
        for json in [super::line(&value).unwrap(), super::pretty(&value).unwrap()] {
            assert!(!json.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{json}");
            assert!(json.contains("\\u001b[2J\\u009bb\\u202eü"), "{json}");
            let back: BTreeMap<&str, String> = serde_json::from_str(&json).unwrap();
            assert_eq!(back["text"], value["text"]);
        }
    }

    #[test]
    fn pretty_is_indented() {
        assert_eq!(super::pretty(&["a"]).unwrap(), "[\n  \"a\"\n]");
    }
}
