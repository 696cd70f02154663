//! Questions and answers: bounds that hold for whatever comes.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use rollcall_protocol::datagram::{ANSWER_BYTES, Numbers, Question, Seen, answer, open_answer};
use rollcall_protocol::frame::{self, Frames};
use rollcall_protocol::limits::{FRAME_PAYLOAD_BYTES_MAX, QUESTIONS_REMEMBERED};
use rollcall_protocol::wire::{Hello, Mode, ToMaster, ToSlave, to_master, to_slave};

use crate::messages::{to_master as any_to_master, to_slave as any_to_slave, valid_hello};

fn encode<M: prost::Message>(messages: &[M]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        // What is too large for a frame is left out.
        let _ = frame::encode(message, &mut bytes);
    }
    bytes
}

/// A master says nothing that is nothing.
fn known(messages: &[ToSlave]) -> Vec<ToSlave> {
    let known = messages.iter().filter(|message| message.kind.is_some());
    known.cloned().collect()
}

/// Whether `short` may stand for `full`: it says nothing that `full` does not say.
fn stands_for(short: &ToSlave, full: &ToSlave) -> bool {
    use to_slave::Kind::{Ack, Answer, ComeBack, Error, Goodbye, Resync, Welcome};
    match (&short.kind, &full.kind) {
        (Some(Welcome(short)), Some(Welcome(full))) => short.marks == full.marks,
        (Some(Ack(short)), Some(Ack(full))) => {
            (short.stream, short.sequence) == (full.stream, full.sequence)
        }
        (Some(Error(short)), Some(Error(full))) => {
            (short.code, short.retry, short.retry_after_ms)
                == (full.code, full.retry, full.retry_after_ms)
                && full.text.starts_with(&short.text)
        }
        (Some(Goodbye(short)), Some(Goodbye(full))) => {
            (short.back_min_ms, short.back_max_ms) == (full.back_min_ms, full.back_max_ms)
                && (short.marks.is_empty() || short.marks == full.marks)
        }
        (Some(Resync(short)), Some(Resync(full))) => short == full,
        (Some(Answer(short)), Some(Answer(full))) => short == full,
        (Some(ComeBack(short)), Some(ComeBack(full))) => short == full,
        _ => false,
    }
}

proptest! {
    #[test]
    fn an_answer_is_never_longer_than_its_question(
        messages in vec(any_to_slave(), 0..8),
        question_bytes in 0_usize..600,
        number in any::<u64>(),
    ) {
        let messages = known(&messages);
        let said = encode(&messages);
        let Some(bytes) = answer(number, question_bytes, &said) else {
            // Nothing was said, or nothing fits.
            prop_assert!(said.is_empty() || question_bytes < said.len() + ANSWER_BYTES);
            return Ok(());
        };
        prop_assert!(bytes.len() <= question_bytes, "{} of {question_bytes}", bytes.len());
        let opened = open_answer(&bytes, number);
        let opened = opened.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let mut left = messages.clone();
        for short in opened {
            let found = left.iter().position(|full| stands_for(&short, full));
            prop_assert!(found.is_some(), "{short:?} was not said: {messages:?}");
            left.remove(found.unwrap_or_default());
        }
        if question_bytes >= said.len() + ANSWER_BYTES {
            prop_assert!(left.is_empty(), "{left:?} was left out although it fits");
        }
        prop_assert!(open_answer(&bytes, number.wrapping_add(1)).is_err());
    }

    #[test]
    fn a_question_is_what_hello_announces_and_nothing_else(
        hello in valid_hello(),
        number in 0_u64..4,
        rest in vec(any_to_master(), 0..6),
        cut in any::<prop::sample::Index>(),
        extra in vec(any::<u8>(), 0..4),
    ) {
        let hello = Hello { question: number, ..hello };
        let (mode, frames) = (hello.mode(), hello.frames);
        let first = ToMaster { kind: Some(to_master::Kind::Hello(hello)) };
        let mut bytes = encode(&[first]);
        let mut count = 0;
        for message in &rest {
            count += u32::from(frame::encode(message, &mut bytes).is_ok());
        }
        let parsed = Question::parse(&bytes, FRAME_PAYLOAD_BYTES_MAX);
        let is_one = mode == Mode::Datagram && number > 0 && frames == count;
        // A message that encodes to nothing is no frame.
        let has_empty = rest.iter().any(|message| message.kind.is_none());
        prop_assert!(has_empty || parsed.is_ok() == is_one, "{parsed:?}");
        if let Ok(question) = parsed {
            prop_assert_eq!(question.number, number);
            let cut = cut.index(bytes.len());
            prop_assert!(Question::parse(&bytes[..cut], FRAME_PAYLOAD_BYTES_MAX).is_err());
            let more = [&bytes[..], &extra].concat();
            let is_ok = Question::parse(&more, FRAME_PAYLOAD_BYTES_MAX).is_ok();
            prop_assert_eq!(is_ok, extra.is_empty());
        }
    }

    #[test]
    fn any_bytes_are_taken_apart_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(question) = Question::parse(&bytes, 100) {
            prop_assert!(question.number > 0);
            let mut frames = Frames::new(&bytes, 100);
            while let Ok(Some(_)) = frames.next_frame() {}
            prop_assert_eq!(frames.taken(), bytes.len());
        }
        let _ = open_answer(&bytes, 1);
        if let Some(answer) = answer(1, 100, &bytes) {
            prop_assert!(answer.len() <= 100);
        }
    }

    /// Against a model that forgets nothing: what is a copy for the one is one for the other, for
    /// streams that asked lately.
    #[test]
    fn questions_are_remembered(asked in vec((1_u64..7, 1_u64..9), 1..60)) {
        let mut seen = Seen::default();
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        let mut order: Vec<u64> = Vec::new();
        for (stream, number) in asked {
            let newest = model.get(&stream).copied();
            let lately = order.iter().rev().take(QUESTIONS_REMEMBERED).any(|one| *one == stream);
            let copy = lately && newest.is_some_and(|newest| number <= newest);
            prop_assert_eq!(seen.is_copy(stream, number), copy);
            if !copy {
                seen.note(stream, number);
                model.insert(stream, number);
                order.retain(|one| *one != stream);
                order.push(stream);
            }
        }
    }

    #[test]
    fn numbers_never_come_twice(random in any::<u64>(), jumps in vec(any::<bool>(), 1..40)) {
        let mut numbers = Numbers::new(random);
        let mut last = 0;
        for jump in jumps {
            if jump {
                numbers.jump();
            }
            let number = numbers.next_number();
            prop_assert!(number > last);
            last = number;
        }
    }
}
