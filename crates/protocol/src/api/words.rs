//! The words by which the enumerations go, everywhere.

use super::{EventKind, Health, Mode, Presence};

impl Presence {
    /// Every presence, from best to worst.
    pub const ALL: [Self; 5] = [
        Self::Up,
        Self::Expected,
        Self::Left,
        Self::Late,
        Self::Missing,
    ];

    /// The word for it in JSON, in the store and in texts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Expected => "expected",
            Self::Left => "left",
            Self::Late => "late",
            Self::Missing => "missing",
        }
    }
}

impl Health {
    /// Every health, in the order in which people list them.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Unknown, Self::Warning, Self::Critical];

    /// The word for it in JSON, in the store and in texts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Pooled, Self::PerMessage, Self::Datagram];

    /// The word for it in JSON, in the store and in texts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pooled => "pooled",
            Self::PerMessage => "per-message",
            Self::Datagram => "datagram",
        }
    }
}

impl EventKind {
    /// Every kind of event.
    pub const ALL: [Self; 11] = [
        Self::Enrolled,
        Self::Presence,
        Self::Health,
        Self::Check,
        Self::Gap,
        Self::Conflict,
        Self::Resync,
        Self::Restart,
        Self::Renamed,
        Self::MasterStart,
        Self::Degraded,
    ];

    /// The word for it in JSON, in the store and in texts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Presence => "presence",
            Self::Health => "health",
            Self::Check => "check",
            Self::Gap => "gap",
            Self::Conflict => "conflict",
            Self::Resync => "resync",
            Self::Restart => "restart",
            Self::Renamed => "renamed",
            Self::MasterStart => "master_start",
            Self::Degraded => "degraded",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_json() {
        fn check<T: Copy + serde::Serialize>(all: &[T], word: impl Fn(T) -> &'static str) {
            for &one in all {
                assert_eq!(serde_json::to_value(one).unwrap(), word(one));
            }
        }
        check(&Presence::ALL, Presence::as_str);
        check(&Health::ALL, Health::as_str);
        check(&Mode::ALL, Mode::as_str);
        check(&EventKind::ALL, EventKind::as_str);
    }
}
