//! The protocol as far as a bare server needs it, with as little work as possible.
//!
//! A report is not decoded: its stream and sequence are picked out of the first bytes, and an ack
//! is written byte by byte. Only Hello, which comes once a connection, goes through the codec.

use std::io;

use rollcall_protocol::frame::{self, FrameError};
use rollcall_protocol::limits::{
    FRAME_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX, ID_BYTES, VERSION_MAX, WINDOW,
};
use rollcall_protocol::wire::{Hello, Mark, Mode, ToMaster, ToSlave, Welcome, to_master, to_slave};

use crate::inbox::Inbox;
use crate::template::varint;

/// Tags of the encoding: the field's number and how it is written.
const TAG_REPORT: u8 = 2 << 3 | 2;
const TAG_ACK: u8 = 2 << 3 | 2;
const TAG_STREAM: u8 = 1 << 3 | 1;
const TAG_SEQUENCE: u8 = 2 << 3;

/// What a server keeps of a connection.
#[derive(Debug, Default)]
pub(super) struct Peer {
    inbox: Inbox,
    /// Reports still to come in per-message mode.
    frames_left: Option<u32>,
}

/// Something that a peer sent.
#[derive(Debug, PartialEq)]
pub(super) enum Item<'a> {
    /// The answer to its Hello.
    Welcome(Box<ToSlave>),
    /// A report: to be acked.
    Report {
        /// Its stream.
        stream: u64,
        /// Its sequence.
        sequence: u64,
        /// The whole frame.
        frame: &'a [u8],
    },
}

impl Peer {
    /// Whether it is in per-message mode and has sent all that it announced.
    pub(super) fn is_complete(&self) -> bool {
        self.frames_left == Some(0)
    }

    /// Whether it is in per-message mode: its answers may wait for each other.
    pub(super) fn is_per_message(&self) -> bool {
        self.frames_left.is_some()
    }

