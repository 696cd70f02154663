//! Frames: any split decodes alike, and no bytes can do harm.

use proptest::collection::vec;
use proptest::prelude::*;
use rollcall_protocol::frame::{self, Frame, FrameError, Frames};
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::wire::{ToMaster, ToSlave};

use crate::messages;

/// The messages that can be sent: those of a kind that this version knows.
fn sendable() -> impl Strategy<Value = ToMaster> {
    messages::to_master().prop_filter("a kind", |message| message.kind.is_some())
}

fn encode(messages: &[ToMaster]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        frame::encode(message, &mut bytes).expect("arbitrary messages are small");
    }
    bytes
}

/// A reader that only peeks: the bytes that have arrived stay where they are until it consumes
/// those of whole frames, and it may look at them any number of times before that.
#[derive(Default)]
struct Reader {
    /// Arrived and not consumed.
    kernel: Vec<u8>,
    /// Bytes at its front that were decoded and not consumed yet.
    decoded: usize,
    payloads: Vec<Vec<u8>>,
}

impl Reader {
    /// Decodes at most `most` frames of what has not been decoded.
    fn look(&mut self, most: usize) -> Result<(), FrameError> {
        let mut frames = Frames::new(&self.kernel[self.decoded..], FRAME_PAYLOAD_BYTES_MAX);
        for _ in 0..most {
            let Some(frame) = frames.next_frame()? else {
                break;
            };
            self.payloads.push(frame.payload.to_vec());
        }
        self.decoded += frames.taken();
        Ok(())
    }

    fn consume(&mut self) {
        self.kernel.drain(..self.decoded);
        self.decoded = 0;
    }
}

/// One turn of a reader: so many bytes arrive, it decodes so many frames, and maybe consumes.
fn turns() -> impl Strategy<Value = Vec<(usize, usize, bool)>> {
    vec((0_usize..60, 0_usize..4, any::<bool>()), 0..80)
}

/// Reads `bytes` in these turns, and whatever is left at once.
fn read(bytes: &[u8], turns: &[(usize, usize, bool)]) -> Result<Vec<Vec<u8>>, FrameError> {
    let mut reader = Reader::default();
    let mut left = bytes;
    for &(arriving, frames, consume) in turns {
        let (now, later) = left.split_at(arriving.min(left.len()));
        reader.kernel.extend_from_slice(now);
        left = later;
        reader.look(frames)?;
        if consume {
            reader.consume();
        }
    }
    reader.kernel.extend_from_slice(left);
    reader.look(usize::MAX)?;
    Ok(reader.payloads)
}

proptest! {
    #[test]
    fn any_split_and_any_consumption_decode_alike(
        messages in vec(sendable(), 0..8),
        turns in turns(),
    ) {
        let payloads = read(&encode(&messages), &turns).unwrap();
        let decoded: Vec<ToMaster> = payloads
            .iter()
            .map(|payload| Frame { payload, taken: 0 }.decode().unwrap())
            .collect();
        // Compared as bytes: a metric may be NaN, which equals nothing.
        prop_assert_eq!(encode(&decoded), encode(&messages));
        prop_assert_eq!(decoded.len(), messages.len());
    }

    #[test]
    fn any_split_of_any_bytes_ends_alike(
        bytes in vec(prop_oneof![4 => Just(0_u8), 1 => any::<u8>()], 0..400),
        turns in turns(),
    ) {
        // An error may be found later, but never another one and never none.
        let whole = read(&bytes, &[]);
        prop_assert_eq!(read(&bytes, &turns), whole);
    }

    #[test]
    fn messages_to_the_master_survive_the_trip(message in sendable()) {
        let bytes = encode(std::slice::from_ref(&message));
        let frame = Frame::peek(&bytes, FRAME_PAYLOAD_BYTES_MAX).unwrap().unwrap();
        prop_assert_eq!(frame.taken, bytes.len());
        let decoded: ToMaster = frame.decode().unwrap();
        prop_assert_eq!(encode(&[decoded]), bytes);
    }

    #[test]
    fn messages_to_the_slave_survive_the_trip(message in messages::to_slave()) {
        let mut bytes = Vec::new();
        frame::encode(&message, &mut bytes).unwrap();
        if message.kind.is_none() {
            return Ok(());
        }
        let frame = Frame::peek(&bytes, FRAME_PAYLOAD_BYTES_MAX).unwrap().unwrap();
        prop_assert_eq!(frame.decode::<ToSlave>(), Ok(message));
    }

    #[test]
    fn garbage_gives_an_error_or_needs_more(bytes in vec(any::<u8>(), 0..600)) {
        check_garbage(&bytes)?;
    }

    #[test]
    fn damaged_frames_give_an_error_or_a_message(
        messages in vec(sendable(), 1..4),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = encode(&messages);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check_garbage(&bytes)?;
        // The payload alone, whatever its header says.
        for from in [4, 6, 8] {
            if let Some(payload) = bytes.get(from..) {
                let frame = Frame { payload, taken: 0 };
                let _ = frame.decode::<ToMaster>();
                let _ = frame.decode::<ToSlave>();
            }
        }
    }
}

/// No panic, no progress without a whole frame, and no frame over the limit.
fn check_garbage(bytes: &[u8]) -> Result<(), TestCaseError> {
    for limit in [1, 64, FRAME_PAYLOAD_BYTES_MAX] {
        let mut frames = Frames::new(bytes, limit);
        let mut before = 0;
        loop {
            match frames.next_frame() {
                Ok(Some(frame)) => {
                    prop_assert!((1..=limit).contains(&frame.payload.len()));
                    prop_assert_eq!(frames.taken(), before + 4 + frame.payload.len());
                    before = frames.taken();
                    let _ = frame.decode::<ToMaster>();
                    let _ = frame.decode::<ToSlave>();
                }
                Ok(None) => {
                    prop_assert!(bytes.len() - frames.taken() < 4 + limit);
                    break;
                }
                Err(error) => {
                    prop_assert_eq!(frames.next_frame(), Err(error));
                    break;
                }
            }
            prop_assert!(frames.taken() <= bytes.len());
        }
    }
    Ok(())
}
