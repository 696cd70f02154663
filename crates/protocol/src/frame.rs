//! Frames: a 4-byte big-endian length, then that many bytes of one message.
//!
//! The decoder works on bytes that somebody else owns, for example bytes that were only peeked. It
//! says how many of them a whole frame took, and a frame that is not complete yet is no error.

use alloc::vec::Vec;

use bytes::BufMut;
use prost::Message;

use crate::limits::{FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};

/// Why bytes are not a frame, or a payload no message. Nothing that follows can be read either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is zero or over the limit.
    #[error("a frame of {length} bytes by its length; 1 to {limit} are allowed")]
    Length {
        /// What the header says.
        length: u32,
        /// The largest payload in bytes.
        limit: usize,
    },
    /// The payload is not the protobuf message that belongs here.
    #[error("the frame's payload is not a message of this protocol: {0}")]
    Payload(#[from] prost::DecodeError),
}

/// A whole frame at the beginning of the bytes that were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The encoded message.
    pub payload: &'a [u8],
    /// Bytes that the frame took, header included.
    pub taken: usize,
}

impl<'a> Frame<'a> {
    /// Looks for a whole frame at the beginning of `bytes`; `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError::Length`], as soon as the header is there: nothing of that size was allocated.
    pub fn peek(bytes: &'a [u8], payload_bytes_max: usize) -> Result<Option<Self>, FrameError> {
        let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*header);
        match usize::try_from(length) {
            Ok(size) if size > 0 && size <= payload_bytes_max => {
                Ok(rest.get(..size).map(|payload| Self {
                    payload,
                    taken: FRAME_HEADER_BYTES + size,
                }))
            }
            _ => Err(FrameError::Length {
                length,
                limit: payload_bytes_max,
            }),
        }
    }

    /// Decodes the payload.
    ///
    /// # Errors
    /// [`FrameError::Payload`]
    pub fn decode<M: Message + Default>(&self) -> Result<M, FrameError> {
        Ok(M::decode(self.payload)?)
    }
}

/// Walks over the whole frames at the beginning of some bytes, and counts what they took.
#[derive(Debug)]
pub struct Frames<'a> {
    bytes: &'a [u8],
    payload_bytes_max: usize,
    taken: usize,
}

impl<'a> Frames<'a> {
    /// Begins at the first byte of `bytes`.
    pub fn new(bytes: &'a [u8], payload_bytes_max: usize) -> Self {
        Self {
            bytes,
            payload_bytes_max,
            taken: 0,
        }
    }

    /// Bytes of the whole frames returned so far.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// The next whole frame; `None` if what is left is not a whole one.
    ///
    /// # Errors
    /// [`FrameError::Length`]; calling again returns it again.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'a>>, FrameError> {
        let frame = Frame::peek(&self.bytes[self.taken..], self.payload_bytes_max)?;
        if let Some(frame) = &frame {
            self.taken += frame.taken;
        }
        Ok(frame)
    }
}

/// The message does not fit into a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {bytes} bytes; a frame holds at most {FRAME_PAYLOAD_BYTES_MAX}")]
pub struct TooLarge {
    /// The encoded size in bytes.
    pub bytes: usize,
}

/// Appends `message` as one frame to `out`.
///
/// # Errors
/// [`TooLarge`]; nothing was appended then.
pub fn encode<M: Message>(message: &M, out: &mut Vec<u8>) -> Result<(), TooLarge> {
    let bytes = message.encoded_len();
    let length = match u32::try_from(bytes) {
        Ok(length) if bytes <= FRAME_PAYLOAD_BYTES_MAX => length,
        _ => return Err(TooLarge { bytes }),
    };
    out.reserve(FRAME_HEADER_BYTES + bytes);
    out.put_u32(length);
    message.encode_raw(out);
    Ok(())
}

const _: () = assert!(FRAME_BYTES_MAX == 64 * 1024);

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::wire::{Ack, ToSlave, to_slave};

    fn ack(sequence: u64) -> ToSlave {
        let ack = Ack {
            stream: 7,
            sequence,
            ..Ack::default()
        };
        ToSlave {
            kind: Some(to_slave::Kind::Ack(ack)),
        }
    }

    #[test]
    fn a_frame_is_found_only_when_it_is_whole() {
        let mut bytes = Vec::new();
        encode(&ack(5), &mut bytes).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(Frame::peek(&bytes[..cut], 100), Ok(None), "cut at {cut}");
        }
        bytes.push(0xff);
        let frame = Frame::peek(&bytes, 100).unwrap().unwrap();
        assert_eq!(frame.taken, bytes.len() - 1);
        assert_eq!(frame.decode::<ToSlave>(), Ok(ack(5)));
    }

    #[test]
    fn both_bounds_of_the_length_are_checked_before_the_payload_is_there() {
        for (length, limit) in [(0, 10), (11, 10), (u32::MAX, FRAME_PAYLOAD_BYTES_MAX)] {
            let header = length.to_be_bytes();
            let error = FrameError::Length { length, limit };
            assert_eq!(Frame::peek(&header, limit), Err(error));
        }
        assert_eq!(Frame::peek(&10_u32.to_be_bytes(), 10), Ok(None));
    }

    #[test]
    fn a_message_over_the_limit_is_not_encoded() {
        let text = "x".repeat(FRAME_PAYLOAD_BYTES_MAX);
        let error = crate::wire::Error {
            text,
            ..Default::default()
        };
        let message = ToSlave {
            kind: Some(to_slave::Kind::Error(error)),
        };
        let mut out = vec![1, 2, 3];
        assert!(encode(&message, &mut out).is_err());
        assert_eq!(out, [1, 2, 3]);
    }
}
