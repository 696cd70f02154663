//! What an answer means: for the spool, and for the next question.

use rollcall_os::clock;
use rollcall_protocol::limits::{VERSION_MAX, VERSION_MIN};
use rollcall_protocol::session::slave::{Opened, Step, clock_offset_ms, payload_bytes_max};
use rollcall_protocol::wire::{Ack, ErrorCode, Mark, ToSlave, to_slave::Kind};

use super::line::Line;
use super::question::Question;
use crate::link::Link;
use crate::link::end::{End, LinkError};
use crate::link::journal::log_resync;
use crate::spool::SpoolError;

/// What an answer has said so far.
struct Reading<'a> {
    link: &'a mut Link,
    master: &'a str,
    line: &'a Line,
    question: &'a mut Question,
    /// Whether the question was sent once.
    once: bool,
    acked: Vec<Mark>,
    end: Option<End>,
}

impl Link {
    /// Takes in the answer to `question`.
    pub(super) async fn take_answer(
        &mut self,
        master: &str,
        line: &Line,
        question: &mut Question,
        (mut answer, once): (Vec<ToSlave>, bool),
    ) -> Result<End, SpoolError> {
        // Where room was short Welcome may come last, and what the others mean depends on it.
        answer.sort_by_key(|message| !matches!(message.kind, Some(Kind::Welcome(_))));
        let mut reading = Reading {
            link: self,
            master,
            line,
            question,
            once,
            acked: Vec::new(),
            end: None,
        };
        for message in answer {
            reading.take(message);
        }
        let Reading { acked, end, .. } = reading;
        let unacked = question.sent.iter().any(|sent| !covers(&acked, sent));
        let progress = question.sent.iter().any(|sent| covers(&acked, sent));
        let end = match end {
            Some(End::Told(_)) | None if question.is_goodbye && !unacked => End::Stopped,
            Some(end) => end,
            None if !unacked => End::Done,
            None if progress => End::Again,
            None => {
                // The master has taken it for a copy of an older question.
                self.datagrams.numbers.jump();
                End::Lost {
                    error: LinkError::NotTaken,
                    open: true,
                }
            }
        };
        let told_live = matches!(end, End::Done | End::Again);
        self.datagrams.live = question
            .live
            .filter(|_| told_live)
            .map(|entry| (master.to_owned(), entry));
        if !acked.is_empty() {
            self.spool.acked(acked).await?;
        }
        if let End::Resync(stream) = end {
            self.spool.restream(stream).await?;
        }
        Ok(end)
    }
}

impl Reading<'_> {
    fn take(&mut self, message: ToSlave) {
        let end = match self.question.session.handle_message(message, clock::boot()) {
            Step::Opened(opened) => self.opened(&opened),
            Step::Ahead(mark) => {
                log_resync(self.master, mark.stream, mark.sequence);
                Some(End::Resync(mark.stream))
            }
            Step::Acked { ack, round_trip } => {
                let round_trip = round_trip.filter(|_| self.once);
                self.acked.push(mark(&ack));
                if let Some(round_trip) = round_trip {
                    let offset_ms = clock_offset_ms(&ack, round_trip, clock::wall_ms());
                    self.link.clock_offset_ms.send_replace(Some(offset_ms));
                }
                None
            }
            Step::Resync(resync) => {
                log_resync(self.master, resync.stream, resync.sequence);
                Some(End::Resync(resync.stream))
            }
            Step::Goodbye(goodbye) => {
                self.acked.extend(&goodbye.marks);
                Some(End::Told(goodbye))
            }
            // The gap that was missing is known only since Welcome.
            Step::Refused(error)
                if error.code() == ErrorCode::Hole
                    && self.question.owed.is_empty()
                    && !self.link.owed.is_empty() =>
            {
                // What was refused has told nothing live.
                self.question.live = None;
                Some(End::Again)
            }
            Step::Refused(error) => Some(End::Refused(error)),
            // It is for connections that stay.
            Step::ComeBack(_) | Step::Skipped => None,
        };
        if let Some(end) = end {
            self.end.get_or_insert(end);
        }
    }

    fn opened(&mut self, opened: &Opened) -> Option<End> {
        let welcome = &opened.welcome;
        if !(VERSION_MIN..=VERSION_MAX).contains(&welcome.version) {
            return Some(End::Lost {
                error: LinkError::Version(welcome.version),
                open: false,
            });
        }
        let link = &mut *self.link;
        let peer = Some(self.line.peer());
        link.journal.opened(self.master, peer, opened, false);
        link.handle_opened();
        link.backoff.handle_up(clock::boot());
        link.told(welcome.back_min_ms, welcome.back_max_ms);
        link.plan_return();
        link.payload_bytes_max = payload_bytes_max(welcome);
        link.owed.clone_from(&opened.gaps);
        self.acked.extend(&opened.marks);
        None
    }
}

fn mark(ack: &Ack) -> Mark {
    Mark {
        stream: ack.stream,
        sequence: ack.sequence,
    }
}

fn covers(acked: &[Mark], sent: &Mark) -> bool {
    let covers = |mark: &Mark| mark.stream == sent.stream && mark.sequence >= sent.sequence;
    acked.iter().any(covers)
}
