//! The slave's end of one connection: what to send next, what an answer means, when to give up.
//!
//! ```text
//!   Hello is written            Welcome              goodbye is written
//!  ┌──────────┐ in time ┌──────┐ ─────────┐ ┌─────────┐
//!  │ Greeting │ ──────> │ Open │ ───────────>│ Leaving │ ── the master closes ──> over
//!  └──────────┘         └──────┘            └─────────┘
//!       any of them: Resync, MasterGoodbye, Error, or a deadline passed ──> over
//! ```
//!
//! The spool's entries are known here by numbers that grow in the order in which they must arrive.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use crate::Moment;
use crate::limits::{FRAME_PAYLOAD_BYTES_MAX, WINDOW_MAX};
use crate::wire::{
    Ack, ComeBack, Error, Gap, GapReason, Mark, MasterGoodbye, Pending, Resync, ToSlave, Welcome,
    to_slave::Kind,
};

/// How long the slave waits for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlaveTimeouts {
    /// For Welcome after Hello.
    pub welcome: Duration,
    /// For the ack of a report. It must be longer than a restart of the master takes: a master that
    /// is being restarted keeps its connections and is silent meanwhile.
    pub ack: Duration,
}

/// What the caller has to do about a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The session is open.
    Opened(Opened),
    /// The master has more of the own stream, up to this mark, than this process has ever sent: its
    /// memory was restored together with its disk, and it goes on from an older state. Move what is not
    /// acked to a new stream and connect again. Only the slave can tell; the master takes the sequences
    /// that come twice for reports whose acks were lost.
    Ahead(Mark),
    /// All of the stream up to the ack's sequence is durable: the spool may let it go.
    Acked {
        /// As it came.
        ack: Ack,
        /// From the sending of the newest report that it covers; `None` if that was on an earlier
        /// connection.
        round_trip: Option<Duration>,
    },
    /// Move what is not acked to a new stream and connect again.
    Resync(Resync),
    /// The master goes away and says when to come back.
    Goodbye(MasterGoodbye),
    /// When to come back after a loss of this connection has changed.
    ComeBack(ComeBack),
    /// The master refuses this session.
    Refused(Error),
    /// A kind of message that a newer minor version has and this one skips.
    Skipped,
}

/// What Welcome said.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// As it came.
    pub welcome: Welcome,
    /// What is durable of each stream: the spool may let it go.
    pub marks: Vec<Mark>,
    /// Sequences that were acked once and that this master does not have: send these first, before
    /// any report. Those that went out together with Hello are not among them.
    pub gaps: Vec<Gap>,
}

/// What to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Nothing now.
    Wait,
    /// This report, ahead of the backlog, marked live and preview. It comes again in its place.
    Preview(u64),
    /// This entry, in its place.
    InOrder {
        /// Its number.
        entry: u64,
        /// Whether to mark it live.
        live: bool,
    },
}

/// Why a session ended without a word from the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silence {
    /// No Welcome came.
    #[error("the master did not answer Hello within {0:?}")]
    NoWelcome(Duration),
    /// No ack came.
    #[error("the master did not ack a report within {0:?}")]
    NoAck(Duration),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct SlaveSession {
    timeouts: SlaveTimeouts,
    phase: Phase,
    pending: Vec<Pending>,
    /// How far a mark of the own stream may reach, if that is known.
    known: Option<Mark>,
    window: usize,
    in_flight: VecDeque<InFlight>,
    /// The last entry that was sent in order.
    sent: u64,
    /// The newest entry that was sent live.
    live: u64,
}

#[derive(Debug)]
enum Phase {
    Greeting { since: Moment },
    Open,
    Leaving { since: Moment },
}

#[derive(Debug)]
struct InFlight {
    stream: u64,
    sequence: u64,
    sent: Moment,
}

