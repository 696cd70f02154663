//! `docs/configuration.md`, made from the configuration files.

use std::fmt::Write;

use toml::{Table, Value};

use crate::source;

/// Where it is kept.
pub const DOCUMENT: &str = "docs/configuration.md";

const INTRODUCTION: &str = "\
# Configuration

Made from [config/master.toml](../config/master.toml) and [config/slave.toml](../config/slave.toml): those
files list every key with its default, and the daemons have them compiled in. To change this text, change
them and run `UPDATE_DOCS=1 cargo test -p rollcall-e2e --test docs`.

- A file needs only the keys that differ from the defaults. Tables are merged key by key; lists are replaced.
- `--config FILE` names the file. Without it the daemons read `/etc/rollcall/master.toml` and
  `/etc/rollcall/slave.toml` if they exist.
- `--check` validates, prints what the configuration comes to, and ends: with 0, or with 78 and all faults of
  the file at once, each with line, column, the key's path and what would be right. A key that does not
  exist is a fault.
- `SIGHUP` has a running daemon read its file again. Nothing is dropped. A file with faults changes nothing;
  keys that need a restart are named in the log (`reloaded_in_part`).
";

/// One of the files.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// The program that reads it.
    pub program: &'static str,
    /// Where it is.
    pub path: &'static str,
}

/// Both.
pub const FILES: [File; 2] = [
    File {
        program: "rollcall-master",
        path: "config/master.toml",
    },
    File {
        program: "rollcall-slave",
        path: "config/slave.toml",
    },
];

/// The whole document.
///
/// # Panics
/// If a file is no TOML.
pub fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    for file in FILES {
        let source = source::read(file.path);
        let keys = keys(&parse(&source));
        let program = file.program;
        // A String takes everything.
        let _ = write!(text, "\n## {program}\n\n| Key | Default |\n|---|---|\n");
        for (key, default) in keys {
            let _ = writeln!(text, "| `{key}` | {default} |");
        }
        let _ = write!(text, "\n```toml\n{source}```\n");
    }
    text
}

/// The dotted keys of a file with their values, sorted.
pub fn keys(table: &Table) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) if inner.is_empty() => found.push((key.clone(), "none".to_owned())),
            Value::Table(inner) => {
                let below = keys(inner).into_iter();
                found.extend(below.map(|(below, value)| (format!("{key}.{below}"), value)));
            }
            Value::Array(list) if list.len() > 3 => {
                found.push((key.clone(), format!("a list of {}, below", list.len())));
            }
            value => found.push((key.clone(), format!("`{value}`"))),
        }
    }
    found
}

fn parse(text: &str) -> Table {
    match text.parse() {
        Ok(table) => table,
        Err(error) => panic!("a configuration file is no TOML: {error}"),
    }
}
