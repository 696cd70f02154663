//! The API's enumerations as people type and read them.

use rollcall_protocol::api::{EventKind, Health, Mode, Presence};

use crate::style::Tone;

/// Every presence, from best to worst.
pub(crate) const PRESENCES: [Presence; 5] = [
    Presence::Up,
    Presence::Expected,
    Presence::Left,
    Presence::Late,
    Presence::Missing,
];

/// Every health, from best to worst.
pub(crate) const HEALTHS: [Health; 4] = [
    Health::Ok,
    Health::Unknown,
    Health::Warning,
    Health::Critical,
];

/// Every kind of event.
pub(crate) const KINDS: [EventKind; 11] = [
    EventKind::Enrolled,
    EventKind::Presence,
    EventKind::Health,
    EventKind::Check,
    EventKind::Gap,
    EventKind::Conflict,
    EventKind::Resync,
    EventKind::Restart,
    EventKind::Renamed,
    EventKind::MasterStart,
    EventKind::Degraded,
];

/// As in the API.
pub(crate) fn presence(presence: Presence) -> &'static str {
    match presence {
        Presence::Expected => "expected",
        Presence::Up => "up",
        Presence::Late => "late",
        Presence::Missing => "missing",
        Presence::Left => "left",
    }
}

/// As in the API.
pub(crate) fn health(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Warning => "warning",
        Health::Critical => "critical",
        Health::Unknown => "unknown",
    }
}

/// As in the API.
pub(crate) fn kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Enrolled => "enrolled",
        EventKind::Presence => "presence",
        EventKind::Health => "health",
        EventKind::Check => "check",
        EventKind::Gap => "gap",
        EventKind::Conflict => "conflict",
        EventKind::Resync => "resync",
        EventKind::Restart => "restart",
        EventKind::Renamed => "renamed",
        EventKind::MasterStart => "master_start",
        EventKind::Degraded => "degraded",
    }
}

/// As in the API.
pub(crate) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Pooled => "pooled",
        Mode::PerMessage => "per-message",
        Mode::Datagram => "datagram",
    }
}

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

#[cfg(test)]
mod tests {
    use serde_json::{Value, to_value};

    #[test]
    fn the_words_are_those_of_the_api() {
        for one in super::PRESENCES {
            assert_eq!(to_value(one).unwrap(), Value::from(super::presence(one)));
        }
        for one in super::HEALTHS {
            assert_eq!(to_value(one).unwrap(), Value::from(super::health(one)));
        }
        for one in super::KINDS {
            assert_eq!(to_value(one).unwrap(), Value::from(super::kind(one)));
        }
    }
}
