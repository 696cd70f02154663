//! One connection with its session, from Hello to the end.

mod leaving;
mod sending;

use std::io;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::limits::{VERSION_MAX, VERSION_MIN};
use rollcall_protocol::session::SlaveSession;
use rollcall_protocol::session::slave::{Opened, Step, clock_offset_ms, payload_bytes_max};
use rollcall_protocol::wire::{Ack, ErrorCode, Mark, ToSlave, to_master::Kind};
use tokio::sync::watch;

use super::Link;
use super::connection::{Connection, Io};
use super::end::{End, LinkError};
use super::feed::Feed;
use super::journal::log_resync;
use crate::spool::SpoolError;
use leaving::PORTS_ASKED_EVERY;

pub(super) use leaving::CLOSE_WAIT;

/// See the module's documentation.
pub(super) struct Exchange<'a> {
    link: &'a mut Link,
    /// Whether this is a connection for a message, as it was when it began.
    per_message: bool,
    master: String,
    connection: Connection,
    session: SlaveSession,
    feed: Feed,
    newest: watch::Receiver<u64>,
    /// What was acked and not told to the spool yet.
    acked: Vec<Mark>,
    /// Nothing more is sent; once all is acked, it ends like this.
    leaving: Option<Leaving>,
    goodbye_said: bool,
    /// Per-message mode: what was owed to the master is among the messages.
    owed_told: bool,
    /// What the master ended the session with: it closes now, and it closes first.
    last_word: Option<End>,
    /// Until when the master has to close.
    close_by: Option<Moment>,
    /// Per-message mode: when the connection may wait aside for that.
    aside_at: Option<Moment>,
    /// Pooled mode: when the connection has lived for long enough.
    lifetime_until: Option<Moment>,
    /// Pooled mode: when something was sent or acked last.
    busy_at: Moment,
    /// Fallen back to a pooled connection: when to look for free ports.
    ports_at: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// The configuration has changed, or the next stream needs a new Hello.
    Again,
    /// The most preferred master is there again.
    Return,
    /// Nothing has been sent for a while.
    Idle,
}

