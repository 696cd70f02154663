//! One simulated slave: its stream, its spool in memory, and its side of the session. No I/O.
//!
//! ```text
//!   open() ──> greeting ── Welcome ──> welcomed ── Ack ──> … ── lost() ──> (open() again)
//! ```
//! A report stays in the spool until it is acked, whatever happens to the connection.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use rollcall_protocol::Moment;
use rollcall_protocol::backoff::{Backoff, BackoffLimits};
use rollcall_protocol::limits::{ID_BYTES, VERSION_MAX, VERSION_MIN};
use rollcall_protocol::wire::{
    self, Ack, ErrorCode, Gap, GapReason, Hello, MasterGoodbye, Mode, Pending, Resync, ToMaster,
    ToSlave, Welcome, to_master, to_slave,
};

use super::tally::{ErrorKind, Tally};

/// Why a session can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The master broke the protocol.
    Violation(ErrorKind),
    /// The master refused; the same will be refused again if `retry` is false.
    Refused {
        /// Whether to come back.
        retry: bool,
    },
    /// The stream has to be begun anew, on a new connection.
    Restart,
}

/// What all slaves of a run have in common.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    /// Part of every name: tells the slaves of this run from those of another.
    pub(crate) run: String,
    /// The interval that is announced.
    pub(crate) interval_ms: u32,
    /// Pauses before a reconnect, where the master says nothing of its own.
    pub(crate) backoff: BackoffLimits,
}

/// A simulated slave.
#[derive(Debug)]
pub(crate) struct Slave {
    index: u32,
    id: [u8; ID_BYTES],
    mode: Mode,
    stream: u64,
    /// Highest acked sequence of the stream.
    acked: u64,
    /// Highest sequence sent on the present connection.
    sent: u64,
    /// Highest sequence sent on any connection.
    sent_ever: u64,
    /// Of the reports after `acked`, how many it began with: those it replays.
    backlog: u64,
    /// Whether it began with a backlog: it makes no reports of its own then.
    replays: bool,
    /// The newest report of the backlog is to be sent ahead of its place on this connection.
    preview_due: bool,
    /// When each report after those was made.
    spool: VecDeque<Moment>,
    /// Reports made and acked, over all streams.
    made_total: u64,
    acked_total: u64,
    /// What the master granted on the present connection; `None` before Welcome.
    window: Option<u32>,
    /// Sequences acked once that the master does not have: a Gap must fill them first.
    hole: Option<(u64, u64)>,
    /// The master said goodbye: nothing more may be sent on this connection.
    leaving: bool,
    /// Refused for good.
    dead: bool,
    ever_welcomed: bool,
    /// A connection has been asked for and not been opened yet.
    wishes: bool,
    /// When the connection was lost, until the next ack.
    lost_at: Option<Moment>,
    backoff: Backoff,
}

impl Slave {
    /// A slave that has made no report yet, with a random id and stream.
    pub(crate) fn new(index: u32, mode: Mode, backoff: BackoffLimits) -> Self {
        Self {
            index,
            id: fastrand::u128(..).to_be_bytes(),
            mode,
            stream: fastrand::u64(1..),
            acked: 0,
            sent: 0,
            sent_ever: 0,
            backlog: 0,
            replays: false,
            preview_due: false,
            spool: VecDeque::new(),
            made_total: 0,
            acked_total: 0,
            window: None,
            hole: None,
            leaving: false,
            dead: false,
            ever_welcomed: false,
            wishes: false,
            lost_at: None,
            backoff: Backoff::new(backoff),
        }
    }

    // ------------------------------------------------------------ getters

    /// How it uses connections.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Its identity.
    pub(crate) fn id(&self) -> &[u8; ID_BYTES] {
        &self.id
    }

    /// Its name in the run.
    pub(crate) fn name(&self, fleet: &Fleet) -> String {
        format!("bench-{}-{}", fleet.run, self.index)
    }

    /// Its present stream.
    pub(crate) fn stream(&self) -> u64 {
        self.stream
    }

