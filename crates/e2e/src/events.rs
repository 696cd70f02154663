//! The log events of the programs' source, and those of `docs/logging.md`.

use std::collections::{BTreeMap, BTreeSet};

use crate::source;

/// What is said of an event at all its places together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its levels; more than one is allowed and looks odd.
    pub levels: BTreeSet<String>,
    /// Its fields besides `event` and `message`.
    pub fields: BTreeSet<String>,
    /// What it means, or the messages of its lines.
    pub meaning: BTreeSet<String>,
    /// It comes out of a macro with all fields that any of its events has.
    pub may_lack_fields: bool,
}

/// By program and name.
pub type Events = BTreeMap<(Program, String), Event>;

/// Whose event it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// Both daemons', or the library's that both are built on.
    Both,
    /// `rollcall-master`.
    Master,
    /// `rollcall-slave`.
    Slave,
}

const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The events in the source of the daemons, without tests.
pub fn in_source() -> Events {
    let mut events = Events::new();
    for path in source::program_files() {
        let program = match path.iter().nth(1).and_then(|part| part.to_str()) {
            Some("master") => Program::Master,
            Some("slave") => Program::Slave,
            _ => Program::Both,
        };
        for (name, found) in in_text(&source::program_text(&path)) {
            let known = events.entry((program, name)).or_default();
            known.levels.extend(found.levels);
            known.fields.extend(found.fields);
            known.meaning.extend(found.meaning);
            known.may_lack_fields |= found.may_lack_fields;
        }
    }
    events
}

/// The rows `| \`name\` | level | fields | meaning |` of a document, which has a section for each
/// program.
pub fn in_document(text: &str) -> Events {
    let mut program = Program::Both;
    let mut events = Events::new();
    for line in text.lines() {
        match line {
            "## rollcall-master" => program = Program::Master,
            "## rollcall-slave" => program = Program::Slave,
            _ if line.starts_with("## ") => program = Program::Both,
            _ => {}
        }
        if let Some((name, event)) = row_of(line) {
            events.insert((program, name), event);
        }
    }
    events
}

fn row_of(line: &str) -> Option<(String, Event)> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    let cells: Vec<_> = inner.split('|').collect();
    let [name, level, fields, meaning] = cells[..] else {
        return None;
    };
    let name = name.trim().strip_prefix('`')?.strip_suffix('`')?;
    let event = Event {
        levels: words(level).collect(),
        fields: words(fields).collect(),
        meaning: BTreeSet::from([meaning.trim().to_owned()]),
        may_lack_fields: false,
    };
    Some((name.to_owned(), event))
}

/// An event as a row of the document.
pub fn row(name: &str, event: &Event) -> String {
    let join = |words: &BTreeSet<String>, mark: &str| {
        let words: Vec<_> = words
            .iter()
            .map(|word| format!("{mark}{word}{mark}"))
            .collect();
        words.join(", ")
    };
    let meaning: Vec<_> = event.meaning.iter().map(String::as_str).collect();
    format!(
        "| `{name}` | {} | {} | {} |",
        join(&event.levels, ""),
        join(&event.fields, "`"),
        meaning.join("; ")
    )
}

fn words(cell: &str) -> impl Iterator<Item = String> {
    let parts = cell.split([',', ' ']).map(|word| word.trim_matches('`'));
    parts
        .filter(|word| !word.is_empty() && *word != "-" && *word != "–")
        .map(str::to_owned)
}

/// Calls of `tracing`'s macros. The events of a macro that wraps them, `line!(level, event = "name",
/// "message")`, have the fields of the call within it.
fn in_text(text: &str) -> Vec<(String, Event)> {
    let mut found = Vec::new();
    let mut wrapped_fields = BTreeSet::new();
    for (at, _) in text.match_indices("tracing::") {
        let rest = &text[at + "tracing::".len()..];
        let Some((level, rest)) = rest.split_once('!') else {
            continue;
        };
        let Some(arguments) = arguments(rest) else {
            continue;
        };
        let Some((name, event)) = event_of(level, &arguments) else {
            continue;
        };
        if name == "$event" {
            wrapped_fields = event.fields;
        } else if LEVELS.contains(&level) {
            found.push((name, event));
        }
    }
    for (at, _) in text.match_indices("line!") {
        let arguments = arguments(&text[at + "line!".len()..]).unwrap_or_default();
        let [level, name, message] = &arguments[..] else {
            continue;
        };
        let event = Event {
            levels: BTreeSet::from([level.clone()]),
            fields: wrapped_fields.clone(),
            meaning: BTreeSet::from([unquote(message)]),
            may_lack_fields: true,
        };
        let name = name.split_once('=').map_or(&**name, |(_, name)| name);
        found.push((unquote(name), event));
    }
    found
}

