//! Datagram mode: no connection at all. A question goes out in one datagram and is sent again, byte
//! for byte, until its answer comes; then comes the next one.
//!
//! ```text
//!   spool ── as many reports as fit the path ──> Question ──> Line ──> master
//!     ^            │ not even one                   ^  no answer │
//!     │            v                                └── Resend ──┤
//!     │       per-message exchange over TCP                      │ the answer to this question
//!     └───────────────── acked ── what the answer means <────────┘
//! ```
//!
//! What fits the path is what the kernel knows of it. Where routers swallow large datagrams and keep
//! silent about it, large questions without an answer are followed by small ones, for a while.

mod asking;
mod line;
mod meaning;
mod question;

#[cfg(test)]
mod tests;

use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::datagram::Numbers;
use rollcall_protocol::limits::DATAGRAM_BYTES_SAFE;
use rollcall_protocol::wire::Gap;

use super::end::End;
use super::{Link, LinkError};
use crate::random;
use crate::spool::SpoolError;
use asking::Asked;
use line::Line;
use question::{Built, Question};

/// How often a question that may be too large for the path is sent before a smaller one is tried.
const LARGE_TRIES: u32 = 3;
/// For how long a path is taken to be narrow that had let through nothing but small questions.
const NARROW_FOR: Duration = Duration::from_secs(600);

/// What is remembered from one question to the next.
#[derive(Debug)]
pub(super) struct Datagrams {
    numbers: Numbers,
    /// Which of the master's addresses is asked.
    turn: usize,
    /// The newest entry that a master was told live.
    live: Option<(String, u64)>,
    /// How large questions may be, and until when that holds.
    narrow_until: Option<Moment>,
    /// Whether it was told that a report is too large.
    told_large: bool,
}

impl Datagrams {
    /// Nothing was asked yet.
    pub(super) fn new() -> Self {
        Self {
            numbers: Numbers::new(random::bits()),
            turn: 0,
            live: None,
            narrow_until: None,
            told_large: false,
        }
    }

    /// The entry up to which `master` has been told what is live.
    fn told_live(&self, master: &str) -> Option<u64> {
        let told = self.live.as_ref().filter(|(told, _)| told == master);
        told.map(|(_, entry)| *entry)
    }

    /// How large a question may be on this line.
    fn room(&self, line: &Line) -> usize {
        let is_narrow = self.narrow_until.is_some_and(|until| clock::boot() < until);
        let room = line.room();
        if is_narrow {
            room.min(DATAGRAM_BYTES_SAFE)
        } else {
            room
        }
    }
}

impl Link {
    /// Asks one question of the present master and takes in its answer. `None` if what is to be said
    /// does not fit into a datagram.
    pub(super) async fn ask(&mut self) -> Result<Option<End>, SpoolError> {
        let master = self.masters.current().to_owned();
        let (connector, patience) = (self.dialer.connector.clone(), self.dialer.connect_timeout);
        let turn = self.datagrams.turn;
        let opening = Line::open(&master, &connector, turn, patience);
        let line = match self.unless_drained(opening).await {
            Some(Ok(line)) => line,
            Some(Err(error)) => return Ok(Some(self.unanswered(error.into()))),
            None => return Ok(Some(End::Stopped)),
        };
        // What has to be smaller is built anew, under another number.
        loop {
            let room = self.datagrams.room(&line);
            let mut question = match Question::build(self, &master, room).await? {
                Built::Question(question) => question,
                Built::TooLarge(bytes) => {
                    self.tell_large(&master, bytes, room);
                    return Ok(None);
                }
            };
            let small = question.bytes().len() <= DATAGRAM_BYTES_SAFE;
            let owed = match self.put(&line, &mut question).await {
                Asked::Answered(answer) => {
                    let end = self.take_answer(&master, &line, &mut question, answer);
                    return end.await.map(Some);
                }
                Asked::Drained => return Ok(Some(End::Stopped)),
                Asked::Lost(error) => {
                    if small {
                        // It was not for the size.
                        self.datagrams.narrow_until = None;
                    }
                    return Ok(Some(self.unanswered(error)));
                }
                // The kernel has learnt of a narrower path.
                Asked::TooLarge(owed) if line.room() < room => owed,
                // It does not say of which. A small question is one that every path takes; where even
                // that is too large, there is TCP.
                Asked::TooLarge(_) if small => return Ok(None),
                Asked::TooLarge(owed) | Asked::Swallowed(owed) => {
                    self.datagrams.narrow_until = Some(clock::boot() + NARROW_FOR);
                    owed
                }
            };
            self.restore_owed(owed);
        }
    }

    /// The next address of the master is asked next time.
    fn unanswered(&mut self, error: LinkError) -> End {
        self.datagrams.turn = self.datagrams.turn.wrapping_add(1);
        End::Lost { error, open: false }
    }

    /// Puts back what could not be told.
    fn restore_owed(&mut self, mut owed: Vec<Gap>) {
        owed.append(&mut self.owed);
        self.owed = owed;
    }

    fn tell_large(&mut self, master: &str, bytes: usize, room: usize) {
        if !std::mem::replace(&mut self.datagrams.told_large, true) {
            tracing::info!(
                event = "datagram_too_large",
                master,
                bytes,
                room,
                "a report does not fit into a datagram on the way to the master: such ones go over TCP, a connection each"
            );
        }
    }
}