impl SlaveSession {
    /// A connection on which Hello, with these `pending` streams, is written at `now`. All entries
    /// up to `acked` have been acked.
    pub fn new(now: Moment, timeouts: SlaveTimeouts, pending: Vec<Pending>, acked: u64) -> Self {
        Self {
            timeouts,
            phase: Phase::Greeting { since: now },
            pending,
            known: None,
            window: 0,
            in_flight: VecDeque::new(),
            sent: acked,
            live: acked,
        }
    }

    /// Grants a window before Welcome has come: in per-message mode the first reports go out
    /// together with Hello.
    pub fn send_with_hello(&mut self, frames: u32) {
        self.window = usize::try_from(frames).unwrap_or(usize::MAX);
    }

    /// The process has sent its own stream up to `sent`, as far as Welcome can know: a mark beyond it
    /// is [`Step::Ahead`].
    pub fn expect_marks_up_to(&mut self, sent: Mark) {
        self.known = Some(sent);
    }

    /// Whether Welcome has come.
    pub fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Greeting { .. })
    }

    /// Number of reports and gaps that were sent on this connection and not acked.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The last entry that was sent in order: the next one to send follows it.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// What to send next, if the first entry after [`Self::sent`] is `next` and the newest report
    /// in the spool is the entry `newest`.
    ///
    /// The newest report goes before the backlog, once; the backlog goes in order under the window.
    pub fn pick(&self, next: Option<u64>, newest: Option<u64>) -> Pick {
        let (Some(next), false) = (next, self.window == 0) else {
            return Pick::Wait;
        };
        let fresh = newest.filter(|&newest| newest > self.live && newest >= next);
        match fresh {
            Some(newest) if newest != next => Pick::Preview(newest),
            _ if self.in_flight.len() >= self.window => Pick::Wait,
            _ => Pick::InOrder {
                entry: next,
                live: fresh == Some(next),
            },
        }
    }

    /// What [`Self::pick`] returned has been written; it holds `sequence` (the last one of a gap) of
    /// `stream`.
    pub fn handle_sent(&mut self, pick: Pick, stream: u64, sequence: u64, now: Moment) {
        match pick {
            Pick::Wait => {}
            Pick::Preview(entry) => self.live = entry,
            Pick::InOrder { entry, live } => {
                self.sent = entry;
                if live {
                    self.live = entry;
                }
                self.expect_ack(stream, sequence, now);
            }
        }
    }

    /// A gap of [`Opened::gaps`] has been written.
    pub fn handle_gap_sent(&mut self, gap: &Gap, now: Moment) {
        self.expect_ack(gap.stream, gap.last, now);
    }

    /// SlaveGoodbye has been written: all that is left is to wait for the master's close.
    pub fn handle_goodbye_sent(&mut self, now: Moment) {
        self.phase = Phase::Leaving { since: now };
        self.window = 0;
    }

    /// Takes one message.
    pub fn handle_message(&mut self, message: ToSlave, now: Moment) -> Step {
        match message.kind {
            Some(Kind::Welcome(welcome)) => self.handle_welcome(welcome),
            Some(Kind::Ack(ack)) => self.handle_ack(ack, now),
            Some(Kind::Resync(resync)) => Step::Resync(resync),
            Some(Kind::Goodbye(goodbye)) => Step::Goodbye(goodbye),
            Some(Kind::Error(error)) => Step::Refused(error),
            Some(Kind::ComeBack(come_back)) => Step::ComeBack(come_back),
            // Which question is answered was looked at before.
            Some(Kind::Answer(_)) | None => Step::Skipped,
        }
    }

    /// When [`Self::handle_timeout`] must be called if nothing has come until then.
    pub fn deadline(&self) -> Option<Moment> {
        let oldest = self
            .in_flight
            .front()
            .map(|oldest| oldest.sent + self.timeouts.ack);
        match self.phase {
            Phase::Greeting { since } => Some(since + self.timeouts.welcome),
            Phase::Open => oldest,
            Phase::Leaving { since } => Some(since + self.timeouts.ack),
        }
    }

    /// The deadline may have passed.
    ///
    /// # Errors
    /// [`Silence`] if it has: the connection is to be ended.
    pub fn handle_timeout(&mut self, now: Moment) -> Result<(), Silence> {
        match (self.deadline(), &self.phase) {
            (Some(deadline), _) if now < deadline => Ok(()),
            (None, _) => Ok(()),
            (_, Phase::Greeting { .. }) => Err(Silence::NoWelcome(self.timeouts.welcome)),
            _ => Err(Silence::NoAck(self.timeouts.ack)),
        }
    }

    fn handle_welcome(&mut self, welcome: Welcome) -> Step {
        if self.is_open() {
            return Step::Skipped;
        }
        if let Some(mark) = self.ahead(&welcome.marks) {
            return Step::Ahead(mark);
        }
        self.phase = Phase::Open;
        self.window = usize::try_from(welcome.window.clamp(1, WINDOW_MAX)).unwrap_or(1);
        let gaps = self
            .pending
            .iter()
            .filter_map(|pending| forgotten(pending, &welcome.marks))
            .filter(|gap| !self.is_in_flight(gap.stream, gap.last));
        Step::Opened(Opened {
            gaps: gaps.collect(),
            marks: welcome.marks.clone(),
            welcome,
        })
    }

    fn ahead(&self, marks: &[Mark]) -> Option<Mark> {
        let known = self.known?;
        let ahead = |mark: &&Mark| mark.stream == known.stream && mark.sequence > known.sequence;
        marks.iter().find(ahead).copied()
    }

    fn handle_ack(&mut self, ack: Ack, now: Moment) -> Step {
        let covered = |sent: &InFlight| sent.stream == ack.stream && sent.sequence <= ack.sequence;
        let newest = self.in_flight.iter().rfind(|sent| covered(sent));
        let round_trip = newest.map(|newest| now.saturating_since(newest.sent));
        self.in_flight.retain(|sent| !covered(sent));
        Step::Acked { ack, round_trip }
    }

    fn is_in_flight(&self, stream: u64, sequence: u64) -> bool {
        let mut in_flight = self.in_flight.iter();
        in_flight.any(|sent| sent.stream == stream && sent.sequence == sequence)
    }

    fn expect_ack(&mut self, stream: u64, sequence: u64, sent: Moment) {
        self.in_flight.push_back(InFlight {
            stream,
            sequence,
            sent,
        });
    }
}

