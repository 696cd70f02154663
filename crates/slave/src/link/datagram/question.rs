//! What goes into one datagram: Hello, and from the spool what fits.

use prost::Message;
use rollcall_os::clock;
use rollcall_protocol::frame;
use rollcall_protocol::limits::{FRAME_HEADER_BYTES, PER_MESSAGE_FRAMES_MAX};
use rollcall_protocol::session::SlaveSession;
use rollcall_protocol::session::slave::Pick;
use rollcall_protocol::wire::{self, Gap, Hello, Mark, ToMaster, to_master::Kind};

use crate::link::Link;
use crate::link::feed::{Feed, place_of, to_message, to_preview};
use crate::link::hello::{goodbye, hello};
use crate::spool::{Body, Entry, SpoolError};

/// A question that can be asked any number of times.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) number: u64,
    bytes: Vec<u8>,
    pub(super) session: SlaveSession,
    /// What is to be acked: stream and last sequence of each entry.
    pub(super) sent: Vec<Mark>,
    /// What the master lacks; it is among `sent`.
    pub(super) owed: Vec<Gap>,
    /// The newest entry that goes as a live report.
    pub(super) live: Option<u64>,
    /// The question is the last one.
    pub(super) is_goodbye: bool,
}

/// What came of building one.
pub(super) enum Built {
    Question(Box<Question>),
    /// Not even one entry fits: with Hello it takes so many bytes.
    TooLarge(usize),
}

impl Question {
    /// Takes from the spool as much as `room` bytes have room for.
    pub(super) async fn build(
        link: &mut Link,
        master: &str,
        room: usize,
    ) -> Result<Built, SpoolError> {
        let newest = *link.spool.watch_newest().borrow_and_update();
        let standing = link.spool.introduce().await?;
        let pending = standing.pending.clone();
        link.begin_sending(&pending);
        let hello = hello(&link.config, standing, wire::Mode::Datagram, 0);
        let mut session =
            SlaveSession::new(clock::boot(), link.config.timeouts, pending.clone(), 0);
        session.send_with_hello(PER_MESSAGE_FRAMES_MAX);
        let mut draft = Draft {
            session,
            feed: Feed::new(link.spool.clone(), &pending),
            writer: Writer::new(hello, room),
            sent: Vec::new(),
            live: link.datagrams.told_live(master),
        };
        let owed = draft.take_owed(&mut link.owed);
        let over = draft.take_entries(link, newest).await?;
        if draft.sent.is_empty()
            && let Some(bytes) = over
        {
            link.restore_owed(owed);
            return Ok(Built::TooLarge(bytes));
        }
        let ends = link.is_stopping() && (draft.feed.is_empty() || link.is_drained());
        let is_goodbye = ends && draft.writer.offer(Some(goodbye())).is_none();
        // The copy of a question is answered with marks that include what it brought.
        draft.session.expect_marks_up_to(link.sent);
        let number = link.datagrams.numbers.next_number();
        let bytes = draft.writer.finish(number);
        if bytes.len() > room {
            link.restore_owed(owed);
            return Ok(Built::TooLarge(bytes.len()));
        }
        Ok(Built::Question(Box::new(Self {
            number,
            bytes,
            session: draft.session,
            sent: draft.sent,
            owed,
            live: draft.live,
            is_goodbye,
        })))
    }

    /// The datagram.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A question that is being written.
struct Draft {
    session: SlaveSession,
    feed: Feed,
    writer: Writer,
    sent: Vec<Mark>,
    live: Option<u64>,
}

impl Draft {
    /// Takes the first of the gaps that are owed, as many as fit.
    fn take_owed(&mut self, owed: &mut Vec<Gap>) -> Vec<Gap> {
        let fitting = owed
            .iter()
            .take_while(|gap| self.writer.offer(Some(Kind::Gap(**gap))).is_none())
            .count();
        let taken: Vec<Gap> = owed.drain(..fitting).collect();
        for gap in &taken {
            self.session.handle_gap_sent(gap, clock::boot());
            self.sent.push(place_of(&Body::Gap(*gap)));
        }
        taken
    }

    /// Takes from the spool what the session picks, until the next message does not fit: then it
    /// says how large the datagram would be with it.
    async fn take_entries(
        &mut self,
        link: &mut Link,
        newest: u64,
    ) -> Result<Option<usize>, SpoolError> {
        if let Some(entry) = self.live {
            self.session
                .handle_sent(Pick::Preview(entry), 0, 0, clock::boot());
        }
        let mut over = None;
        while over.is_none() {
            self.feed.fill_up_to(newest).await?;
            let next = self.feed.next().map(|entry| entry.id);
            let pick = self.session.pick(next, Some(newest));
            over = match pick {
                Pick::Wait => break,
                Pick::Preview(picked) => self.preview(link, picked).await?,
                Pick::InOrder { live, .. } => self.in_order(link, pick, live),
            };
        }
        self.feed.fill().await?;
        Ok(over)
    }

    async fn preview(&mut self, link: &Link, picked: u64) -> Result<Option<usize>, SpoolError> {
        let newest = link.spool.newest().await?;
        // A newer one may have come meanwhile.
        let id = newest.as_ref().map_or(picked, |entry| entry.id.max(picked));
        self.session
            .handle_sent(Pick::Preview(id), 0, 0, clock::boot());
        self.live = Some(id);
        let message = newest.and_then(|entry| to_preview(entry.body));
        Ok(self.writer.offer(message))
    }

