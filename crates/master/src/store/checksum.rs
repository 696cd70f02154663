//! Checksums of rows: SQLite finds damage in its own structures, not in what the rows say.
//!
//! CRC-32 over the columns, each led by its length, so that no byte can move from one to the next.

use crc32fast::Hasher;
use rollcall_protocol::api::EventRow;
use rusqlite::Error;
use rusqlite::ffi;

/// A row's checksum in the making.
#[derive(Debug, Default)]
pub(super) struct Checksum(Hasher);

impl Checksum {
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(&bytes.len().to_le_bytes());
        self.0.update(bytes);
        self
    }

    pub(super) fn number(self, number: i64) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    /// An absent value differs from an empty one.
    pub(super) fn optional<T>(self, value: Option<T>, add: impl Fn(Self, T) -> Self) -> Self {
        match value {
            Some(value) => add(self.number(1), value),
            None => self.number(0),
        }
    }

    fn text(self, text: Option<&str>) -> Self {
        self.optional(text, |sum, text| sum.bytes(text.as_bytes()))
    }

    /// As the database stores it.
    pub(super) fn finish(self) -> i64 {
        self.0.finalize().into()
    }
}

pub(super) fn of_redo(group_id: i64, reports: &[u8]) -> i64 {
    Checksum::default().number(group_id).bytes(reports).finish()
}

pub(super) fn of_event(event: &EventRow) -> i64 {
    Checksum::default()
        .number(event.id)
        .number(event.time_ms)
        .number(event.recorded_ms)
        .text(Some(event.kind.as_str()))
        .text(event.slave.as_deref())
        .text(event.subject.as_deref())
        .text(event.from.as_deref())
        .text(event.to.as_deref())
        .text(Some(&event.text))
        .number(event.replayed.into())
        .finish()
}

/// The columns of a row of `slaves`.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlaveColumns<'a> {
    pub(super) id: &'a [u8],
    pub(super) name: &'a str,
    pub(super) presence: &'a str,
    pub(super) health: Option<&'a str>,
    pub(super) last_seen_ms: Option<i64>,
    pub(super) record: &'a [u8],
}

impl SlaveColumns<'_> {
    pub(super) fn checksum(&self) -> i64 {
        Checksum::default()
            .bytes(self.id)
            .text(Some(self.name))
            .text(Some(self.presence))
            .text(self.health)
            .optional(self.last_seen_ms, Checksum::number)
            .bytes(self.record)
            .finish()
    }
}

/// Damage that SQLite itself did not see, as the error that it gives for damage.
pub(super) fn damage(what: String) -> Error {
    Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what))
}

/// Damage, unless the stored checksum is the right one.
pub(super) fn verify(what: &str, key: i64, stored: i64, right: i64) -> rusqlite::Result<()> {
    if stored == right {
        return Ok(());
    }
    Err(damage(format!("{what} {key} fails its checksum")))
}
