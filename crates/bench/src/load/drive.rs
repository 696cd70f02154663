//! What the load does at each turn of its loop: one function per thing that can happen to a slave.

use std::cmp::Reverse;
use std::io;
use std::time::Duration;

use anyhow::Context;
use mio::event::Event;
use mio::{Events, Token};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::frame::{self, FrameError};
use rollcall_protocol::wire::{Mode, ToMaster};

use super::connection::{Connection, Input};
use super::pace::Pace;
use super::slave::Fault;
use super::tally::ErrorKind;
use super::{Close, Load};
use crate::template::Patch;

/// Most connections that may be waiting for Welcome: no more than a listener's backlog holds.
const OPENING_MAX: usize = 1024;
/// How often connections are searched for one that has waited too long.
pub(super) const SWEEP: Duration = Duration::from_millis(250);

/// Why a connection ends.
pub(super) enum Loss {
    Fault(Fault),
    Os(io::Error),
    Kind(ErrorKind),
}

impl From<FrameError> for Loss {
    fn from(_: FrameError) -> Self {
        Self::Fault(Fault::Violation(ErrorKind::BadFrame))
    }
}

impl From<Fault> for Loss {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for Loss {
    fn from(error: io::Error) -> Self {
        Self::Os(error)
    }
}

// One turn of the loop.
impl Load<'_> {
    /// Does what is due, waits for what comes next, and takes it in.
    pub(super) fn turn(&mut self, events: &mut Events) -> anyhow::Result<Moment> {
        let now = clock::boot();
        self.wall_ms = clock::wall_ms();
        self.take_turns(now);
        self.open_due(now);
        self.ask_again(now);
        let wait = self.next_wake_up(now).saturating_since(clock::boot());
        match self.poll.poll(events, Some(wait)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(error).context("epoll_wait failed");
            }
            _ => {}
        }
        for event in events.iter() {
            let index = event.token().0;
            let now = clock::boot();
            if let Err(loss) = self.ready(index, event, now) {
                self.lose(index, loss, now);
            }
        }
        let now = clock::boot();
        if now >= self.sweep_at {
            self.sweep(now);
        }
        Ok(now)
    }

    fn next_wake_up(&self, now: Moment) -> Moment {
        let pace = self.pace.as_ref().filter(|pace| !pace.is_over(now));
        let retry = self.retries.peek().map(|Reverse((at, _))| *at);
        let later = [
            pace.and_then(Pace::next_turn),
            pace.and_then(Pace::until),
            retry,
            self.datagrams.next_wake_up(),
        ];
        later.into_iter().flatten().fold(self.sweep_at, Moment::min)
    }

    /// The open loop: makes the reports that are due.
    fn take_turns(&mut self, now: Moment) {
        while let Some(index) = self.pace.as_mut().and_then(|pace| pace.take_turn(now)) {
            let index = self.replaying() + usize::try_from(index).unwrap_or(usize::MAX);
            if !self.slaves[index].dead() {
                self.make(index, now);
                self.go_on(index, now);
            }
        }
    }

    fn open_due(&mut self, now: Moment) {
        while let Some(Reverse((at, index))) = self.retries.peek().copied()
            && at <= now
        {
            self.retries.pop();
            self.to_open.push_back(index);
        }
        while self.opening < OPENING_MAX
            && let Some(index) = self.to_open.pop_front()
        {
            if let Err(loss) = self.open(index, now) {
                self.lose(index, loss, now);
            }
        }
    }

    /// Ends the connections on which an answer is overdue.
    fn sweep(&mut self, now: Moment) {
        self.sweep_at = now + SWEEP;
        for index in 0..self.slaves.len() {
            let overdue = self.connections[index].as_ref().is_some_and(|connection| {
                now.saturating_since(connection.heard_at) > self.plan.timeout
            });
            let slave = &self.slaves[index];
            if overdue && (slave.awaits() || slave.done()) {
                self.lose(index, Loss::Kind(ErrorKind::Timeout), now);
            }
        }
    }
}