    fn in_order(&mut self, link: &mut Link, pick: Pick, live: bool) -> Option<usize> {
        let &Entry { id, ref body } = self.feed.next()?;
        let place = place_of(body);
        let over = self.writer.offer(Some(to_message(body, live)));
        if over.is_none() {
            self.session
                .handle_sent(pick, place.stream, place.sequence, clock::boot());
            link.note_sent(place);
            self.sent.push(place);
            self.feed.advance();
            if live {
                self.live = Some(id);
            }
        }
        over
    }
}

/// Frames after a Hello that is written last: it says how many they are.
struct Writer {
    hello: Hello,
    frames: u32,
    rest: Vec<u8>,
    room: usize,
}

impl Writer {
    fn new(hello: Hello, room: usize) -> Self {
        // As long as it can get.
        let longest = Hello {
            next_sequence: i64::MAX.unsigned_abs(),
            frames: PER_MESSAGE_FRAMES_MAX,
            question: u64::MAX,
            ..hello.clone()
        };
        Self {
            room: room.saturating_sub(frame_bytes(&to_master(Kind::Hello(longest)))),
            hello,
            frames: 0,
            rest: Vec::new(),
        }
    }

    /// Adds the message if it fits, and there is one; else says how large the datagram would be.
    fn offer(&mut self, kind: Option<Kind>) -> Option<usize> {
        let kind = kind?;
        let (stream, sequence) = match &kind {
            Kind::Report(report) => (report.stream, report.sequence),
            Kind::Gap(gap) => (gap.stream, gap.last),
            _ => (0, 0),
        };
        let message = to_master(kind);
        let bytes = self.rest.len() + frame_bytes(&message);
        if bytes > self.room || self.frames >= PER_MESSAGE_FRAMES_MAX {
            return Some(bytes);
        }
        self.put(&message);
        // It may have been spooled after Hello's figures were taken. A Hello that knows less than its
        // question has brought would look like one of an older state, when it comes once more.
        if stream == self.hello.stream {
            self.hello.next_sequence = self.hello.next_sequence.max(sequence + 1);
        }
        None
    }

    fn put(&mut self, message: &ToMaster) {
        match frame::encode(message, &mut self.rest) {
            Ok(()) => self.frames += 1,
            // It was measured.
            Err(error) => {
                tracing::error!(event = "message_too_large", error = %error, "a message is not sent");
            }
        }
    }

    fn finish(self, number: u64) -> Vec<u8> {
        let hello = Hello {
            frames: self.frames,
            question: number,
            ..self.hello
        };
        let mut bytes = Vec::new();
        // A Hello that is too large for a frame is too large for a datagram, too.
        if frame::encode(&to_master(Kind::Hello(hello)), &mut bytes).is_ok() {
            bytes.extend(self.rest);
        }
        bytes
    }
}

fn to_master(kind: Kind) -> ToMaster {
    ToMaster { kind: Some(kind) }
}

fn frame_bytes(message: &ToMaster) -> usize {
    FRAME_HEADER_BYTES + message.encoded_len()
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::datagram::Question;
    use rollcall_protocol::frame::Frame;
    use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
    use rollcall_protocol::wire::{Mode, Report};

    use super::*;

    fn report(stream: u64, sequence: u64) -> Option<Kind> {
        Some(Kind::Report(Report {
            stream,
            sequence,
            ..Report::default()
        }))
    }

    fn writer(room: usize) -> Writer {
        let hello = Hello {
            mode: Mode::Datagram.into(),
            stream: 7,
            next_sequence: 2,
            ..Hello::default()
        };
        Writer::new(hello, room)
    }

    fn hello_of(bytes: &[u8]) -> Hello {
        Question::parse(bytes, FRAME_PAYLOAD_BYTES_MAX).unwrap();
        let frame = Frame::peek(bytes, FRAME_PAYLOAD_BYTES_MAX).unwrap();
        match frame.unwrap().decode::<ToMaster>().unwrap().kind {
            Some(Kind::Hello(hello)) => hello,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn hello_knows_of_all_that_its_question_brings() {
        let mut writer = writer(1000);
        assert_eq!(writer.offer(report(6, 90)), None, "of another process");
        assert_eq!(writer.offer(report(7, 1)), None);
        assert_eq!(hello_of(&writer.finish(5)).next_sequence, 2);
        let mut writer = self::writer(1000);
        assert_eq!(writer.offer(report(7, 4)), None);
        let hello = hello_of(&writer.finish(5));
        assert_eq!(
            (hello.next_sequence, hello.frames, hello.question),
            (5, 1, 5)
        );
    }

    #[test]
    fn no_more_goes_in_than_there_is_room_for() {
        for room in 0..300 {
            let mut writer = writer(room);
            let mut count = 0;
            while writer
                .offer(report(7, i64::MAX.unsigned_abs() - 1))
                .is_none()
            {
                count += 1;
            }
            assert!(count <= PER_MESSAGE_FRAMES_MAX);
            let bytes = writer.finish(u64::MAX);
            assert!(
                count == 0 || bytes.len() <= room,
                "{} of {room}",
                bytes.len()
            );
            assert_eq!(hello_of(&bytes).frames, count);
        }
    }
}
