//! One connection with its session, from Hello to the end.

use std::io;
use std::time::Duration;

use prost::Message;
use rollcall_os::clock;
use rollcall_protocol::limits::{
    FRAME_PAYLOAD_BYTES_MAX, PER_MESSAGE_FRAMES_MAX, VERSION_MAX, VERSION_MIN,
};
use rollcall_protocol::session::SlaveSession;
use rollcall_protocol::session::slave::{Opened, Pick, Step, clock_offset_ms, payload_bytes_max};
use rollcall_protocol::wire::{
    self, Ack, ErrorCode, GoodbyeReason, Hello, Mark, ToMaster, ToSlave, to_master::Kind,
};
use rollcall_protocol::{Moment, limits};
use tokio::sync::watch;

use super::connection::{Connection, Io};
use super::feed::{Feed, sequence_of, stream_of, to_message};
use super::{End, Link, LinkError};
use crate::spool::{Body, SpoolError, Standing};

/// Bytes that may wait for the socket before no more is taken from the spool.
const UNWRITTEN_MAX: usize = limits::FRAME_BYTES_MAX;
/// How long the master may take to close after its last word. If it does not, the slave closes
/// first, which costs it a port for a minute.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// See the module's documentation.
pub(super) struct Exchange<'a> {
    link: &'a mut Link,
    master: String,
    connection: Connection,
    session: SlaveSession,
    feed: Feed,
    newest: watch::Receiver<u64>,
    payload_bytes_max: usize,
    /// What was acked and not told to the spool yet.
    acked: Vec<Mark>,
    /// Nothing more is sent; once all is acked, it ends like this.
    leaving: Option<Leaving>,
    goodbye_said: bool,
    /// Per-message mode: what was owed to the master is among the messages.
    owed_told: bool,
    /// Per-message mode: until when the master has to close.
    close_by: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// The configuration has changed, or the next stream needs a new Hello.
    Again,
    /// The time with a less preferred master is over.
    Return,
}

enum Event {
    Io(io::Result<Io>),
    NewReport,
    Reconfigured,
    Stop,
    Deadline,
}

impl<'a> Exchange<'a> {
    /// Queues Hello, in per-message mode together with the messages.
    pub(super) async fn begin(
        link: &'a mut Link,
        connection: Connection,
        master: String,
    ) -> Result<Self, SpoolError> {
        let newest = link.spool.watch_newest();
        let standing = link.spool.standing().await?;
        let feed = Feed::new(link.spool.clone(), &standing.pending);
        let timeouts = link.config.timeouts;
        let mut exchange = Self {
            session: SlaveSession::new(clock::boot(), timeouts, standing.pending.clone(), 0),
            link,
            master,
            connection,
            feed,
            newest,
            payload_bytes_max: FRAME_PAYLOAD_BYTES_MAX,
            acked: Vec::new(),
            leaving: None,
            goodbye_said: false,
            owed_told: false,
            close_by: None,
        };
        if exchange.link.is_per_message() {
            exchange.queue_all(standing).await?;
        } else {
            let hello = exchange.hello(standing, 0);
            exchange.queue(hello);
        }
        Ok(exchange)
    }

