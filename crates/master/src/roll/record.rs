//! What of the roll goes to disk: a record for each slave, and the redo of what came since.

use std::collections::BTreeMap;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use rollcall_protocol::api::{Health, Mode, Presence};
use rollcall_protocol::wire::{self, Mark, Status};

use crate::view::SlaveId;

/// A slave on disk. Field numbers only ever grow.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SlaveRecord {
    /// The group that this record was written with: older redo is contained in it.
    #[prost(uint64, tag = "1")]
    pub(crate) group: u64,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    #[prost(enumeration = "StoredPresence", tag = "4")]
    pub(crate) presence: i32,
    #[prost(enumeration = "wire::Health", optional, tag = "5")]
    pub(crate) health: Option<i32>,
    #[prost(int64, tag = "6")]
    pub(crate) since_ms: i64,
    #[prost(int64, optional, tag = "7")]
    pub(crate) last_seen_ms: Option<i64>,
    #[prost(uint32, tag = "8")]
    pub(crate) interval_ms: u32,
    #[prost(fixed64, tag = "9")]
    pub(crate) stream: u64,
    #[prost(message, repeated, tag = "10")]
    pub(crate) marks: Vec<Mark>,
    #[prost(uint64, tag = "11")]
    pub(crate) applied: u64,
    #[prost(uint64, tag = "12")]
    pub(crate) duplicates: u64,
    #[prost(uint64, tag = "13")]
    pub(crate) gaps: u64,
    #[prost(sint64, optional, tag = "14")]
    pub(crate) clock_offset_ms: Option<i64>,
    #[prost(enumeration = "wire::Mode", tag = "15")]
    pub(crate) mode: i32,
    #[prost(string, optional, tag = "16")]
    pub(crate) peer: Option<String>,
    #[prost(uint64, tag = "17")]
    pub(crate) connects: u64,
    #[prost(btree_map = "string, string", tag = "18")]
    pub(crate) labels: BTreeMap<String, String>,
    #[prost(string, tag = "19")]
    pub(crate) agent_version: String,
    #[prost(message, optional, tag = "20")]
    pub(crate) newest: Option<Newest>,
    #[prost(message, optional, tag = "21")]
    pub(crate) catching_up: Option<CatchingUp>,
    #[prost(message, optional, tag = "22")]
    pub(crate) leaving: Option<Leaving>,
}

/// The newest live report.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Newest {
    #[prost(fixed64, tag = "1")]
    pub(crate) stream: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) sequence: u64,
    #[prost(int64, tag = "3")]
    pub(crate) time_ms: i64,
    #[prost(message, optional, tag = "4")]
    pub(crate) status: Option<Status>,
}

/// Where history stands while live reports run ahead of the backlog.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CatchingUp {
    /// What the last report said that was applied in its place.
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Status>,
    #[prost(enumeration = "wire::Health", optional, tag = "2")]
    pub(crate) health: Option<i32>,
    /// The live reports that ran ahead: their changes have been told.
    #[prost(message, repeated, tag = "3")]
    pub(crate) previewed: Vec<Mark>,
    /// What the roll showed before the next of those ran ahead: what its changes were told against.
    #[prost(message, optional, tag = "4")]
    pub(crate) shown: Option<Status>,
    #[prost(enumeration = "wire::Health", optional, tag = "5")]
    pub(crate) shown_health: Option<i32>,
}

/// A goodbye of which no event tells yet: the slave may be back in a moment.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Leaving {
    /// The presence before it, which the newest event tells.
    #[prost(enumeration = "StoredPresence", tag = "1")]
    pub(crate) told: i32,
    /// Since when the roll had shown what it showed before it.
    #[prost(int64, tag = "2")]
    pub(crate) since_ms: i64,
    /// It means to be back after this; 0 if it did not say so.
    #[prost(uint32, tag = "3")]
    pub(crate) back_ms: u32,
}

/// One input of the roll, as it is replayed after a crash.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RedoEntry {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) slave_id: Vec<u8>,
    /// When it was read or decided, in ms since 1970.
    #[prost(int64, tag = "2")]
    pub(crate) wall_ms: i64,
    /// The encoded `ToMaster`, as it came; empty for a change of presence.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) message: Vec<u8>,
    /// The new presence, where the passing of time made it worse.
    #[prost(enumeration = "StoredPresence", optional, tag = "4")]
    pub(crate) presence: Option<i32>,
    /// Where a Hello came from.
    #[prost(string, tag = "5")]
    pub(crate) peer: String,
}