    /// Highest sequence of the present stream that was acked.
    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// Reports made and reports acked, over all its streams, each report once.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.made_total, self.acked_total)
    }

    /// Whether it replays a backlog, or did.
    pub(crate) fn replays(&self) -> bool {
        self.replays
    }

    /// Reports that it made and that are owed an ack.
    pub(crate) fn owed(&self) -> usize {
        self.spool.len()
    }

    /// Whether an answer is due on the present connection.
    pub(crate) fn awaits(&self) -> bool {
        self.window.is_none() || self.sent > self.acked || self.leaving
    }

    /// Whether Welcome has come on the present connection.
    pub(crate) fn welcomed(&self) -> bool {
        self.window.is_some()
    }

    /// Whether Welcome has ever come.
    pub(crate) fn ever_welcomed(&self) -> bool {
        self.ever_welcomed
    }

    /// Whether the master said goodbye on the present connection.
    pub(crate) fn leaving(&self) -> bool {
        self.leaving
    }

    /// Whether the master refused it for good.
    pub(crate) fn dead(&self) -> bool {
        self.dead
    }

    /// Whether the present connection has done all that it was opened for.
    pub(crate) fn done(&self) -> bool {
        self.leaving || (self.mode == Mode::PerMessage && self.sent > 0 && self.sent <= self.acked)
    }

    // ------------------------------------------------------------ commands

    /// Makes a report: it is owed an ack from now on.
    pub(crate) fn make(&mut self, now: Moment, tally: &mut Tally) {
        self.spool.push_back(now);
        self.made_total += 1;
        tally.made += 1;
    }

    /// Begins with a backlog of `count` reports.
    pub(crate) fn begin_with(&mut self, count: u64, tally: &mut Tally) {
        self.replays = true;
        self.backlog += count;
        self.made_total += count;
        tally.count_backlog(count);
    }

    /// Asks for a connection; `false` if it has been asked for already.
    pub(crate) fn wish_connection(&mut self) -> bool {
        !std::mem::replace(&mut self.wishes, true)
    }

    /// The wish is taken up.
    pub(crate) fn clear_wish(&mut self) {
        self.wishes = false;
    }

    /// A connection was opened: its first frame. In per-message mode `frames` reports follow it.
    pub(crate) fn open(&mut self, fleet: &Fleet, frames: u32) -> ToMaster {
        self.sent = self.acked;
        self.window = None;
        self.leaving = false;
        self.hole = None;
        // The only one left comes in its place at once.
        self.preview_due = self.backlog > 1;
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            slave_id: self.id.to_vec(),
            name: self.name(fleet),
            stream: self.stream,
            next_sequence: self.last() + 1,
            interval_ms: fleet.interval_ms,
            mode: self.mode.into(),
            agent_version: concat!("bench ", env!("CARGO_PKG_VERSION")).to_owned(),
            backlog: self.last() - self.acked,
            pending: vec![Pending {
                stream: self.stream,
                first: self.acked + 1,
            }],
            frames,
            ..Hello::default()
        };
        ToMaster {
            kind: Some(to_master::Kind::Hello(hello)),
        }
    }

    /// The Hello of a question: as of a connection with `frames` reports, and named.
    pub(crate) fn ask(&mut self, fleet: &Fleet, frames: u32, question: u64) -> ToMaster {
        let mut message = self.open(fleet, frames);
        if let Some(to_master::Kind::Hello(hello)) = &mut message.kind {
            hello.question = question;
        }
        message
    }

    /// The gap that has to be sent before any report; only once.
    pub(crate) fn take_gap(&mut self) -> Option<ToMaster> {
        let (first, last) = self.hole.take()?;
        let gap = Gap {
            stream: self.stream,
            first,
            last,
            reason: GapReason::AckedBefore.into(),
            ..Gap::default()
        };
        Some(ToMaster {
            kind: Some(to_master::Kind::Gap(gap)),
        })
    }

    /// Takes the sequence to send ahead of its place; once a connection.
    pub(crate) fn take_preview(&mut self) -> Option<u64> {
        std::mem::take(&mut self.preview_due).then(|| self.last())
    }

    /// Takes the sequences to send now, with at most `limit` unacked, and counts them as sent.
    pub(crate) fn take_due(&mut self, limit: u64, tally: &mut Tally) -> RangeInclusive<u64> {
        let first = self.sent + 1;
        if self.leaving || self.dead {
            return first..=self.sent;
        }
        let last = self
            .last()
            .min(self.acked.saturating_add(limit))
            .max(self.sent);
        self.sent = last;
        tally.resent += last.min(self.sent_ever).saturating_sub(first - 1);
        self.sent_ever = self.sent_ever.max(last);
        first..=last
    }

    /// How many reports may be unacked on this connection; none before Welcome.
    pub(crate) fn window(&self) -> u64 {
        u64::from(self.window.unwrap_or(0))
    }

    /// Highest sequence made.
    pub(crate) fn last(&self) -> u64 {
        self.acked + self.backlog + u64::try_from(self.spool.len()).unwrap_or(u64::MAX)
    }

    // ------------------------------------------------------------ inputs

    /// A frame came from the master.
    pub(crate) fn handle(
        &mut self,
        message: ToSlave,
        now: Moment,
        tally: &mut Tally,
    ) -> Result<(), Fault> {
        match message.kind {
            Some(to_slave::Kind::Ack(ack)) => self.handle_ack(ack, now, tally),
            Some(to_slave::Kind::Welcome(welcome)) => self.handle_welcome(&welcome, now, tally),
            Some(to_slave::Kind::Goodbye(goodbye)) => self.handle_goodbye(&goodbye, now, tally),
            Some(to_slave::Kind::ComeBack(come_back)) => {
                self.told_to_return(come_back.back_min_ms, come_back.back_max_ms);
                Ok(())
            }
            Some(to_slave::Kind::Resync(resync)) => self.handle_resync(resync),
            Some(to_slave::Kind::Error(error)) => Err(self.handle_error(&error, tally)),
            // A kind of a newer minor version, or one for datagrams.
            Some(to_slave::Kind::Answer(_)) | None => Ok(()),
        }
    }

    /// The connection is gone, and not because all was done: how long to wait before the next one.
    pub(crate) fn lost(&mut self, now: Moment) -> Duration {
        if self.mode == Mode::Pooled && self.ever_welcomed {
            self.lost_at.get_or_insert(now);
        }
        self.window = None;
        self.leaving = false;
        self.backoff.handle_down(now, fastrand::u64(..))
    }

    /// A per-message connection has ended as it should.
    pub(crate) fn finished(&mut self) {
        self.backoff.handle_done();
    }

    fn handle_welcome(
        &mut self,
        welcome: &Welcome,
        now: Moment,
        tally: &mut Tally,
    ) -> Result<(), Fault> {
        if self.window.is_some() {
            // The master was restarted, and can't tell whether it had said so before.
            return Ok(());
        }
        self.window = Some(welcome.window);
        if !self.ever_welcomed {
            self.ever_welcomed = true;
            tally.welcomed += 1;
        }
        self.backoff.handle_up(now);
        self.told_to_return(welcome.back_min_ms, welcome.back_max_ms);
        let own = welcome.marks.iter().find(|mark| mark.stream == self.stream);
        let Some(mark) = own.map(|mark| mark.sequence) else {
            return Ok(());
        };
        if mark < self.acked {
            tally.count_error(ErrorKind::Forgotten);
            self.hole = Some((mark + 1, self.acked));
            return Ok(());
        }
        self.acked_up_to(mark, now, tally)
    }

    fn handle_ack(&mut self, ack: Ack, now: Moment, tally: &mut Tally) -> Result<(), Fault> {
        // An answer to a datagram may have had no room for Welcome.
        let is_early = self.window.is_none() && self.mode != Mode::Datagram;
        if is_early || ack.stream != self.stream {
            return Err(Fault::Violation(ErrorKind::BadAck));
        }
        if ack.sequence <= self.acked {
            tally.repeated_acks += 1;
            return Ok(());
        }
        if let Some(lost_at) = self.lost_at.take() {
            tally.count_recovery(now.saturating_since(lost_at));
        }
        self.acked_up_to(ack.sequence, now, tally)
    }

    fn acked_up_to(&mut self, sequence: u64, now: Moment, tally: &mut Tally) -> Result<(), Fault> {
        if sequence > self.sent_ever {
            return Err(Fault::Violation(ErrorKind::BadAck));
        }
        let replayed = self.backlog.min(sequence.saturating_sub(self.acked));
        self.backlog -= replayed;
        self.acked += replayed;
        self.acked_total += replayed;
        tally.count_backlog_acks(replayed);
        while self.acked < sequence
            && let Some(made) = self.spool.pop_front()
        {
            self.acked += 1;
            self.acked_total += 1;
            tally.count_ack(now.saturating_since(made));
        }
        // More may be durable than this connection has sent, by what an earlier one had sent.
        self.sent = self.sent.max(self.acked);
        Ok(())
    }

    fn handle_goodbye(
        &mut self,
        goodbye: &MasterGoodbye,
        now: Moment,
        tally: &mut Tally,
    ) -> Result<(), Fault> {
        self.told_to_return(goodbye.back_min_ms, goodbye.back_max_ms);
        self.leaving = true;
        let own = goodbye.marks.iter().find(|mark| mark.stream == self.stream);
        own.map_or(Ok(()), |mark| self.acked_up_to(mark.sequence, now, tally))
    }

    /// What is not acked moves to a new stream.
    fn handle_resync(&mut self, resync: Resync) -> Result<(), Fault> {
        if resync.stream != self.stream {
            return Err(Fault::Violation(ErrorKind::BadFrame));
        }
        self.stream = fastrand::u64(1..);
        self.acked = 0;
        self.sent = 0;
        self.sent_ever = 0;
        Err(Fault::Restart)
    }

    fn handle_error(&mut self, error: &wire::Error, tally: &mut Tally) -> Fault {
        tally.count_refusal(
            ErrorCode::try_from(error.code).unwrap_or_default(),
            &error.text,
        );
        if !error.retry && !self.dead {
            self.dead = true;
            tally.dead += 1;
        }
        if error.retry_after_ms > 0 {
            self.told_to_return(error.retry_after_ms, error.retry_after_ms.saturating_mul(2));
        }
        Fault::Refused { retry: error.retry }
    }

    fn told_to_return(&mut self, min_ms: u32, max_ms: u32) {
        if max_ms > 0 {
            let ms = |value: u32| Duration::from_millis(value.into());
            self.backoff.handle_window(ms(min_ms), ms(max_ms));
        }
    }
}

#[cfg(test)]
mod tests;