    /// Goes on until the connection is of no more use.
    pub(super) async fn run(mut self) -> Result<End, SpoolError> {
        loop {
            if !self.link.is_per_message() && self.session.is_open() {
                self.send_more().await?;
            }
            if let Some(end) = self.finished(clock::boot()) {
                return Ok(end);
            }
            let event = self.next_event().await;
            let end = self.handle(event);
            self.flush_acked().await?;
            if let Some(End::Resync(stream)) = end {
                self.link.spool.restream(stream).await?;
            }
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    fn hello(&self, standing: Standing, frames: u32) -> Kind {
        let config = &self.link.config;
        Kind::Hello(Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            slave_id: standing.slave_id.to_vec(),
            name: config.name.clone(),
            stream: standing.stream,
            next_sequence: standing.next_sequence,
            interval_ms: u32::try_from(config.interval.as_millis()).unwrap_or(u32::MAX),
            mode: config.mode.into(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            backlog: standing.backlog,
            pending: standing.pending,
            frames,
            labels: config.labels.clone(),
        })
    }

    /// Per-message mode: Hello with as many messages as one connection carries, all in the first
    /// segment, and the goodbye if it is time for it.
    async fn queue_all(&mut self, standing: Standing) -> Result<(), SpoolError> {
        let owed = std::mem::take(&mut self.link.owed);
        self.owed_told = !owed.is_empty();
        let mut messages: Vec<Kind> = Vec::new();
        for gap in owed {
            self.session.handle_gap_sent(&gap, clock::boot());
            messages.push(Kind::Gap(gap));
        }
        let room = usize::try_from(PER_MESSAGE_FRAMES_MAX).unwrap_or(1) - 1;
        self.session.send_with_hello(PER_MESSAGE_FRAMES_MAX);
        while messages.len() < room
            && let Some(message) = self.next_message().await?
        {
            messages.push(message);
        }
        self.feed.fill().await?;
        let over = self.link.is_stopping() && (self.feed.is_empty() || self.is_drained());
        if over {
            messages.push(goodbye());
            self.goodbye_said = true;
        }
        let frames = u32::try_from(messages.len()).unwrap_or(PER_MESSAGE_FRAMES_MAX);
        let hello = self.hello(standing, frames);
        self.queue(hello);
        for message in messages {
            self.queue(message);
        }
        Ok(())
    }

    /// Pooled mode: as much as the window allows.
    async fn send_more(&mut self) -> Result<(), SpoolError> {
        while self.leaving.is_none()
            && !self.goodbye_said
            && self.connection.unwritten() < UNWRITTEN_MAX
            && let Some(message) = self.next_message().await?
        {
            self.queue(message);
        }
        if self.feed.is_elsewhere() {
            self.leaving.get_or_insert(Leaving::Again);
        }
        let sent_all = self.feed.is_empty() && self.session.in_flight() == 0;
        if self.link.is_stopping() && !self.goodbye_said && (sent_all || self.is_drained()) {
            self.queue(goodbye());
            self.session.handle_goodbye_sent(clock::boot());
            self.goodbye_said = true;
        }
        Ok(())
    }

    /// What the session picks next from the spool; `None` if nothing is to be sent now.
    async fn next_message(&mut self) -> Result<Option<Kind>, SpoolError> {
        loop {
            let newest = *self.newest.borrow_and_update();
            self.feed.fill_up_to(newest).await?;
            let next = self.feed.next().map(|entry| entry.id);
            let pick = self.session.pick(next, Some(newest));
            let message = match pick {
                Pick::Wait => return Ok(None),
                Pick::Preview(entry) => self.preview(entry).await?,
                Pick::InOrder { live, .. } => self.in_order(pick, live).await?,
            };
            if message.is_some() {
                return Ok(message);
            }
        }
    }

    /// The newest report, ahead of the backlog; `None` if there is none that fits.
    async fn preview(&mut self, picked: u64) -> Result<Option<Kind>, SpoolError> {
        let newest = self.link.spool.newest().await?;
        // A newer one may have come meanwhile.
        let id = newest.as_ref().map_or(picked, |entry| entry.id.max(picked));
        self.session
            .handle_sent(Pick::Preview(id), 0, 0, clock::boot());
        let message = newest.and_then(|entry| match entry.body {
            Body::Report(report) => Some(Kind::Report(wire::Report {
                live: true,
                preview: true,
                ..report
            })),
            Body::Gap(_) => None,
        });
        Ok(message.filter(|message| self.fits(message)))
    }

    /// The next entry; `None` if it does not fit and has become a gap.
    async fn in_order(&mut self, pick: Pick, live: bool) -> Result<Option<Kind>, SpoolError> {
        let Some(entry) = self.feed.next() else {
            return Ok(None);
        };
        let message = to_message(&entry.body, live);
        let (stream, sequence) = (stream_of(&entry.body), sequence_of(&entry.body));
        if !self.fits(&message) {
            self.feed.give_up_next().await?;
            return Ok(None);
        }
        self.session
            .handle_sent(pick, stream, sequence, clock::boot());
        self.feed.advance();
        Ok(Some(message))
    }

    fn fits(&self, kind: &Kind) -> bool {
        // The message around it takes a tag and a length.
        const AROUND: usize = 8;
        let bytes = match kind {
            Kind::Report(report) => report.encoded_len(),
            _ => 0,
        };
        bytes + AROUND <= self.payload_bytes_max
    }

    fn queue(&mut self, kind: Kind) {
        let message = ToMaster { kind: Some(kind) };
        if let Err(error) = self.connection.queue(&message) {
            // Reports were measured before; all else is small.
            tracing::error!(event = "message_too_large", error = %error, "a message is not sent");
        }
    }

    /// Whether the time for sending what is left is over.
    fn is_drained(&self) -> bool {
        let now = clock::boot();
        self.link.drain_until.is_some_and(|until| now >= until)
    }

    /// Whether there is nothing left to wait for.
    fn finished(&self, now: Moment) -> Option<End> {
        if let Some(until) = self.link.drain_until {
            let last = if self.goodbye_said || self.session.is_open() {
                until + CLOSE_WAIT
            } else {
                until
            };
            if now >= last {
                return Some(End::Stopped);
            }
        }
        if self.close_by.is_some_and(|close_by| now >= close_by) {
            tracing::debug!(
                event = "master_did_not_close",
                master = %self.master,
                "the slave closes first, which takes a port for a minute"
            );
            return Some(self.done());
        }
        let settled = self.session.in_flight() == 0 && self.connection.unwritten() == 0;
        match self.leaving {
            Some(leaving) if settled && self.session.is_open() => Some(match leaving {
                Leaving::Again => End::Again,
                Leaving::Return => End::Return,
            }),
            _ => None,
        }
    }

    /// All was said and acked.
    fn done(&self) -> End {
        if self.goodbye_said {
            End::Stopped
        } else {
            End::Done
        }
    }

    /// When [`Self::finished`] or the session has to be asked again.
    fn deadline(&self) -> Option<Moment> {
        let drain = self.link.drain_until.map(|until| {
            if self.is_drained() {
                until + CLOSE_WAIT
            } else {
                until
            }
        });
        let return_at = self.link.return_at.filter(|_| self.may_return());
        let deadlines = [self.session.deadline(), drain, return_at, self.close_by];
        deadlines.into_iter().flatten().min()
    }

    fn may_return(&self) -> bool {
        !self.link.is_per_message() && self.leaving.is_none() && !self.link.is_stopping()
    }

    /// Waits; changes nothing but the connection's buffers.
    async fn next_event(&mut self) -> Event {
        let deadline = self.deadline();
        let pooled = !self.link.is_per_message();
        let may_send = pooled && self.session.is_open() && !self.goodbye_said;
        let stopping = self.link.is_stopping();
        tokio::select! {
            io = self.connection.io() => Event::Io(io),
            Ok(()) = self.newest.changed(), if may_send => Event::NewReport,
            Ok(()) = self.link.updates.changed(), if pooled && !stopping => Event::Reconfigured,
            () = self.link.stop.cancelled(), if !stopping => Event::Stop,
            () = until(deadline) => Event::Deadline,
        }
    }

    fn handle(&mut self, event: Event) -> Option<End> {
        match event {
            Event::NewReport => None,
            Event::Io(Ok(Io::Progress)) => self.take_messages(),
            Event::Io(Ok(Io::End)) => Some(self.closed()),
            Event::Io(Err(error)) => Some(self.lost(error)),
            Event::Reconfigured => {
                self.link.updates.mark_changed();
                self.leaving.get_or_insert(Leaving::Again);
                None
            }
            Event::Stop => {
                self.link.begin_stop();
                None
            }
            Event::Deadline => {
                let now = clock::boot();
                if self.may_return() && self.link.return_at.is_some_and(|at| now >= at) {
                    self.link.return_at = None;
                    self.leaving = Some(Leaving::Return);
                }
                let silence = self.session.handle_timeout(now).err();
                silence.map(|silence| self.lost(silence))
            }
        }
    }

    fn closed(&self) -> End {
        if self.session.is_open() && self.session.in_flight() == 0 {
            let per_message = self.link.is_per_message();
            if self.goodbye_said || per_message {
                return self.done();
            }
        }
        self.lost(LinkError::Closed)
    }

    fn lost(&self, error: impl Into<LinkError>) -> End {
        End::Lost {
            error: error.into(),
            open: self.session.is_open(),
        }
    }

    fn take_messages(&mut self) -> Option<End> {
        loop {
            match self.connection.next_message() {
                Ok(None) => return None,
                Ok(Some(message)) => {
                    if let Some(end) = self.take(message) {
                        return Some(end);
                    }
                }
                Err(error) => return Some(self.lost(error)),
            }
        }
    }

    fn take(&mut self, message: ToSlave) -> Option<End> {
        match self.session.handle_message(message, clock::boot()) {
            Step::Opened(opened) => self.opened(opened),
            Step::Acked { ack, round_trip } => {
                self.acked(ack, round_trip);
                None
            }
            Step::Resync(resync) => {
                tracing::warn!(
                    event = "stream_resync",
                    master = %self.master,
                    stream = %format_args!("{:016x}", resync.stream),
                    sequence = resync.sequence,
                    "the master knows more of this stream than the spool: the state folder is an older copy; its reports go on in a new stream"
                );
                Some(End::Resync(resync.stream))
            }
            Step::Goodbye(goodbye) => {
                self.acked.extend(&goodbye.marks);
                Some(End::Told(goodbye))
            }
            // The gap that was missing is known only since Welcome.
            Step::Refused(error)
                if error.code() == ErrorCode::Hole
                    && !self.owed_told
                    && !self.link.owed.is_empty() =>
            {
                Some(End::Again)
            }
            Step::Refused(error) => Some(End::Refused(error)),
            Step::Skipped => None,
        }
    }

    fn opened(&mut self, opened: Opened) -> Option<End> {
        let version = opened.welcome.version;
        if !(VERSION_MIN..=VERSION_MAX).contains(&version) {
            return Some(self.lost(LinkError::Version(version)));
        }
        let now = clock::boot();
        let per_message = self.link.is_per_message();
        let peer = self.connection.peer();
        self.link
            .journal
            .opened(&self.master, peer, &opened, !per_message);
        self.link.masters.opened();
        self.link.backoff.handle_up(now);
        let welcome = &opened.welcome;
        self.link.told(welcome.back_min_ms, welcome.back_max_ms);
        self.link.plan_return(now);
        self.payload_bytes_max = payload_bytes_max(welcome);
        self.acked.extend(&opened.marks);
        if per_message {
            self.link.owed = opened.gaps;
            self.await_close();
            return None;
        }
        for gap in opened.gaps {
            self.session.handle_gap_sent(&gap, now);
            self.queue(Kind::Gap(gap));
        }
        None
    }

    fn acked(&mut self, ack: Ack, round_trip: Option<Duration>) {
        self.acked.push(Mark {
            stream: ack.stream,
            sequence: ack.sequence,
        });
        if let Some(round_trip) = round_trip {
            let offset_ms = clock_offset_ms(&ack, round_trip, clock::wall_ms());
            self.link.clock_offset_ms.send_replace(Some(offset_ms));
        }
        self.await_close();
    }

    /// Per-message mode: once all is acked, the master closes.
    fn await_close(&mut self) {
        if self.link.is_per_message() && self.session.in_flight() == 0 {
            self.close_by.get_or_insert(clock::boot() + CLOSE_WAIT);
        }
    }

    async fn flush_acked(&mut self) -> Result<(), SpoolError> {
        if self.acked.is_empty() {
            return Ok(());
        }
        self.link.spool.acked(std::mem::take(&mut self.acked)).await
    }
}

fn goodbye() -> Kind {
    Kind::Goodbye(wire::SlaveGoodbye {
        reason: GoodbyeReason::Stop.into(),
        back_ms: 0,
    })
}

/// Sleeps until `deadline`, for ever if there is none.
async fn until(deadline: Option<Moment>) {
    match deadline {
        Some(deadline) => {
            tokio::time::sleep(deadline.saturating_since(clock::boot())).await;
        }
        None => std::future::pending().await,
    }
}