fn event_of(level: &str, arguments: &[String]) -> Option<(String, Event)> {
    let mut event = Event {
        levels: BTreeSet::from([level.to_owned()]),
        ..Event::default()
    };
    let mut name = None;
    for argument in arguments {
        let head = argument.split(['"', '(']).next().unwrap_or_default();
        match argument.split_once('=') {
            Some((key, value)) if head.contains('=') && key.trim() == "event" => {
                name = Some(unquote(value));
            }
            Some((key, _)) if head.contains('=') => {
                event.fields.insert(key.trim().to_owned());
            }
            _ if argument.starts_with('"') => {
                event.meaning.insert(unquote(argument));
            }
            // The message of a macro that wraps this one.
            _ if argument.starts_with('$') => {}
            _ => {
                let field = argument.trim_start_matches(['%', '?']);
                event.fields.insert(field.to_owned());
            }
        }
    }
    Some((name?, event))
}

/// The arguments of a macro call that begins with its bracket.
fn arguments(text: &str) -> Option<Vec<String>> {
    if !text.starts_with(['(', '{', '[']) {
        return None;
    }
    let (mut depth, mut is_quoted, mut is_escaped) = (0_u32, false, false);
    let (mut arguments, mut current) = (Vec::new(), String::new());
    for character in text.chars() {
        let opens = !is_quoted && "([{".contains(character);
        let closes = !is_quoted && ")]}".contains(character);
        if closes && depth == 1 {
            arguments.push(current);
            arguments = arguments
                .iter()
                .map(|part| part.trim().to_owned())
                .collect();
            arguments.retain(|part| !part.is_empty());
            return Some(arguments);
        }
        depth = depth + u32::from(opens) - u32::from(closes);
        if character == '"' && !is_escaped {
            is_quoted = !is_quoted;
        }
        is_escaped = is_quoted && character == '\\' && !is_escaped;
        if character == ',' && depth == 1 && !is_quoted {
            arguments.push(std::mem::take(&mut current));
        } else if !(opens && depth == 1) {
            current.push(character);
        }
    }
    None
}

fn unquote(literal: &str) -> String {
    literal.trim().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_taken_apart() {
        let text = r#"
            tracing::warn!(event = "a_b", peer = %x.y(1, 2), code = "x=y", n, %slave,
                "a message, with (brackets) = and \" quotes");
            macro_rules! line { ($l:ident, $event:literal, $m:literal) => {
                tracing::$l!(event = $event, from = a.as_deref(), $m) }; }
            line!(info, event = "c", "another")
            tracing::instrument!(event = "no")
        "#;
        let events: BTreeMap<String, Event> = in_text(text).into_iter().collect();
        assert_eq!(events.len(), 2, "{events:?}");
        assert_eq!(
            row("a_b", &events["a_b"]),
            r#"| `a_b` | warn | `code`, `n`, `peer`, `slave` | a message, with (brackets) = and \" quotes |"#
        );
        assert_eq!(row("c", &events["c"]), "| `c` | info | `from` | another |");
    }

    #[test]
    fn a_row_comes_back_as_it_was() {
        let event = Event {
            levels: BTreeSet::from(["info".to_owned()]),
            fields: BTreeSet::from(["peer".to_owned(), "error".to_owned()]),
            meaning: BTreeSet::from(["It happened.".to_owned()]),
            may_lack_fields: false,
        };
        let row = row("x", &event);
        let text = format!("| Event | Level |\n|---|---|---|---|\n## rollcall-slave\n{row}\n");
        let key = (Program::Slave, "x".to_owned());
        assert_eq!(in_document(&text), Events::from([(key, event)]));
        let (name, none) = row_of("| `y` | debug | – | Nothing else. |").unwrap();
        assert_eq!((&*name, none.fields.len()), ("y", 0));
    }
}
