//! One connection: peek, decode, apply; wait for the group commit; consume, ack.
//!
//! Between two reports a connection holds no buffer: it looks through the reactor's shared one, and
//! what is not acked yet is still in the kernel.

mod end;
mod parked;
#[cfg(test)]
mod tests;
mod transport;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use rollcall_os::clock;
use rollcall_os::parking::Place;
use rollcall_protocol::frame::{self, Frames};
use rollcall_protocol::session::master::Step;
use rollcall_protocol::session::{MasterSession, Refusal};
use rollcall_protocol::wire::{
    Ack, Hello, Mark, Resync, ToMaster, ToSlave, to_master, to_slave::Kind,
};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::reactor::{Reactor, SHARE_FRAMES};
use crate::roll::{Greeting, SessionId, Slot, Stamp, Taken};
use end::End;
pub(crate) use parked::Resumed;
pub(crate) use transport::Transport;

/// A frame that is larger than this and still incomplete gets a larger buffer in the kernel.
const PARTIAL_FRAME_BYTES: usize = 16 * 1024;

/// What one look at the connection brought.
#[derive(Debug, Default)]
struct Read {
    /// Bytes of whole frames.
    taken: usize,
    /// What to answer once the group is durable, besides acks.
    answers: Vec<ToSlave>,
    /// What to ack then: each stream with the highest sequence applied so far.
    marks: Vec<Mark>,
    /// When the bytes were read.
    received_ms: i64,
    /// Whether Hello was among them and is to be answered with Welcome.
    is_opened: bool,
    /// Whether and why it was the last look.
    end: Option<End>,
}

/// One connection, from accept to close.
pub(crate) struct Connection {
    reactor: Rc<Reactor>,
    peer: SocketAddr,
    session: MasterSession,
    id: SessionId,
    slot: Option<Slot>,
    /// Frames of backlog that this look may take.
    share: u32,
    /// The last look has left backlog in the kernel, for want of a share.
    held_back: bool,
    /// Who counts it within the limits.
    admission: Option<Rc<Admission>>,
    /// Where it waits for the next process.
    place: Option<Place>,
    /// The window to come back in that the slave knows of.
    told_back_ms: u32,
}

impl Connection {
    /// A connection that was just accepted from `peer`.
    pub(crate) fn new(reactor: Rc<Reactor>, peer: SocketAddr) -> Self {
        let session = MasterSession::new(clock::boot(), reactor.rules().hello_timeout);
        let id = reactor.next_session();
        Self::of(reactor, peer, session, id, None)
    }

    fn of(
        reactor: Rc<Reactor>,
        peer: SocketAddr,
        session: MasterSession,
        id: SessionId,
        slot: Option<Slot>,
    ) -> Self {
        reactor.stats().connections.add(1);
        Self {
            reactor,
            peer,
            session,
            id,
            slot,
            share: 0,
            held_back: false,
            admission: None,
            place: None,
            told_back_ms: 0,
        }
    }

    /// It was let in by `admission`, which is told of its end.
    pub(crate) fn let_in_by(mut self, admission: Rc<Admission>) -> Self {
        self.admission = Some(admission);
        self
    }