    /// Hands each item that `bytes` makes whole to `take`.
    pub(super) fn feed(&mut self, bytes: &[u8], mut take: impl FnMut(Item<'_>)) -> io::Result<()> {
        let frames_left = &mut self.frames_left;
        let result: Result<(), FrameError> = self.inbox.feed(bytes, |frame, whole| {
            if let Some((stream, sequence)) = pick_report(frame.payload) {
                *frames_left = frames_left.map(|left| left.saturating_sub(1));
                take(Item::Report {
                    stream,
                    sequence,
                    frame: whole,
                });
            } else if let Some(to_master::Kind::Hello(hello)) = frame.decode::<ToMaster>()?.kind {
                *frames_left = (hello.mode() == Mode::PerMessage).then_some(hello.frames);
                take(Item::Welcome(Box::new(welcome(&hello))));
            }
            Ok(())
        });
        result.map_err(io::Error::other)
    }
}

/// Grants what the master grants by default, and knows of each stream what the slave says itself.
fn welcome(hello: &Hello) -> ToSlave {
    let marks = hello.pending.iter().map(|pending| Mark {
        stream: pending.stream,
        sequence: pending.first.saturating_sub(1),
    });
    let welcome = Welcome {
        version: VERSION_MAX,
        master_id: vec![0; ID_BYTES],
        master_version: "baseline".to_owned(),
        marks: marks.collect(),
        max_frame_bytes: u32::try_from(FRAME_PAYLOAD_BYTES_MAX).unwrap_or(u32::MAX),
        window: WINDOW,
        ..Welcome::default()
    };
    ToSlave {
        kind: Some(to_slave::Kind::Welcome(welcome)),
    }
}

/// Stream and sequence of a report, whose encoding begins with them.
fn pick_report(payload: &[u8]) -> Option<(u64, u64)> {
    let rest = payload.strip_prefix(&[TAG_REPORT])?;
    let (_, rest) = read_varint(rest)?;
    let (stream, rest) = rest.strip_prefix(&[TAG_STREAM])?.split_first_chunk()?;
    let (sequence, _) = read_varint(rest.strip_prefix(&[TAG_SEQUENCE])?)?;
    Some((u64::from_le_bytes(*stream), sequence))
}

fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

/// Appends the frame of an ack.
pub(super) fn append_ack(stream: u64, sequence: u64, out: &mut Vec<u8>) {
    let (sequence, length) = varint(sequence);
    // The tag and the eight bytes of the stream, the tag and the varint of the sequence.
    let ack_bytes = u8::try_from(1 + 8 + 1 + length).unwrap_or(u8::MAX);
    out.extend_from_slice(&[0, 0, 0, 2 + ack_bytes, TAG_ACK, ack_bytes, TAG_STREAM]);
    out.extend_from_slice(&stream.to_le_bytes());
    out.push(TAG_SEQUENCE);
    out.extend_from_slice(&sequence[..length]);
}

/// Appends any other frame.
pub(super) fn append(message: &ToSlave, out: &mut Vec<u8>) -> io::Result<()> {
    frame::encode(message, out).map_err(io::Error::other)
}

/// A buffer to read into, shared by all connections.
pub(super) fn read_buffer() -> Box<[u8]> {
    vec![0; FRAME_BYTES_MAX].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::frame::Frame;
    use rollcall_protocol::wire::{Ack, Pending};

    use super::*;
    use crate::template::{Patch, Templates};

    fn reports(sequences: std::ops::RangeInclusive<u64>) -> Vec<u8> {
        let templates = Templates::new(150).unwrap();
        let mut bytes = Vec::new();
        for sequence in sequences {
            let patch = Patch {
                stream: 0xfeed,
                sequence,
                time_ms: 1_800_000_000_000,
                live: true,
            };
            templates.append(&patch, &mut bytes);
        }
        bytes
    }

    #[test]
    fn an_ack_is_what_the_codec_reads() {
        for sequence in [1, 127, 128, 1 << 40, u64::MAX] {
            let mut bytes = Vec::new();
            append_ack(0xabcd_ef01_2345_6789, sequence, &mut bytes);
            let frame = Frame::peek(&bytes, 100).unwrap().unwrap();
            assert_eq!(frame.taken, bytes.len());
            let ack = Ack {
                stream: 0xabcd_ef01_2345_6789,
                sequence,
                ..Ack::default()
            };
            let expected = ToSlave {
                kind: Some(to_slave::Kind::Ack(ack)),
            };
            assert_eq!(frame.decode::<ToSlave>().unwrap(), expected);
        }
    }

    #[test]
    fn reports_are_found_however_the_stream_is_cut() {
        let bytes = reports(126..=130);
        for size in [1, 7, 149, 150, 151, 1000] {
            let mut peer = Peer::default();
            let mut found = Vec::new();
            for part in bytes.chunks(size) {
                peer.feed(part, |item| match item {
                    Item::Report {
                        stream: 0xfeed,
                        sequence,
                        frame,
                    } => {
                        assert_eq!(frame.len(), 150);
                        found.push(sequence);
                    }
                    other => panic!("{other:?}"),
                })
                .unwrap();
            }
            assert_eq!(found, [126, 127, 128, 129, 130], "cut every {size} bytes");
        }
    }

    #[test]
    fn a_per_message_peer_is_complete_after_what_it_announced() {
        let hello = Hello {
            mode: Mode::PerMessage.into(),
            frames: 2,
            pending: vec![Pending {
                stream: 0xfeed,
                first: 8,
            }],
            ..Hello::default()
        };
        let mut bytes = Vec::new();
        let hello = ToMaster {
            kind: Some(to_master::Kind::Hello(hello)),
        };
        frame::encode(&hello, &mut bytes).unwrap();
        let mut peer = Peer::default();
        peer.feed(&bytes, |item| match item {
            Item::Welcome(welcome) => match welcome.kind {
                Some(to_slave::Kind::Welcome(welcome)) => assert_eq!(welcome.marks[0].sequence, 7),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        })
        .unwrap();
        assert!(peer.is_per_message() && !peer.is_complete());
        peer.feed(&reports(8..=9), |_| ()).unwrap();
        assert!(peer.is_complete());
    }
}
