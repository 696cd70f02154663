//! What is wrong with a file, and where.

use std::fmt::{self, Write};

use super::document::Document;

/// How many faults are told of one file: nobody mends more in one go, and each costs a reading.
pub(super) const FAULTS_MAX: usize = 100;

/// A place in a file, as editors count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

impl Position {
    /// The place of the byte at `offset` of `text`.
    pub(super) fn of(text: &str, offset: usize) -> Self {
        let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
        let line_start = before
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |newline| newline + 1);
        let (lines, line) = before.split_at(line_start);
        let begins_character = |byte: &&u8| **byte & 0b1100_0000 != 0b1000_0000;
        Self {
            line: lines.iter().filter(|byte| **byte == b'\n').count() + 1,
            column: line.iter().filter(begins_character).count() + 1,
        }
    }
}

/// One fault: `slave.toml:12:3: interval: bad duration "10 parsecs": …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file, as it was named.
    pub origin: String,
    /// Where in the file; `None` if no key of the file is to blame.
    pub position: Option<Position>,
    /// The key's path, as in `check[0].interval`; empty if the fault is no key's.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
    /// The line itself with a caret under the place, for faults of syntax.
    pub excerpt: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(excerpt) = &self.excerpt {
            write!(f, "\n{excerpt}")?;
        }
        Ok(())
    }
}

/// A heading, and each fault on a line of its own that begins with the place.
pub(super) fn list(faults: &[Fault]) -> String {
    let mut text = match faults.len() {
        1 => String::from("the configuration has a fault:"),
        many => format!("the configuration has {many} faults:"),
    };
    for fault in faults {
        text.push('\n');
        // Writing to a string can't fail.
        let _ = write!(text, "{fault}");
    }
    text
}

/// Proof that a fault was added: who gets no result has told why.
#[derive(Debug)]
pub struct Reported(());

/// Collects the faults of one file.
pub struct Faults<'a> {
    document: &'a Document<'a>,
    found: Vec<Fault>,
}

impl<'a> Faults<'a> {
    pub(super) fn new(document: &'a Document<'a>, found: Vec<Fault>) -> Self {
        Self { document, found }
    }

    /// Adds a fault of the key at `key_path`, such as `"presence.late_after"` or
    /// `"check[2].name"`, with the indices of the raw struct. Where the file does not set that
    /// key, the place is that of the nearest table around it which it does set.
    pub fn add(&mut self, key_path: &str, message: impl Into<String>) -> Reported {
        let path = self.document.parse_path(key_path);
        self.found
            .push(self.document.value_fault(&path, message.into()));
        Reported(())
    }

    /// All of them, in the order of the file.
    pub(super) fn into_sorted(self) -> Vec<Fault> {
        sorted(self.found)
    }
}

/// In the order of the file; what has no place comes last.
pub(super) fn sorted(mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.sort_by_key(|fault| (fault.position.is_none(), fault.position));
    faults.truncate(FAULTS_MAX);
    faults
}
