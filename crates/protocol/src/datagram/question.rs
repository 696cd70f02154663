//! Questions: what a datagram to the master must hold, and which one came before which.

use alloc::vec::Vec;

use crate::frame::{FrameError, Frames};
use crate::limits::QUESTIONS_REMEMBERED;
use crate::wire::{Hello, Mode, ToMaster, to_master::Kind};

/// What is known of a datagram before anything of it is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its number.
    pub number: u64,
}

/// Why a datagram is no question. It is dropped without an answer: whoever answers what was not
/// asked can be made to answer another such service for ever.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It is not made of frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It begins with something else.
    #[error("the first frame is not a Hello")]
    NoHello,
    /// The Hello is one for a connection.
    #[error("Hello.mode is not MODE_DATAGRAM, or Hello.question is 0")]
    Mode,
    /// Not all that Hello announces is there, or there is more.
    #[error("Hello announces {announced} frames, and {found} whole ones and {left} bytes follow")]
    Frames {
        /// `Hello.frames`.
        announced: u32,
        /// Whole frames after Hello.
        found: u32,
        /// Bytes after those.
        left: usize,
    },
}

impl Question {
    /// Looks whether `bytes` are a Hello of datagram mode and as many frames as it announces, all of
    /// them whole, and nothing else. Only the Hello is decoded.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn parse(bytes: &[u8], payload_bytes_max: usize) -> Result<Self, Malformed> {
        let mut frames = Frames::new(bytes, payload_bytes_max);
        let first = frames.next_frame()?.ok_or(Malformed::NoHello)?;
        let Some(Kind::Hello(hello)) = first.decode::<ToMaster>()?.kind else {
            return Err(Malformed::NoHello);
        };
        let Hello {
            question: number,
            frames: announced,
            ..
        } = hello;
        if hello.mode != i32::from(Mode::Datagram) || number == 0 {
            return Err(Malformed::Mode);
        }
        let mut found = 0;
        while frames.next_frame()?.is_some() {
            found += 1;
        }
        let left = bytes.len() - frames.taken();
        if found != announced || left > 0 {
            return Err(Malformed::Frames {
                announced,
                found,
                left,
            });
        }
        Ok(Self { number })
    }
}

/// The slave's side: the numbers of its questions.
///
/// They begin anywhere, so that nobody who does not read along can forge an answer, and grow by one.
#[derive(Clone, Debug)]
pub struct Numbers {
    last: u64,
}

impl Numbers {
    /// How far [`Self::jump`] goes.
    const JUMP: u64 = 1 << 32;

    /// Begins at a place that `random`, drawn by the caller uniformly from all values, decides.
    pub fn new(random: u64) -> Self {
        // A quarter of all numbers is room that no slave uses up.
        Self {
            last: random % (u64::MAX / 4 * 3),
        }
    }

    /// The number of the next question.
    pub fn next_number(&mut self) -> u64 {
        self.last = self.last.saturating_add(1);
        self.last
    }

    /// The master has taken a question for a copy of an older one, which it does when it has seen a
    /// higher number of the same stream: this process was set back together with its memory. The
    /// next number is beyond all that it can have used before.
    pub fn jump(&mut self) {
        self.last = self.last.saturating_add(Self::JUMP);
    }
}

/// The master's side: the newest question of each of a slave's streams, for the streams that asked
/// last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Stream and number, the stream that asked last at the end.
    newest: Vec<(u64, u64)>,
}

impl Seen {
    /// Whether the question was taken in before, or is older than one that was.
    pub fn is_copy(&self, stream: u64, number: u64) -> bool {
        let newest = self.newest.iter().find(|(known, _)| *known == stream);
        newest.is_some_and(|(_, newest)| number <= *newest)
    }

    /// The question is being taken in.
    pub fn note(&mut self, stream: u64, number: u64) {
        self.newest.retain(|(known, _)| *known != stream);
        if self.newest.len() == QUESTIONS_REMEMBERED {
            self.newest.remove(0);
        }
        self.newest.push((stream, number));
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::frame;
    use crate::limits::FRAME_PAYLOAD_BYTES_MAX;
    use crate::wire::Report;

    fn bytes(messages: impl IntoIterator<Item = Kind>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for kind in messages {
            frame::encode(&ToMaster { kind: Some(kind) }, &mut bytes).unwrap();
        }
        bytes
    }

    fn hello(mode: Mode, question: u64, frames: u32) -> Kind {
        Kind::Hello(Hello {
            mode: mode.into(),
            question,
            frames,
            ..Hello::default()
        })
    }

    fn report() -> Kind {
        Kind::Report(Report {
            stream: 7,
            ..Report::default()
        })
    }

    fn parse(bytes: &[u8]) -> Result<Question, Malformed> {
        Question::parse(bytes, FRAME_PAYLOAD_BYTES_MAX)
    }

    #[test]
    fn a_question_is_whole_frames_as_many_as_announced() {
        let good = bytes([hello(Mode::Datagram, 9, 2), report(), report()]);
        assert_eq!(parse(&good), Ok(Question { number: 9 }));
        for cut in 0..good.len() {
            assert!(parse(&good[..cut]).is_err(), "cut at {cut}");
        }
        let [mut more, mut frame] = [good.clone(), good];
        more.push(0);
        assert_eq!(
            parse(&more),
            Err(Malformed::Frames {
                announced: 2,
                found: 2,
                left: 1
            })
        );
        frame.extend(bytes([report()]));
        assert!(matches!(
            parse(&frame),
            Err(Malformed::Frames { found: 3, .. })
        ));
    }

    #[test]
    fn what_is_for_a_connection_is_no_question() {
        for (mode, question) in [
            (Mode::Pooled, 1),
            (Mode::PerMessage, 1),
            (Mode::Datagram, 0),
        ] {
            let bytes = bytes([hello(mode, question, 0)]);
            assert_eq!(parse(&bytes), Err(Malformed::Mode), "{mode:?} {question}");
        }
        assert_eq!(parse(&bytes([report()])), Err(Malformed::NoHello));
        assert!(matches!(parse(&[0; 64]), Err(Malformed::Frame(_))));
        assert_eq!(parse(&[]), Err(Malformed::NoHello));
    }

    #[test]
    fn a_copy_is_told_from_a_new_question_for_each_stream() {
        let mut seen = Seen::default();
        assert!(!seen.is_copy(1, 10));
        seen.note(1, 10);
        assert!(seen.is_copy(1, 10) && seen.is_copy(1, 9));
        assert!(!seen.is_copy(1, 11) && !seen.is_copy(2, 10));
        let newer = 2..=u64::try_from(QUESTIONS_REMEMBERED).unwrap();
        for stream in newer {
            seen.note(stream, 10);
        }
        assert!(seen.is_copy(1, 10), "it is the oldest and still there");
        seen.note(1, 11);
        seen.note(99, 1);
        assert!(seen.is_copy(1, 11) && !seen.is_copy(2, 10));
    }

    #[test]
    fn numbers_grow_and_are_never_zero() {
        for random in [0, 1, u64::MAX / 2, u64::MAX] {
            let mut numbers = Numbers::new(random);
            let first = numbers.next_number();
            assert!(first > 0);
            assert_eq!(numbers.next_number(), first + 1);
            numbers.jump();
            assert!(numbers.next_number() > first + (1 << 32));
        }
    }
}
