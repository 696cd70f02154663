//! How the API's words look on a terminal.

use crate::style::Tone;

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