    /// Serves it to its end. `stop` ends it at the next moment at which nothing is half done.
    #[expect(
        clippy::manual_async_fn,
        reason = "the future of an async fn holds its arguments twice, and there are many idle ones"
    )]
    pub(crate) fn serve(
        mut self,
        mut transport: impl Transport,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> {
        async move {
            // What an idle connection does not need is boxed where it is needed.
            let greeted = Box::pin(self.greet(&mut transport, &stop)).await;
            let end = match greeted {
                Some(end) => end,
                None => self.run(&mut transport, &stop).await,
            };
            Box::pin(self.part(transport, end)).await;
        }
    }

    /// Serves it until Hello has come, or the connection ends.
    async fn greet(
        &mut self,
        transport: &mut impl Transport,
        stop: &CancellationToken,
    ) -> Option<End> {
        while let Some(deadline) = self.session.deadline() {
            if self.held_back {
                // What the master itself has left in the kernel is no delay of the slave's.
                if let Err(end) = self.wait_for_share(stop).await {
                    return Some(end);
                }
                if let Some(end) = self.look(transport).await {
                    return Some(end);
                }
                continue;
            }
            let left = deadline.saturating_since(clock::boot());
            let ended = match tokio::time::timeout(left, wait(transport, stop)).await {
                Ok(Ok(())) => self.look(transport).await,
                Ok(Err(end)) => Some(end),
                Err(_) => {
                    let overdue = self.session.handle_timeout(clock::boot());
                    overdue.err().map(End::Refused)
                }
            };
            if ended.is_some() {
                return ended;
            }
        }
        None
    }

    /// Serves it until it ends.
    async fn run(&mut self, transport: &mut impl Transport, stop: &CancellationToken) -> End {
        loop {
            // Nobody tells a second time of what was left in the kernel.
            if !self.held_back
                && let Err(end) = wait(transport, stop).await
            {
                return end;
            }
            if (self.held_back || self.is_behind())
                && let Err(end) = Box::pin(self.wait_for_share(stop)).await
            {
                return end;
            }
            if let Some(end) = Box::pin(self.look(transport)).await {
                return end;
            }
        }
    }

    /// Whether what comes next is likely to be backlog.
    fn is_behind(&self) -> bool {
        let slot = self.slot;
        slot.is_some_and(|slot| self.reactor.roll().is_behind(slot))
    }

    /// Waits until backlog may be read; an error is the end.
    async fn wait_for_share(&mut self, stop: &CancellationToken) -> Result<(), End> {
        self.hold_back(true);
        tokio::select! {
            biased;
            () = stop.cancelled() => return Err(End::Stopping),
            () = self.reactor.credit().share() => {}
        }
        self.hold_back(false);
        self.share = SHARE_FRAMES;
        Ok(())
    }

    fn hold_back(&self, held: bool) {
        if let Some(slot) = self.slot {
            self.reactor.roll().hold_back(slot, self.id, held);
        }
    }

    /// One look at what has arrived, and the answer to it. Not to be cancelled half way.
    async fn look(&mut self, transport: &mut impl Transport) -> Option<End> {
        // In steps of their own: what a `match` looks at is held until its arms are done.
        let read = match self.read(transport) {
            Ok(read) => read,
            Err(error) => return Some(End::Broken(error)),
        };
        match self.settle(transport, &read).await {
            Ok(()) => read.end,
            Err(error) => Some(End::Broken(error)),
        }
    }

    /// Looks at what has arrived and gives all whole frames to the roll.
    fn read(&mut self, transport: &impl Transport) -> io::Result<Read> {
        let reactor = Rc::clone(&self.reactor);
        let mut buffer = reactor.buffer();
        let stamp = Stamp {
            at: clock::boot(),
            wall_ms: clock::wall_ms(),
        };
        let mut read = Read {
            received_ms: stamp.wall_ms,
            ..Read::default()
        };
        let left = std::mem::take(&mut self.held_back);
        let Some(peeked) = transport.peek(&mut buffer, left)? else {
            return Ok(read);
        };
        let bytes = &buffer[..peeked];
        self.take_frames(transport, bytes, stamp, &mut read);
        // A share is for one look.
        self.share = 0;
        let left = peeked - read.taken;
        if read.end.is_some() || self.held_back {
            return Ok(read);
        }
        if self.session.is_complete() {
            read.end = Some(End::Complete);
        } else if peeked == 0 {
            read.end = Some(End::Closed);
        } else if read.taken == 0 && transport.is_finished() {
            read.end = Some(End::CutFrame);
        } else if left > PARTIAL_FRAME_BYTES {
            transport.make_room_for_frame()?;
        }
        Ok(read)
    }

    fn take_frames(
        &mut self,
        transport: &impl Transport,
        bytes: &[u8],
        stamp: Stamp,
        read: &mut Read,
    ) {
        let mut frames = Frames::new(bytes, self.reactor.rules().frame_bytes_max);
        while read.end.is_none() && !self.session.is_complete() {
            let step = match frames.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => match frame.decode::<ToMaster>() {
                    Ok(message) if self.is_backlog(&message) && !self.take_from_share() => {
                        self.held_back = true;
                        break;
                    }
                    Ok(message) => self
                        .session
                        .handle_message(message)
                        .and_then(|step| self.apply(transport, step, frame.payload, stamp, read)),
                    Err(error) => Err(error.into()),
                },
                Err(error) => Err(error.into()),
            };
            if let Err(refusal) = step {
                read.end = Some(End::Refused(refusal));
            }
            read.taken = frames.taken();
        }
    }

    /// Whether it only fills history, behind a live report that has been taken in.
    fn is_backlog(&self, message: &ToMaster) -> bool {
        matches!(&message.kind, Some(to_master::Kind::Report(report)) if !report.live)
            && self.is_behind()
    }

    /// Whether one more frame of backlog may be taken in this look.
    fn take_from_share(&mut self) -> bool {
        if self.share == 0 && self.reactor.credit().try_share() {
            self.share = SHARE_FRAMES;
        }
        let left = self.share.checked_sub(1);
        self.share = left.unwrap_or(0);
        left.is_some()
    }

    fn apply(
        &mut self,
        transport: &impl Transport,
        step: Step,
        payload: &[u8],
        stamp: Stamp,
        read: &mut Read,
    ) -> Result<(), Refusal> {
        let step = match step {
            Step::Opened(hello) => return self.open(transport, &hello, payload, stamp, read),
            Step::Skipped => return Ok(()),
            step => step,
        };
        let Some(slot) = self.slot else {
            return Ok(());
        };
        let reactor = &self.reactor;
        let mut roll = reactor.roll();
        let is_goodbye = matches!(step, Step::Goodbye(_));
        if !roll.holds(slot, self.id)
            && (is_goodbye || !roll.hear_elder(slot, self.id, transport.is_finished(), stamp))
        {
            // The slave has opened another session since: this one is a remnant.
            read.end = Some(End::Closed);
            return Ok(());
        }
        let (stream, taken) = match step {
            Step::Report(report) => {
                let stream = report.stream;
                (stream, roll.handle_report(slot, report, payload, stamp)?)
            }
            Step::Gap(gap) => (gap.stream, roll.handle_gap(slot, &gap, payload, stamp)?),
            Step::Goodbye(goodbye) => {
                roll.handle_goodbye(slot, &goodbye, payload, stamp);
                let marks = roll.marks(slot).to_vec();
                drop(roll);
                let goodbye = reactor.goodbye(marks);
                read.answers.push(message(Kind::Goodbye(goodbye)));
                return Ok(());
            }
            Step::Opened(_) | Step::Skipped => return Ok(()),
        };
        let mark = Mark {
            stream,
            sequence: roll.mark(slot, stream),
        };
        drop(roll);
        reactor.count(taken);
        if let Some(come_back) = reactor.come_back_later(&mut self.told_back_ms) {
            read.answers.push(message(Kind::ComeBack(come_back)));
        }
        if taken != Taken::Previewed {
            ack_later(&mut read.marks, mark);
        }
        Ok(())
    }

    fn open(
        &mut self,
        transport: &impl Transport,
        hello: &Hello,
        payload: &[u8],
        stamp: Stamp,
        read: &mut Read,
    ) -> Result<(), Refusal> {
        let greeting = self
            .reactor
            .roll()
            .handle_hello(hello, payload, self.peer, self.id, stamp)?;
        match greeting {
            Greeting::Welcome { slot, marks } => {
                self.slot = Some(slot);
                self.park(transport, hello, stamp.wall_ms);
                read.is_opened = true;
                let welcome = self.reactor.welcome(marks, hello.backlog);
                self.told_back_ms = welcome.back_max_ms;
                read.answers.push(message(Kind::Welcome(welcome)));
            }
            Greeting::Copy { marks } => {
                let welcome = self.reactor.welcome(marks, hello.backlog);
                read.answers.push(message(Kind::Welcome(welcome)));
                read.end = Some(End::Complete);
            }
            Greeting::Resync { applied } => {
                let resync = Resync {
                    stream: hello.stream,
                    sequence: applied,
                };
                read.answers.push(message(Kind::Resync(resync)));
                read.end = Some(End::Complete);
            }
        }
        Ok(())
    }

    /// Waits until what was read is durable; then takes it out of the kernel's buffer and answers.
    async fn settle(&self, transport: &mut impl Transport, read: &Read) -> io::Result<()> {
        if read.taken == 0 {
            return Ok(());
        }
        self.reactor.durable().await;
        self.mark_before(transport, read)?;
        transport.consume(read.taken, &mut self.reactor.buffer())?;
        let mut out = Vec::new();
        for answer in &read.answers {
            self.encode(answer, &mut out);
        }
        let sent_ms = clock::wall_ms();
        for mark in &read.marks {
            let ack = Ack {
                stream: mark.stream,
                sequence: mark.sequence,
                received_ms: read.received_ms,
                sent_ms,
            };
            self.encode(&message(Kind::Ack(ack)), &mut out);
        }
        if out.is_empty() {
            return Ok(());
        }
        self.reactor.stats().acks.add(read.marks.len() as u64);
        self.write(transport, &out).await?;
        self.mark_after(transport, read)
    }

    fn encode(&self, message: &ToSlave, out: &mut Vec<u8>) {
        if let Err(error) = frame::encode(message, out) {
            tracing::error!(event = "answer_too_large", peer = %self.peer, error = %error, "an answer was not sent");
        }
    }
}

/// Waits until there is something to look at; an error is the end.
async fn wait(transport: &impl Transport, stop: &CancellationToken) -> Result<(), End> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(End::Stopping),
        ready = transport.readable() => ready.map_err(End::Broken),
    }
}

fn message(kind: Kind) -> ToSlave {
    ToSlave { kind: Some(kind) }
}

/// One ack for each stream says it all.
fn ack_later(marks: &mut Vec<Mark>, mark: Mark) {
    match marks.iter_mut().find(|known| known.stream == mark.stream) {
        Some(known) => known.sequence = known.sequence.max(mark.sequence),
        None => marks.push(mark),
    }
}
