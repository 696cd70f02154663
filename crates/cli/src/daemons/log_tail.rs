//! The end of a daemon's log, for people.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::{Map, Value};

use crate::terminal::escape::escape;

/// How many lines are shown.
const LINES: usize = 12;
/// How much of the file is read for them, in bytes.
const BYTES: u64 = 64 * 1024;
/// Keys of a line that are shown first, or not at all.
const KNOWN: [&str; 5] = ["timestamp", "level", "target", "event", "message"];

/// The last lines of the log at `path`, indented; what can't be read is said instead.
pub(crate) fn tail(path: &Path) -> String {
    let text = match read_end(path) {
        Ok(text) => text,
        Err(error) => return format!("  (can't read {}: {error})", path.display()),
    };
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return "  (it is empty)".to_owned();
    }
    let shown = lines.iter().skip(lines.len().saturating_sub(LINES));
    let shown: Vec<_> = shown.map(|line| format!("  {}", readable(line))).collect();
    shown.join("\n")
}

fn read_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A line of JSON as `LEVEL message key=value …`; another line as it is.
fn readable(line: &str) -> String {
    let Ok(fields) = serde_json::from_str::<Map<String, Value>>(line) else {
        return escape(line).into_owned();
    };
    let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut readable = format!("{} {}", text("level"), text("message"));
    for (key, value) in fields
        .iter()
        .filter(|(key, _)| !KNOWN.contains(&key.as_str()))
    {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        readable.push_str(&format!(" {key}={value}"));
    }
    escape(&readable).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_last_lines_are_shown_in_words() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        let mut text = "an old line\n".repeat(5000);
        text.push_str(
            r#"{"timestamp":"t","level":"ERROR","target":"x","event":"bind_failed","message":"can't bind","errno":98,"peer":"a\u001b[2J"}"#,
        );
        text.push_str("\nrollcall-master: exit code 69\n");
        fs::write(&path, text).unwrap();
        let tail = tail(&path);
        assert_eq!(tail.lines().count(), LINES);
        let mut last = tail.lines().rev();
        assert_eq!(last.next(), Some("  rollcall-master: exit code 69"));
        assert_eq!(
            last.next(),
            Some("  ERROR can't bind errno=98 peer=a\\u{1b}[2J")
        );
    }

    #[test]
    fn there_may_be_nothing_to_show() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(tail(&scratch.path().join("none")).contains("can't read"));
        let empty = scratch.path().join("empty");
        fs::write(&empty, "").unwrap();
        assert_eq!(tail(&empty), "  (it is empty)");
    }
}
