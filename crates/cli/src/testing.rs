//! Rows for tests.

use std::collections::BTreeMap;

use rollcall_protocol::api::{EventKind, EventRow, Health, Mode, Presence, SlaveRow};

/// A slave of that name, up and well, last seen at 60 s.
pub(crate) fn row(name: &str) -> SlaveRow {
    SlaveRow {
        name: name.to_owned(),
        id: "00112233445566778899aabbccddeeff".to_owned(),
        presence: Presence::Up,
        health: Some(Health::Ok),
        since_ms: 40_000,
        last_seen_ms: Some(60_000),
        interval_ms: 10_000,
        stream: "0123456789abcdef".to_owned(),
        sequence: 42,
        applied: 1_042,
        duplicates: 3,
        gaps: 0,
        clock_offset_ms: Some(-12),
        mode: Mode::Pooled,
        peer: Some("127.0.0.1:4711".to_owned()),
        connected_since_ms: Some(30_000),
        reconnects: 2,
        labels: BTreeMap::from([
            ("role".to_owned(), "web".to_owned()),
            ("site".to_owned(), "a".to_owned()),
        ]),
    }
}

/// A check of that slave that turned critical, at 50 s.
pub(crate) fn event(id: i64, slave: &str) -> EventRow {
    EventRow {
        id,
        time_ms: 50_000,
        recorded_ms: 50_001,
        kind: EventKind::Check,
        slave: Some(slave.to_owned()),
        subject: Some("disk".to_owned()),
        from: Some("ok".to_owned()),
        to: Some("critical".to_owned()),
        text: "92 % full".to_owned(),
        replayed: false,
    }
}
