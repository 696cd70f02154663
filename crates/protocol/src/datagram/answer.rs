//! Answers: never longer than what they answer, and named after it.

use alloc::string::String;
use alloc::vec::Vec;

use prost::Message;

use crate::frame::{self, FrameError, Frames};
use crate::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};
use crate::wire::{Ack, Answer, Error, MasterGoodbye, ToSlave, Welcome, to_slave::Kind};

/// The datagram that answers the question `number` of `question_bytes` bytes with `said`, the frames
/// that a connection would have been answered with.
///
/// It is at most as long as the question was: the sender's address may be forged, and whoever lives
/// there must not get more than was sent in its name. What does not fit is shortened and left out, the
/// least needed first; an ack that is left out comes when the slave asks again. `None` if nothing
/// that matters fits.
pub fn answer(number: u64, question_bytes: usize, said: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(question_bytes.min(said.len() + ANSWER_BYTES));
    put(
        &message(Kind::Answer(Answer { question: number })),
        &mut out,
    );
    if said.is_empty() {
        return None;
    }
    if out.len() + said.len() <= question_bytes {
        out.extend_from_slice(said);
        return Some(out);
    }
    let before = out.len();
    for message in shortened(said, question_bytes.checked_sub(before)?) {
        put(&message, &mut out);
    }
    (out.len() > before).then_some(out)
}

/// Bytes of the frame that names the question: header, tag and length, tag and number.
pub const ANSWER_BYTES: usize = FRAME_HEADER_BYTES + 2 + 9;

/// What of `said` fits into `room` bytes.
fn shortened(said: &[u8], room: usize) -> Vec<ToSlave> {
    let mut frames = Frames::new(said, FRAME_PAYLOAD_BYTES_MAX);
    let mut messages = Vec::new();
    while let Ok(Some(frame)) = frames.next_frame() {
        if let Ok(ToSlave { kind: Some(kind) }) = frame.decode() {
            messages.push(kind);
        }
    }
    let refused = messages.iter().any(|kind| matches!(kind, Kind::Error(_)));
    messages.sort_by_key(|kind| rank(kind, refused));
    // First as many as possible, each as short as it can be; then what room is left makes them whole.
    let mut taken = 0;
    let mut chosen = Vec::new();
    for full in messages {
        let short = message(short(&full));
        if taken + bytes(&short) <= room {
            taken += bytes(&short);
            chosen.push((full, short));
        }
    }
    let lengthened = chosen.into_iter().map(|(full, short)| {
        let spare = room - taken;
        let longer = longest(full, bytes(&short) + spare).unwrap_or_else(|| short.clone());
        taken = taken + bytes(&longer) - bytes(&short);
        longer
    });
    lengthened.collect()
}

/// Lower goes first. Welcome tells a slave that was refused for a hole what is missing; one that was
/// acked can do without.
fn rank(kind: &Kind, refused: bool) -> u8 {
    match kind {
        Kind::Error(_) | Kind::Resync(_) => 0,
        Kind::Welcome(_) if refused => 1,
        Kind::Ack(_) => 2,
        Kind::Goodbye(_) => 3,
        Kind::Welcome(_) | Kind::Answer(_) | Kind::ComeBack(_) => 4,
    }
}

/// The same without what can be spared.
fn short(kind: &Kind) -> Kind {
    match kind {
        Kind::Error(error) => Kind::Error(Error {
            text: String::new(),
            ..*error
        }),
        Kind::Welcome(welcome) => Kind::Welcome(Welcome {
            master_version: String::new(),
            ..welcome.clone()
        }),
        Kind::Ack(ack) => Kind::Ack(Ack {
            received_ms: 0,
            sent_ms: 0,
            ..*ack
        }),
        // Its marks are acks of what was not asked about.
        Kind::Goodbye(goodbye) => Kind::Goodbye(MasterGoodbye {
            marks: Vec::new(),
            ..*goodbye
        }),
        Kind::Resync(_) | Kind::Answer(_) | Kind::ComeBack(_) => kind.clone(),
    }
}

/// `kind` if it takes at most `room` bytes; of an error as much of its text as there is room for.
fn longest(kind: Kind, room: usize) -> Option<ToSlave> {
    /// Longer lengths of the text, the error and the message, at most so many bytes more.
    const LENGTHS: usize = 8;
    let whole = message(kind);
    let over = match bytes(&whole).checked_sub(room) {
        None | Some(0) => return Some(whole),
        Some(over) => over,
    };
    let Some(Kind::Error(error)) = whole.kind else {
        return None;
    };
    let wanted = error.text.len().checked_sub(over + LENGTHS)?;
    let cut = error.text.floor_char_boundary(wanted);
    let text = error.text[..cut].into();
    Some(message(Kind::Error(Error { text, ..error })))
}

fn message(kind: Kind) -> ToSlave {
    ToSlave { kind: Some(kind) }
}

fn bytes(message: &ToSlave) -> usize {
    FRAME_HEADER_BYTES + message.encoded_len()
}

fn put(message: &ToSlave, out: &mut Vec<u8>) {
    let encoded = frame::encode(message, out);
    debug_assert!(encoded.is_ok(), "what is said fits into frames");
}

/// Why a datagram is not the answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It is not made of whole frames of this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The last frame is cut off.
    #[error("{left} bytes are left after the last whole frame")]
    Rest {
        /// How many.
        left: usize,
    },
    /// It does not begin with the number of a question.
    #[error("the first frame is not an Answer")]
    Unnumbered,
    /// It answers another question, which was given up.
    #[error("it answers another question")]
    Other,
}