/// What of `pending` was acked before and is not known to this master.
fn forgotten(pending: &Pending, marks: &[Mark]) -> Option<Gap> {
    let mark = marks.iter().find(|mark| mark.stream == pending.stream)?;
    let acked = pending.first.saturating_sub(1);
    (mark.sequence < acked).then(|| Gap {
        stream: pending.stream,
        first: mark.sequence + 1,
        last: acked,
        reason: GapReason::AckedBefore.into(),
        from_ms: 0,
        to_ms: 0,
    })
}

/// Largest payload that the slave may send: what both ends allow.
pub fn payload_bytes_max(welcome: &Welcome) -> usize {
    usize::try_from(welcome.max_frame_bytes)
        .unwrap_or(FRAME_PAYLOAD_BYTES_MAX)
        .min(FRAME_PAYLOAD_BYTES_MAX)
}

/// The master's clock minus the slave's in milliseconds, from one acked report: the path is taken
/// to be as long one way as the other (RFC 5905, section 8).
///
/// `round_trip` is from the report's sending to the ack's arrival, `wall_ms` the slave's wall clock
/// at that arrival.
pub fn clock_offset_ms(ack: &Ack, round_trip: Duration, wall_ms: i64) -> i64 {
    let round_trip_ms = i64::try_from(round_trip.as_millis()).unwrap_or(i64::MAX);
    let held_ms = ack.sent_ms.saturating_sub(ack.received_ms).max(0);
    let path_ms = round_trip_ms.saturating_sub(held_ms).max(0);
    ack.sent_ms
        .saturating_add(path_ms / 2)
        .saturating_sub(wall_ms)
}
