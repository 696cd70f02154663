//! The API's words on a terminal and on the command line.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::terminal::style::Tone;

/// The colour of a presence or health by its word, as events carry them.
pub(crate) fn tone(state: &str) -> Tone {
    match state {
        "up" | "ok" => Tone::Good,
        "late" | "warning" => Tone::Warning,
        "missing" | "critical" => Tone::Bad,
        "unknown" => Tone::Odd,
        "left" | "expected" => Tone::Faint,
        _ => Tone::Plain,
    }
}

/// Parses one of the API's words.
pub(crate) fn one_of<T: Copy + Send + Sync + 'static>(
    values: &'static [T],
    word: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(values.iter().map(|value| word(*value))).try_map(move |text| {
        values
            .iter()
            .copied()
            .find(|value| word(*value) == text)
            .ok_or("not one of the values")
    })
}
