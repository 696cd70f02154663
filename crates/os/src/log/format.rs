//! The shapes of a line.
//!
//! Not tracing-subscriber's own formats: those leave newlines (plain text) and C1 control
//! characters (JSON) of a field's value as they are.

use std::error::Error;
use std::fmt::{self, Debug, Write};

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::clock;

/// Stands for the event's name on lines of libraries, which name none.
const LIBRARY_EVENT: &str = "library";
/// Keys of the line itself: a library's field of that name gets a prefix.
const RESERVED_KEYS: [&str; 3] = ["timestamp", "level", "target"];

/// `{"timestamp":…,"level":…,"target":…,"event":…,"message":…,<fields>}`
pub(super) struct Json;

/// `<timestamp> <LEVEL> <message> event=<name> <fields>`
pub(super) struct Pretty {
    pub(super) colour: bool,
}

/// Either shape: one type, because each type costs some ten kilobytes of the agent.
pub(super) enum Lines {
    Json(Json),
    Pretty(Pretty),
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self {
            Self::Json(json) => json.format_event(context, out, event),
            Self::Pretty(pretty) => pretty.format_event(context, out, event),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let line = Line::of(event);
        let meta = event.metadata();
        write!(
            out,
            r#"{{"timestamp":"{}","level":"{}","target":"#,
            now(),
            meta.level()
        )?;
        json_string(&mut out, meta.target())?;
        out.write_str(r#","event":"#)?;
        json_string(&mut out, line.event_name())?;
        out.write_str(r#","message":"#)?;
        json_string(&mut out, &line.message)?;
        for (key, value) in &line.fields {
            out.write_char(',')?;
            if RESERVED_KEYS.contains(key) {
                json_string(&mut out, &format!("field_{key}"))?;
            } else {
                json_string(&mut out, key)?;
            }
            out.write_char(':')?;
            match value {
                Value::Bare(text) => out.write_str(text)?,
                Value::Text(text) => json_string(&mut out, text)?,
            }
        }
        out.write_str("}\n")
    }
}

impl<S, N> FormatEvent<S, N> for Pretty
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let line = Line::of(event);
        let level = *event.metadata().level();
        let (dim, bright, reset) = if self.colour {
            ("\x1b[2m", level_colour(level), "\x1b[0m")
        } else {
            ("", "", "")
        };
        write!(out, "{dim}{}{reset} {bright}{level:<5}{reset} ", now())?;
        escaped(&mut out, &line.message)?;
        out.write_str(dim)?;
        plain_fields(&mut out, &line)?;
        writeln!(out, "{reset}")
    }
}

fn now() -> String {
    Timestamp::from_millisecond(clock::wall_ms())
        .map_or_else(|_| String::from("invalid"), |now| format!("{now:.3}"))
}

fn level_colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

/// What an event carries, in the order in which the line needs it.
#[derive(Default)]
pub(super) struct Line {
    event: Option<String>,
    message: String,
    pub(super) fields: Vec<(&'static str, Value)>,
}

pub(super) enum Value {
    /// A number or a truth value: written as it is.
    Bare(String),
    Text(String),
}

impl Value {
    /// As it is, not escaped.
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Bare(text) | Self::Text(text) => text,
        }
    }
}

impl Line {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut line = Self::default();
        event.record(&mut line);
        line
    }

    pub(super) fn event_name(&self) -> &str {
        self.event.as_deref().unwrap_or(LIBRARY_EVENT)
    }

    /// The message and the fields, for people, in one line.
    pub(super) fn plain(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = escaped(&mut text, &self.message).and_then(|()| plain_fields(&mut text, self));
        text
    }

    fn text(&mut self, field: &Field, text: String) {
        match field.name() {
            "event" => self.event = Some(text),
            "message" => self.message = text,
            name => self.fields.push((key(name), Value::Text(text))),
        }
    }

    fn bare(&mut self, field: &Field, value: impl ToString) {
        self.fields
            .push((key(field.name()), Value::Bare(value.to_string())));
    }
}

/// A field that is named like a keyword is written `r#type` in the code.
fn key(name: &'static str) -> &'static str {
    name.strip_prefix("r#").unwrap_or(name)
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.bare(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.bare(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.bare(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity and no NaN.
        if value.is_finite() {
            self.bare(field, value);
        } else {
            self.text(field, value.to_string());
        }
    }

    /// `error = &error as &dyn Error`: with its causes.
    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        self.text(field, text);
    }
}

/// Characters that could end a line, drive a terminal or reorder what a reader sees.
pub(crate) fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn json_string(out: &mut impl Write, text: &str) -> fmt::Result {
    out.write_char('"')?;
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                out.write_char('\\')?;
                out.write_char(character)?;
            }
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            // All of them lie below U+10000, where one \u escape is enough.
            _ if is_dangerous(character) => write!(out, "\\u{:04x}", u32::from(character))?,
            _ => out.write_char(character)?,
        }
    }
    out.write_char('"')
}

fn escaped(out: &mut impl Write, text: &str) -> fmt::Result {
    for character in text.chars() {
        if is_dangerous(character) {
            write!(out, "{}", character.escape_default())?;
        } else {
            out.write_char(character)?;
        }
    }
    Ok(())
}

/// ` event=<name> <field>=<value>…`
fn plain_fields(out: &mut impl Write, line: &Line) -> fmt::Result {
    out.write_str(" event=")?;
    plain_value(out, line.event_name())?;
    for (key, value) in &line.fields {
        write!(out, " {key}=")?;
        match value {
            Value::Bare(text) => out.write_str(text)?,
            Value::Text(text) => plain_value(out, text)?,
        }
    }
    Ok(())
}

/// Quotes what could be read as the end of the value or as another field.
fn plain_value(out: &mut impl Write, text: &str) -> fmt::Result {
    let is_ambiguous = |character: char| {
        character.is_whitespace()
            || is_dangerous(character)
            || matches!(character, '"' | '=' | '\\')
    };
    if text.is_empty() || text.contains(is_ambiguous) {
        json_string(out, text)
    } else {
        out.write_str(text)
    }
}