// One slave.
impl Load<'_> {
    fn make(&mut self, index: usize, now: Moment) {
        self.slaves[index].make(now, &mut self.tally);
        self.last_progress = now;
    }

    /// Lets a slave make the reports that the closed loop allows, and send what it may.
    pub(super) fn refill(&mut self, index: usize, now: Moment) {
        let slave = &self.slaves[index];
        if slave.mode() == Mode::Pooled && !slave.replays() {
            let in_flight = self.in_flight(index);
            self.make_up_to(index, in_flight, now);
        }
        self.go_on(index, now);
    }

    /// The closed loop: a slave makes reports until so many are owed an ack.
    pub(super) fn make_up_to(&mut self, index: usize, owed: u64, now: Moment) {
        let owed = usize::try_from(owed).unwrap_or(usize::MAX);
        while self.slaves[index].owed() < owed
            && !self.slaves[index].dead()
            && self
                .pace
                .as_mut()
                .is_some_and(|pace| pace.is_closed_loop() && pace.take(now))
        {
            self.make(index, now);
        }
    }

    /// Reports that may be unacked on the pooled connection of a slave. A backlog goes as fast as
    /// the window allows.
    fn in_flight(&self, index: usize) -> u64 {
        let slave = &self.slaves[index];
        let wanted = if slave.replays() {
            u64::MAX
        } else {
            self.plan.in_flight.into()
        };
        wanted.min(slave.window())
    }

    /// A slave has something to send, or may have.
    fn go_on(&mut self, index: usize, now: Moment) {
        let is_asking = self.datagrams.is_asking(index);
        let slave = &mut self.slaves[index];
        match (slave.mode(), &self.connections[index]) {
            // A backlog waits for the start.
            (Mode::Pooled, Some(_)) if slave.welcomed() && self.pace.is_some() => {
                if let Err(loss) = self.send_due(index, now) {
                    self.lose(index, loss, now);
                }
            }
            (Mode::PerMessage | Mode::Datagram, None) if !is_asking => {
                let pace = self.pace.as_ref();
                let may_make = pace.is_some_and(|pace| pace.is_closed_loop() && !pace.is_over(now));
                if (slave.owed() > 0 || may_make) && !slave.dead() && slave.wish_connection() {
                    self.to_open.push_back(index);
                }
            }
            _ => {}
        }
    }

    /// Opens a connection and writes the greeting: Hello, and in per-message mode the report too.
    /// In datagram mode asks a question.
    fn open(&mut self, index: usize, now: Moment) -> Result<(), Loss> {
        self.slaves[index].clear_wish();
        if self.slaves[index].mode() == Mode::Datagram {
            return self.ask(index, now);
        }
        let per_message = self.slaves[index].mode() == Mode::PerMessage;
        if per_message {
            self.make_up_to(index, 1, now);
        }
        let slave = &mut self.slaves[index];
        if self.connections[index].is_some() || slave.dead() || per_message && slave.owed() == 0 {
            return Ok(());
        }
        if !per_message && slave.ever_welcomed() {
            self.tally.reconnects += 1;
        }
        let hello = slave.open(&self.plan.fleet, u32::from(per_message));
        self.tally.connects += 1;
        let source = self.plan.source_of(index);
        let connection = Connection::open(self.plan.master, source, now)?;
        self.connections[index] = Some(connection);
        self.opening += 1;
        self.output.clear();
        self.append(&hello)?;
        if per_message {
            self.append_due(index, 1);
        }
        self.send(index)
    }

    /// Sends what the window allows. Nothing is added while the socket does not take more.
    fn send_due(&mut self, index: usize, now: Moment) -> Result<(), Loss> {
        let limit = self.in_flight(index);
        let slave = &mut self.slaves[index];
        match &mut self.connections[index] {
            Some(connection) if !connection.has_unsent() => {
                if !slave.awaits() {
                    connection.heard_at = now;
                }
            }
            _ => return Ok(()),
        }
        self.output.clear();
        if let Some(gap) = slave.take_gap() {
            self.append(&gap)?;
        }
        self.append_preview(index);
        self.append_due(index, limit);
        self.send(index)
    }

    fn append_preview(&mut self, index: usize) {
        let slave = &mut self.slaves[index];
        if let Some(sequence) = slave.take_preview() {
            let patch = Patch {
                stream: slave.stream(),
                sequence,
                time_ms: self.wall_ms,
                live: true,
            };
            self.templates.append_preview(&patch, &mut self.output);
        }
    }

    pub(super) fn append(&mut self, message: &ToMaster) -> Result<(), Loss> {
        // A Hello or a Gap is far below the limit of a frame.
        frame::encode(message, &mut self.output).map_err(|_| Loss::Kind(ErrorKind::Other))
    }

    pub(super) fn append_due(&mut self, index: usize, limit: u64) {
        let slave = &mut self.slaves[index];
        let (stream, last, replays) = (slave.stream(), slave.last(), slave.replays());
        let interval_ms = i64::from(self.plan.fleet.interval_ms);
        for sequence in slave.take_due(limit, &mut self.tally) {
            let age_ms = match i64::try_from(last - sequence) {
                Ok(behind) if replays => behind.saturating_mul(interval_ms),
                _ => 0,
            };
            let patch = Patch {
                stream,
                sequence,
                time_ms: self.wall_ms.saturating_sub(age_ms),
                live: sequence == last && !replays,
            };
            self.templates.append(&patch, &mut self.output);
        }
    }

    /// Writes what was appended.
    fn send(&mut self, index: usize) -> Result<(), Loss> {
        if let Some(connection) = &mut self.connections[index] {
            connection.send(&self.output)?;
            connection.watch(self.poll.registry(), Token(index))?;
        }
        Ok(())
    }

    /// The socket of a slave is ready for something.
    fn ready(&mut self, index: usize, event: &Event, now: Moment) -> Result<(), Loss> {
        let acked = self.tally.acked;
        let replaying = self.tally.is_replaying();
        if self.slaves[index].mode() == Mode::Datagram {
            self.hear(index, now)?;
        } else if let Some(connection) = &mut self.connections[index] {
            if event.is_writable() && connection.has_unsent() || event.is_error() {
                connection.writable()?;
            }
            if event.is_readable() || event.is_read_closed() {
                self.read(index, event.is_read_closed(), now)?;
            }
        } else {
            return Ok(());
        }
        if self.tally.acked > acked {
            self.last_ack = now;
            self.last_progress = now;
        }
        if replaying && !self.tally.is_replaying() {
            self.backlog_done = Some(now);
        }
        self.refill(index, now);
        Ok(())
    }

    /// Reads until the socket is empty: edge-triggered, and a short read is as good as empty
    /// unless the stream has ended.
    fn read(&mut self, index: usize, to_the_end: bool, now: Moment) -> Result<(), Loss> {
        let slave = &mut self.slaves[index];
        while let Some(connection) = &mut self.connections[index] {
            let count = match connection.read(&mut self.input)? {
                Input::Bytes(count) => count,
                Input::Drained => break,
                Input::End if slave.done() => {
                    self.close(index, now);
                    break;
                }
                Input::End => return Err(Loss::Kind(ErrorKind::ClosedByMaster)),
            };
            connection.heard_at = now;
            let greeting = !slave.welcomed();
            let tally = &mut self.tally;
            let result = connection.take_in(&self.input[..count], |message| {
                slave.handle(message, now, tally).map_err(Loss::from)
            });
            if greeting && slave.welcomed() {
                self.opening -= 1;
            }
            result?;
            if self.plan.close != Close::MasterFirst
                && slave.mode() == Mode::PerMessage
                && slave.done()
            {
                self.close(index, now);
                break;
            }
            if count < self.input.len() && !to_the_end {
                break;
            }
        }
        Ok(())
    }

    /// The connection has done its work. As a rule the master has closed it first.
    fn close(&mut self, index: usize, now: Moment) {
        if let Some(connection) = self.connections[index].take()
            && self.plan.close == Close::Abort
        {
            // Whatever happens to it, everything has been acked.
            let _ = connection.abort();
        }
        let slave = &mut self.slaves[index];
        if !slave.welcomed() {
            self.opening -= 1;
        }
        if slave.leaving() {
            let pause = slave.lost(now);
            self.come_back(index, now + pause);
        } else {
            slave.finished();
        }
    }

    pub(super) fn come_back(&mut self, index: usize, at: Moment) {
        self.slaves[index].wish_connection();
        self.retries.push(Reverse((at, index)));
    }

    /// The connection broke, or did not come about: counts why, and comes back later.
    pub(super) fn lose(&mut self, index: usize, loss: Loss, now: Moment) {
        let retry = match &loss {
            Loss::Fault(Fault::Refused { retry }) => *retry,
            Loss::Fault(Fault::Restart) => true,
            Loss::Fault(Fault::Violation(kind)) | Loss::Kind(kind) => {
                self.tally.count_error(*kind);
                true
            }
            Loss::Os(error) => {
                let connects = self.slaves[index].mode() != Mode::Datagram;
                let connection = self.connections[index].as_ref();
                if connects && connection.is_none_or(|connection| !connection.is_established()) {
                    self.tally.count_failed_connect(error);
                }
                self.tally.count_os_error(error);
                true
            }
        };
        self.datagrams.give_up(index);
        let slave = &mut self.slaves[index];
        if self.connections[index].take().is_some() && !slave.welcomed() {
            self.opening -= 1;
        }
        let pause = slave.lost(now);
        if retry {
            self.come_back(index, now + pause);
        }
    }
}