enum Event {
    Io(io::Result<Io>),
    NewReport,
    Reconfigured,
    MasterFound,
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
        let standing = link.spool.introduce().await?;
        link.begin_sending(&standing.pending);
        let feed = Feed::new(link.spool.clone(), &standing.pending);
        let timeouts = link.config.timeouts;
        let now = clock::boot();
        let mut session = SlaveSession::new(now, timeouts, standing.pending.clone(), 0);
        // What goes out with Hello is answered after Welcome.
        session.expect_marks_up_to(link.sent);
        let mut exchange = Self {
            session,
            per_message: link.is_per_message(),
            ports_at: link.is_fallen_back().then_some(now + PORTS_ASKED_EVERY),
            link,
            master,
            connection,
            feed,
            newest,
            acked: Vec::new(),
            leaving: None,
            goodbye_said: false,
            owed_told: false,
            last_word: None,
            close_by: None,
            aside_at: None,
            lifetime_until: None,
            busy_at: now,
        };
        if exchange.per_message {
            exchange.queue_all(standing).await?;
        } else {
            let hello = exchange.hello(standing, 0);
            exchange.queue(hello);
        }
        Ok(exchange)
    }

    /// Goes on until the connection is of no more use, and closes it.
    pub(super) async fn run(mut self) -> Result<End, SpoolError> {
        let end = self.talk().await;
        self.close(matches!(end, Ok(End::Done)));
        end
    }

    async fn talk(&mut self) -> Result<End, SpoolError> {
        loop {
            self.look_for_ports().await;
            if self.may_send() {
                self.send_more().await?;
            }
            let mut end = self.finished(clock::boot());
            if end.is_none() {
                let event = self.next_event().await;
                end = self.handle(event);
                self.flush_acked().await?;
            }
            if let Some(end) = end {
                return self.conclude(end).await;
            }
        }
    }

    /// What the master said before it closed goes before the close itself.
    async fn conclude(&mut self, end: End) -> Result<End, SpoolError> {
        let end = match self.last_word.take() {
            Some(_) if self.goodbye_said => End::Stopped,
            Some(word) => word,
            None => end,
        };
        if let End::Resync(stream) = end {
            self.link.spool.restream(stream).await?;
        }
        Ok(end)
    }

    /// Pooled mode: whether reports may go out now.
    fn may_send(&self) -> bool {
        !self.per_message
            && self.session.is_open()
            && self.leaving.is_none()
            && self.last_word.is_none()
            && !self.goodbye_said
    }

    /// All was said and acked.
    fn done(&self) -> End {
        if self.goodbye_said {
            End::Stopped
        } else {
            End::Done
        }
    }

    /// Waits; changes nothing but the connection's buffers.
    async fn next_event(&mut self) -> Event {
        let deadline = self.deadline();
        let may_send = self.may_send();
        let may_leave = self.may_leave();
        let stopping = self.link.is_stopping();
        tokio::select! {
            io = self.connection.io() => Event::Io(io),
            Ok(()) = self.newest.changed(), if may_send => Event::NewReport,
            Ok(()) = self.link.updates.changed(), if may_leave => Event::Reconfigured,
            () = self.link.failback.found(), if may_leave => Event::MasterFound,
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
                self.leaving = Some(Leaving::Again);
                None
            }
            Event::MasterFound => {
                self.leaving = Some(Leaving::Return);
                None
            }
            Event::Stop => {
                self.link.begin_stop();
                None
            }
            Event::Deadline => {
                let now = clock::boot();
                if self.renew_at().is_some_and(|at| now >= at) {
                    self.leaving = Some(Leaving::Again);
                } else if self.idle_at().is_some_and(|at| now >= at) {
                    self.leaving = Some(Leaving::Idle);
                }
                if self.last_word.is_some() {
                    return None;
                }
                let silence = self.session.handle_timeout(now).err();
                silence.map(|silence| self.lost(silence))
            }
        }
    }

    fn closed(&self) -> End {
        let is_all_acked = self.session.is_open() && self.session.in_flight() == 0;
        if is_all_acked && (self.goodbye_said || self.per_message) {
            return self.done();
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
            Step::Ahead(mark) => {
                log_resync(&self.master, mark.stream, mark.sequence);
                Some(End::Resync(mark.stream))
            }
            Step::Acked { ack, round_trip } => {
                self.acked(ack, round_trip);
                None
            }
            Step::Resync(resync) => {
                log_resync(&self.master, resync.stream, resync.sequence);
                self.last(End::Resync(resync.stream))
            }
            Step::Goodbye(goodbye) => {
                self.acked.extend(&goodbye.marks);
                self.last(End::Told(goodbye))
            }
            // The gap that was missing is known only since Welcome.
            Step::Refused(error)
                if error.code() == ErrorCode::Hole
                    && !self.owed_told
                    && !self.link.owed.is_empty() =>
            {
                self.last(End::Again)
            }
            Step::Refused(error) => self.last(End::Refused(error)),
            Step::ComeBack(come_back) => {
                self.link.told(come_back.back_min_ms, come_back.back_max_ms);
                None
            }
            Step::Skipped => None,
        }
    }

    /// The master closes after this. To close before it does would leave a port in TIME_WAIT here.
    fn last(&mut self, word: End) -> Option<End> {
        self.last_word.get_or_insert(word);
        self.close_by.get_or_insert(clock::boot() + CLOSE_WAIT);
        None
    }

    fn opened(&mut self, opened: Opened) -> Option<End> {
        let version = opened.welcome.version;
        if !(VERSION_MIN..=VERSION_MAX).contains(&version) {
            return Some(self.lost(LinkError::Version(version)));
        }
        let now = clock::boot();
        let per_message = self.per_message;
        let peer = self.connection.peer();
        self.link
            .journal
            .opened(&self.master, peer, &opened, !per_message);
        self.begin_life(now);
        self.link.handle_opened();
        self.link.backoff.handle_up(now);
        let welcome = &opened.welcome;
        self.link.told(welcome.back_min_ms, welcome.back_max_ms);
        self.link.plan_return();
        self.link.payload_bytes_max = payload_bytes_max(welcome);
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
        self.busy_at = clock::boot();
        self.await_close();
    }

    async fn flush_acked(&mut self) -> Result<(), SpoolError> {
        if self.acked.is_empty() {
            return Ok(());
        }
        self.link.spool.acked(std::mem::take(&mut self.acked)).await
    }
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