impl RedoEntry {
    /// Appends the entry of a message of `slave`, with its length before it: what prost would make of
    /// it, without a copy of the message on the way.
    pub(crate) fn append_message(
        slave: &SlaveId,
        wall_ms: i64,
        message: &[u8],
        peer: &str,
        out: &mut Vec<u8>,
    ) {
        let fields = [(1, slave.as_slice()), (3, message), (5, peer.as_bytes())];
        let fields = fields.iter().filter(|(_, bytes)| !bytes.is_empty());
        let wall = wall_ms.cast_unsigned();
        let mut length = 1 + encoded_len_varint(wall);
        for (tag, bytes) in fields.clone() {
            let bytes = bytes.len();
            length += key_len(*tag) + encoded_len_varint(bytes as u64) + bytes;
        }
        out.reserve(encoded_len_varint(length as u64) + length);
        encode_varint(length as u64, out);
        encode_key(2, WireType::Varint, out);
        encode_varint(wall, out);
        for (tag, bytes) in fields {
            encode_key(*tag, WireType::LengthDelimited, out);
            encode_varint(bytes.len() as u64, out);
            out.extend_from_slice(bytes);
        }
    }
}

/// [`Presence`] on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum StoredPresence {
    Expected = 0,
    Up = 1,
    Late = 2,
    Missing = 3,
    Left = 4,
}

impl From<Presence> for StoredPresence {
    fn from(presence: Presence) -> Self {
        match presence {
            Presence::Expected => Self::Expected,
            Presence::Up => Self::Up,
            Presence::Late => Self::Late,
            Presence::Missing => Self::Missing,
            Presence::Left => Self::Left,
        }
    }
}

impl From<StoredPresence> for Presence {
    fn from(stored: StoredPresence) -> Self {
        match stored {
            StoredPresence::Expected => Self::Expected,
            StoredPresence::Up => Self::Up,
            StoredPresence::Late => Self::Late,
            StoredPresence::Missing => Self::Missing,
            StoredPresence::Left => Self::Left,
        }
    }
}

/// Health as readers see it; what a newer version may say beyond it is unknown.
pub(crate) fn health(wire: i32) -> Health {
    match wire::Health::try_from(wire) {
        Ok(wire::Health::Ok) => Health::Ok,
        Ok(wire::Health::Warning) => Health::Warning,
        Ok(wire::Health::Critical) => Health::Critical,
        Ok(wire::Health::Unknown) | Err(_) => Health::Unknown,
    }
}

/// Health as the slave says it.
pub(crate) fn wire_health(health: Health) -> i32 {
    match health {
        Health::Ok => wire::Health::Ok,
        Health::Warning => wire::Health::Warning,
        Health::Critical => wire::Health::Critical,
        Health::Unknown => wire::Health::Unknown,
    }
    .into()
}

/// The mode as readers see it.
pub(crate) fn mode(wire: i32) -> Mode {
    match wire::Mode::try_from(wire) {
        Ok(wire::Mode::PerMessage) => Mode::PerMessage,
        Ok(wire::Mode::Datagram) => Mode::Datagram,
        Ok(wire::Mode::Pooled) | Err(_) => Mode::Pooled,
    }
}

/// The mode as the slave says it.
pub(crate) fn wire_mode(mode: Mode) -> i32 {
    match mode {
        Mode::Pooled => wire::Mode::Pooled,
        Mode::PerMessage => wire::Mode::PerMessage,
        Mode::Datagram => wire::Mode::Datagram,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_was_appended_is_read_back_and_what_follows_it_too() {
        let entry = |message: Vec<u8>, peer: &str| RedoEntry {
            slave_id: (1..=16).collect(),
            wall_ms: 1_800_000_000_123,
            message,
            presence: None,
            peer: peer.to_owned(),
        };
        let entries = [
            entry(vec![7; 3], ""),
            entry(vec![8; 300], "10.0.0.1:7412"),
            entry(vec![9; 60_000], ""),
        ];
        let mut out = Vec::new();
        for RedoEntry {
            slave_id,
            wall_ms,
            message,
            peer,
            ..
        } in &entries
        {
            let slave = slave_id.as_slice().try_into().unwrap();
            RedoEntry::append_message(slave, *wall_ms, message, peer, &mut out);
        }
        let mut left = out.as_slice();
        for entry in entries {
            assert_eq!(RedoEntry::decode_length_delimited(&mut left), Ok(entry));
        }
        assert!(left.is_empty());
    }

    #[test]
    fn what_is_stored_is_read_back() {
        for presence in Presence::ALL {
            assert_eq!(Presence::from(StoredPresence::from(presence)), presence);
        }
        for one in Health::ALL {
            assert_eq!(health(wire_health(one)), one);
        }
        for one in Mode::ALL {
            assert_eq!(mode(wire_mode(one)), one);
        }
    }
}
