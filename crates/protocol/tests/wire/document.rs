//! docs/protocol.md says what the `.proto`, the limits and the bytes say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use protox::prost_reflect::{Cardinality, FieldDescriptor, Kind};
use rollcall_protocol::limits;

use crate::{describe, examples, golden, hex};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document() -> String {
    let path = root().join("docs/protocol.md");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of each table, by the heading that it stands under, without its head.
fn tables(document: &str) -> BTreeMap<String, Vec<Vec<String>>> {
    let mut tables: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    let mut heading = "";
    for line in document.lines() {
        if let Some(title) = line.trim_start_matches('#').strip_prefix(' ')
            && line.starts_with('#')
        {
            heading = title;
        } else if let Some(row) = line.strip_prefix('|') {
            let cells = row.trim_end_matches('|').split('|');
            let cells: Vec<String> = cells.map(|cell| cell.trim().to_owned()).collect();
            tables.entry(heading.to_owned()).or_default().push(cells);
        }
    }
    for rows in tables.values_mut() {
        rows.drain(..2.min(rows.len()));
    }
    tables
}

/// The first `columns` cells of each row under `heading`.
fn columns(
    tables: &BTreeMap<String, Vec<Vec<String>>>,
    heading: &str,
    columns: usize,
) -> Vec<Vec<String>> {
    let rows = tables.get(heading);
    let rows = rows.unwrap_or_else(|| panic!("no table under the heading \"{heading}\""));
    rows.iter()
        .map(|row| row[..columns.min(row.len())].to_vec())
        .collect()
}

fn type_name(field: &FieldDescriptor) -> String {
    let kind = |kind: Kind| match kind {
        Kind::Message(message) => message.name().to_owned(),
        Kind::Enum(declared) => declared.name().to_owned(),
        scalar => format!("{scalar:?}").to_lowercase(),
    };
    if field.is_map()
        && let Kind::Message(entry) = field.kind()
    {
        let key = kind(entry.map_entry_key_field().kind());
        let value = kind(entry.map_entry_value_field().kind());
        return format!("map<{key}, {value}>");
    }
    let name = kind(field.kind());
    let is_message = matches!(field.kind(), Kind::Message(_));
    if field.cardinality() == Cardinality::Repeated {
        format!("repeated {name}")
    } else if field.supports_presence() && !is_message && field.containing_oneof().is_some() {
        format!("optional {name}")
    } else {
        name
    }
}

#[test]
fn every_message_and_field_is_told_as_the_proto_has_it() {
    let (pool, tables) = (describe::pool(), tables(&document()));
    for message in describe::messages(&pool) {
        let fields = message.fields().map(|field| {
            vec![
                field.number().to_string(),
                field.name().to_owned(),
                type_name(&field),
            ]
        });
        let fields: Vec<_> = fields.collect();
        assert_eq!(
            columns(&tables, message.name(), 3),
            fields,
            "left: the document's table of {}, right: the .proto",
            message.name()
        );
    }
}

#[test]
fn every_enum_and_value_is_told_as_the_proto_has_it() {
    let (pool, tables) = (describe::pool(), tables(&document()));
    for declared in describe::enums(&pool) {
        let values = declared
            .values()
            .map(|value| vec![value.number().to_string(), value.name().to_owned()]);
        let values: Vec<_> = values.collect();
        assert_eq!(
            columns(&tables, declared.name(), 2),
            values,
            "left: the document's table of {}, right: the .proto",
            declared.name()
        );
    }
}

/// Names a limit and prints its value as the document does.
macro_rules! limit {
    ($name:ident) => {
        (stringify!($name), print(limits::$name))
    };
}

/// A limit's value as the document prints it.
trait Printed {
    fn printed(self) -> String;
}

impl Printed for u32 {
    fn printed(self) -> String {
        self.to_string()
    }
}

impl Printed for usize {
    fn printed(self) -> String {
        self.to_string()
    }
}

impl Printed for Duration {
    fn printed(self) -> String {
        format!("{} ms", self.as_millis())
    }
}

fn print(value: impl Printed) -> String {
    value.printed()
}

fn all_limits() -> Vec<(&'static str, String)> {
    vec![
        limit!(VERSION_MIN),
        limit!(VERSION_MAX),
        limit!(FRAME_HEADER_BYTES),
        limit!(FRAME_PAYLOAD_BYTES_MAX),
        limit!(FRAME_BYTES_MAX),
        limit!(ID_BYTES),
        limit!(NAME_BYTES_MAX),
        limit!(AGENT_VERSION_BYTES_MAX),
        limit!(LABELS_MAX),
        limit!(LABEL_BYTES_MAX),
        limit!(STREAMS_MAX),
        limit!(PREVIOUS_MAX),
        limit!(CHECKS_MAX),
        limit!(CHECK_NAME_BYTES_MAX),
        limit!(CHECK_TEXT_BYTES_MAX),
        limit!(INTERVAL_MIN),
        limit!(INTERVAL_MAX),
        limit!(WINDOW),
        limit!(WINDOW_MAX),
        limit!(PER_MESSAGE_FRAMES_MAX),
        limit!(DATAGRAM_BYTES_MAX),
        limit!(DATAGRAM_BYTES_SAFE),
        limit!(QUESTIONS_REMEMBERED),
    ]
}

#[test]
fn the_limits_are_those_of_the_code() {
    let source = root().join("crates/protocol/src/limits.rs");
    let source = fs::read_to_string(source).expect("limits.rs");
    let declared: Vec<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next())
        .collect();
    let limits = all_limits();
    let listed: Vec<&str> = limits.iter().map(|(name, _)| *name).collect();
    assert_eq!(listed, declared, "left: this test, right: limits.rs");

    let rows = limits
        .iter()
        .map(|(name, value)| vec![(*name).to_owned(), value.clone()]);
    let rows: Vec<_> = rows.collect();
    let told = columns(&tables(&document()), "Limits", 2);
    assert_eq!(told, rows, "left: the document, right: limits.rs");
}

/// The names and the text of each block of bytes.
fn hex_blocks(document: &str) -> Vec<(Vec<String>, String)> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if let Some(names) = line.strip_prefix("```hex ") {
            let names = names.split_whitespace().map(str::to_owned).collect();
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((names, text.join("\n")));
        }
    }
    blocks
}

#[test]
fn the_examples_are_the_golden_bytes_and_decode() {
    let examples = examples::all();
    let mut shown = BTreeSet::new();
    for (names, text) in hex_blocks(&document()) {
        let bytes = hex::parse(&text).unwrap_or_else(|error| panic!("{names:?}: {error}"));
        let mut rest = bytes.as_slice();
        for name in &names {
            let example = examples.iter().find(|example| example.name == name);
            let example = example.unwrap_or_else(|| panic!("no example is named \"{name}\""));
            let expected = golden::golden_bytes(example);
            let (head, tail) = rest.split_at(expected.len().min(rest.len()));
            assert!(
                head == expected,
                "the document shows other bytes for \"{name}\".\ndocument:\n{}golden:\n{}",
                hex::print(head),
                hex::print(&expected)
            );
            assert_eq!(example.decode(head).as_ref(), Ok(&example.messages));
            rest = tail;
            shown.insert(name.clone());
        }
        assert!(rest.is_empty(), "bytes are left after {names:?}");
    }
    assert!(shown.len() >= 12, "{shown:?}");
}

#[test]
fn no_block_of_bytes_is_overlooked() {
    let document = document();
    let fences = document.lines().filter(|line| line.starts_with("```hex"));
    assert_eq!(fences.count(), hex_blocks(&document).len());
}