/// What the master says in the datagram `bytes`, if that answers the question `number`.
///
/// # Errors
/// [`NoAnswer`]: it counts for nothing.
pub fn open_answer(bytes: &[u8], number: u64) -> Result<Vec<ToSlave>, NoAnswer> {
    let mut frames = Frames::new(bytes, FRAME_PAYLOAD_BYTES_MAX);
    let mut messages = Vec::new();
    let mut named = None;
    while let Some(frame) = frames.next_frame()? {
        let message: ToSlave = frame.decode()?;
        match (named, message.kind) {
            (None, Some(Kind::Answer(answer))) => named = Some(answer.question),
            (None, _) => return Err(NoAnswer::Unnumbered),
            (Some(_), kind) => messages.push(ToSlave { kind }),
        }
    }
    let left = bytes.len() - frames.taken();
    match named {
        _ if left > 0 => Err(NoAnswer::Rest { left }),
        None => Err(NoAnswer::Unnumbered),
        Some(named) if named != number => Err(NoAnswer::Other),
        Some(_) => Ok(messages),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use std::slice;

    use super::*;
    use crate::wire::{ErrorCode, Mark, Resync};

    fn said(kinds: &[Kind]) -> Vec<u8> {
        let mut said = Vec::new();
        for kind in kinds {
            put(&message(kind.clone()), &mut said);
        }
        said
    }

    fn welcome() -> Kind {
        Kind::Welcome(Welcome {
            version: 1,
            master_id: vec![9; 16],
            master_version: "0.1.0".into(),
            marks: vec![Mark {
                stream: 7,
                sequence: 1,
            }],
            max_frame_bytes: 65_532,
            window: 64,
            back_min_ms: 0,
            back_max_ms: 200,
        })
    }

    fn ack(sequence: u64) -> Kind {
        Kind::Ack(Ack {
            stream: 7,
            sequence,
            received_ms: 1_795_320_000_040,
            sent_ms: 1_795_320_000_042,
        })
    }

    fn error(text: &str) -> Kind {
        Kind::Error(Error {
            code: ErrorCode::Hole.into(),
            text: text.into(),
            retry: true,
            retry_after_ms: 0,
        })
    }

    fn kinds(bytes: &[u8]) -> Vec<Kind> {
        let messages = open_answer(bytes, 5).unwrap();
        messages
            .into_iter()
            .flat_map(|message| message.kind)
            .collect()
    }

    #[test]
    fn what_fits_goes_as_it_is() {
        let all = [welcome(), ack(2)];
        let said = said(&all);
        let room = said.len() + ANSWER_BYTES;
        assert_eq!(kinds(&answer(5, room, &said).unwrap()), all);
        assert_eq!(answer(5, room, &[]), None, "nothing to say");
    }

    #[test]
    fn acks_go_before_welcome_and_without_their_times_before_not_at_all() {
        let said = said(&[welcome(), ack(2)]);
        let short = |answer: &[u8]| -> Vec<&str> {
            let kinds = kinds(answer);
            let name = |kind: &Kind| match kind {
                Kind::Ack(Ack { sent_ms: 0, .. }) => "short ack",
                Kind::Ack(_) => "ack",
                Kind::Welcome(welcome) if welcome.master_version.is_empty() => "short welcome",
                Kind::Welcome(_) => "welcome",
                _ => "?",
            };
            kinds.iter().map(name).collect()
        };
        let mut seen: Vec<Vec<&str>> = Vec::new();
        for room in (0..said.len() + ANSWER_BYTES).rev() {
            let answer = answer(5, room, &said);
            assert!(answer.as_ref().is_none_or(|answer| answer.len() <= room));
            let names = answer.map(|answer| short(&answer)).unwrap_or_default();
            if seen.last() != Some(&names) {
                seen.push(names);
            }
        }
        assert_eq!(
            seen,
            [
                vec!["ack", "short welcome"],
                vec!["short ack", "welcome"],
                vec!["short ack", "short welcome"],
                vec!["ack"],
                vec!["short ack"],
                vec![]
            ]
        );
    }

    #[test]
    fn a_refusal_keeps_its_code_and_of_its_text_what_fits() {
        let said = said(&[welcome(), error("sequence 9 came where 7 was expected, ä")]);
        for room in 90..said.len() + ANSWER_BYTES {
            let answer = answer(5, room, &said).unwrap();
            assert!(answer.len() <= room, "{} of {room}", answer.len());
            match kinds(&answer).as_slice() {
                [Kind::Error(error), Kind::Welcome(_)] => {
                    assert_eq!(error.code(), ErrorCode::Hole);
                    assert!("sequence 9 came where 7 was expected, ä".starts_with(&error.text));
                }
                other => panic!("{room}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_answer_counts_for_its_question_only() {
        let resync = Kind::Resync(Resync::default());
        let said = said(slice::from_ref(&resync));
        let good = answer(5, 1000, &said).unwrap();
        assert_eq!(kinds(&good), [resync]);
        assert_eq!(open_answer(&good, 6), Err(NoAnswer::Other));
        assert_eq!(open_answer(&said, 5), Err(NoAnswer::Unnumbered));
        assert_eq!(open_answer(&[], 5), Err(NoAnswer::Unnumbered));
        for cut in 1..good.len() {
            assert!(open_answer(&good[..cut], 5) != open_answer(&good, 5));
        }
        let mut more = good;
        more.push(0);
        assert_eq!(open_answer(&more, 5), Err(NoAnswer::Rest { left: 1 }));
    }
}
