//! The JSON log of a daemon.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine(pub Map<String, Value>);

impl LogLine {
    /// A field as text; empty if it is absent or no text.
    pub fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// A field as a whole number, if it is one.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key).and_then(Value::as_u64)
    }

    /// The name of what happened.
    pub fn event(&self) -> &str {
        self.text("event")
    }
}

/// The file that a daemon's standard output goes to, from the start of one process on.
#[derive(Clone, Debug)]
pub struct Log {
    path: PathBuf,
    from: usize,
}

impl Log {
    /// The log in `path`, from its present end on. The file need not exist yet.
    pub fn at_end_of(path: &Path) -> Self {
        let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
        Self {
            path: path.to_owned(),
            from: usize::try_from(length).unwrap_or(usize::MAX),
        }
    }

    /// Its text so far.
    pub fn text(&self) -> String {
        let bytes = fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(self.from..).unwrap_or_default()).into_owned()
    }

    /// Its whole lines so far; a process that was killed may have left a part of one.
    ///
    /// # Panics
    /// If a whole line is no JSON object.
    #[track_caller]
    pub fn lines(&self) -> Vec<LogLine> {
        let text = self.text();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(parse).collect()
    }

    /// The lines with this event.
    ///
    /// # Panics
    /// Like [`Self::lines`].
    #[track_caller]
    pub fn events(&self, event: &str) -> Vec<LogLine> {
        let mut lines = self.lines();
        lines.retain(|line| line.event() == event);
        lines
    }
}

#[track_caller]
fn parse(line: &str) -> LogLine {
    match serde_json::from_str(line) {
        Ok(Value::Object(fields)) => LogLine(fields),
        _ => panic!("a log line that is no JSON object: {line:?}"),
    }
}
