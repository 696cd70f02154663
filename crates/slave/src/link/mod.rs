//! The way to the masters: connects, feeds the session from the spool, takes in the acks.
//!
//! ```text
//!        ┌─> pause (backoff, or the window that the master told) ─┐
//!        │                                                        v
//!   lost │   all failed in a row        ┌── next master <── connect ── refused, no answer
//!        │                              │                    │ (dial.rs)
//!        └──────────────────────────────┴──── Exchange <─────┘ Hello
//!                                             (exchange/)
//! ```
//!
//! In pooled mode an [`Exchange`] lasts as long as its connection does; in per-message mode it
//! carries what there is to send and ends when the master closes, which it does first, so that no
//! port of this host is left in TIME_WAIT. Where that can't be had, [`Budget`] sees to it that the
//! ports do not run out.
//!
//! There is one connection to one master at a time, because there is one session: a master takes a
//! second connection of a slave for its successor and closes the first, and the sequences of a
//! stream go in order. More of them that stand by would have nothing to say: a master drops a
//! connection without Hello after some seconds, so each would have to be made anew all the time,
//! for a round trip won when the session is lost.

mod budget;
mod budget_use;
mod closing;
mod connection;
mod datagram;
mod dial;
mod end;
mod exchange;
mod failback;
mod feed;
mod hello;
mod journal;
mod masters;
mod ports;
mod settings;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::backoff::{Backoff, BackoffLimits};
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::wire::Mark;
use rollcall_protocol::{Moment, wire};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::random;
use crate::spool::{Spool, SpoolError};
use budget::Budget;
use closing::Closing;
use connection::Connection;
use datagram::Datagrams;
use dial::Dialer;
use end::{End, LinkError, Next};
use exchange::Exchange;
use failback::Failback;
use journal::Journal;
use masters::Masters;

pub(crate) use budget::{PortUse, describe_budget};
pub(crate) use dial::scoped;
pub(crate) use settings::{Close, LinkConfig, OnExhaustion};

/// How long per-message mode waits for ports before it looks for them again.
const PORTS_PAUSE: Duration = Duration::from_secs(1);

/// The task that owns the connection to the master.
#[derive(Debug)]
pub(crate) struct Link {
    spool: Spool,
    config: Arc<LinkConfig>,
    updates: watch::Receiver<Arc<LinkConfig>>,
    clock_offset_ms: watch::Sender<Option<i64>>,
    port_use: watch::Sender<Option<PortUse>>,
    stop: CancellationToken,
    /// Once it is to stop: until when it may send.
    drain_until: Option<Moment>,
    masters: Masters,
    backoff: Backoff,
    dialer: Dialer,
    /// While the session is with a less preferred master.
    failback: Failback,
    /// Per-message mode: the ports.
    budget: Budget,
    /// Datagram mode.
    datagrams: Datagrams,
    closing: Closing,
    /// Pooled mode: the connection was closed until there is something to send.
    is_idle: bool,
    /// The highest sequence of the process's own stream that was ever sent.
    sent: Mark,
    /// Per-message mode: what the master lacks and was acked once, to be told with the next message.
    owed: Vec<wire::Gap>,
    /// What the last master that welcomed this slave allows a frame to hold.
    payload_bytes_max: usize,
    journal: Journal,
    /// The master that has welcomed this slave, until it can't be had.
    session: watch::Sender<Option<String>>,
}

impl Link {
    /// A link that has not connected yet. The newest configuration of `updates` is used;
    /// `clock_offset_ms` is told the master's clock minus ours, `port_use` in per-message mode the
    /// use of the ports; `stop` makes it drain and end.
    pub(crate) fn new(
        spool: Spool,
        mut updates: watch::Receiver<Arc<LinkConfig>>,
        clock_offset_ms: watch::Sender<Option<i64>>,
        port_use: watch::Sender<Option<PortUse>>,
        stop: CancellationToken,
    ) -> Self {
        let config = Arc::clone(&updates.borrow_and_update());
        let dialer = Dialer::new(&config);
        Self {
            spool,
            masters: Masters::new(config.masters.clone()),
            backoff: Backoff::new(config.backoff),
            failback: Failback::default(),
            budget: Budget::new(Arc::clone(&dialer.connector)),
            datagrams: Datagrams::new(),
            closing: Closing::default(),
            is_idle: false,
            dialer,
            config,
            updates,
            clock_offset_ms,
            port_use,
            stop,
            drain_until: None,
            sent: Mark::default(),
            owed: Vec::new(),
            payload_bytes_max: FRAME_PAYLOAD_BYTES_MAX,
            journal: Journal::default(),
            session: watch::Sender::default(),
        }
    }

    /// Which master this slave reports to; `None` while none can be had.
    pub(crate) fn watch_session(&self) -> watch::Receiver<Option<String>> {
        self.session.subscribe()
    }

    /// Works until it is stopped: then it sends what is spooled, within the drain time, says goodbye
    /// and waits for the master's close.
    ///
    /// # Errors
    /// [`SpoolError::Ended`]
    pub(crate) async fn run(mut self) -> Result<(), SpoolError> {
        loop {
            self.take_updates();
            let end = match self.exchange().await {
                Ok(end) => end,
                Err(SpoolError::Ended) => return Err(SpoolError::Ended),
                Err(SpoolError::Replaced) => End::Again,
                Err(error) => End::Lost {
                    error: LinkError::Spool(error),
                    open: true,
                },
            };
            match self.after(end) {
                Next::Now => {}
                Next::Pause(pause) => self.pause(pause).await,
                Next::Finish => return Ok(()),
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.drain_until.is_some()
    }

    /// Whether the time for sending what is left is over.
    fn is_drained(&self) -> bool {
        let now = clock::boot();
        self.drain_until.is_some_and(|until| now >= until)
    }

    fn begin_stop(&mut self) {
        if self.drain_until.is_none() {
            self.drain_until = Some(clock::boot() + self.config.drain);
        }
    }

    fn take_updates(&mut self) {
        let new = Arc::clone(&self.updates.borrow_and_update());
        if new != self.config {
            self.masters.replace(new.masters.clone());
            self.backoff.set_limits(new.backoff);
            self.dialer = Dialer::new(&new);
            self.budget.reconfigure(Arc::clone(&self.dialer.connector));
            self.failback.end();
            self.port_use.send_replace(None);
            self.config = new;
        }
    }

    /// Until something is spooled, or it is to stop. Returns false if the configuration has changed
    /// meanwhile.
    async fn wait_for_work(&mut self) -> Result<bool, SpoolError> {
        let mut newest = self.spool.watch_newest();
        newest.borrow_and_update();
        while !self.is_stopping() && self.spool.standing().await?.is_empty() {
            let stop = self.stop.clone();
            tokio::select! {
                changed = newest.changed() => changed.map_err(|_| SpoolError::Ended)?,
                () = stop.cancelled() => self.begin_stop(),
                Ok(()) = self.updates.changed() => return Ok(false),
            }
        }
        Ok(true)
    }

    async fn exchange(&mut self) -> Result<End, SpoolError> {
        let asks = self.config.mode == wire::Mode::Datagram;
        if (asks || self.is_per_message() || self.is_idle) && !self.wait_for_work().await? {
            return Ok(End::Again);
        }
        self.is_idle = false;
        if self.failback.is_found() {
            self.masters.go_back();
        }
        if asks && let Some(end) = self.ask().await? {
            return Ok(end);
        }
        if self.is_per_message() && !self.is_stopping() && !self.has_port().await {
            return Ok(End::NoRoom);
        }
        let master = self.masters.current().to_owned();
        let dialer = self.dialer.clone();
        let stream = match self.unless_drained(dialer.dial(&master)).await {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => {
                return Ok(End::Lost {
                    error: error.into(),
                    open: false,
                });
            }
            None => return Ok(End::Stopped),
        };
        let connection = Connection::new(stream);
        if let Some(peer) = connection.peer() {
            self.budget.handle_connected(peer);
        }
        Exchange::begin(self, connection, master).await?.run().await
    }

    /// The future's result, or `None` if there is no time left for it.
    async fn unless_drained<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(future);
        let stop = self.stop.clone();
        if !self.is_stopping() {
            tokio::select! {
                done = &mut future => return Some(done),
                () = stop.cancelled() => self.begin_stop(),
            }
        }
        let left = self.drain_until.unwrap_or_default();
        let left = left.saturating_since(clock::boot());
        tokio::time::timeout(left, future).await.ok()
    }

    /// A connection or a question begins: how far the process's own stream, the last of `pending`, has been
    /// sent before it.
    fn begin_sending(&mut self, pending: &[wire::Pending]) {
        let own = pending.last().copied().unwrap_or_default();
        // What was acked was sent.
        let acked = own.first.saturating_sub(1);
        let known = Some(self.sent).filter(|sent| sent.stream == own.stream);
        let sequence = known.map_or(0, |sent| sent.sequence).max(acked);
        self.sent = Mark {
            stream: own.stream,
            sequence,
        };
    }

    /// An entry has been sent.
    fn note_sent(&mut self, place: Mark) {
        if self.sent.stream == place.stream {
            self.sent.sequence = self.sent.sequence.max(place.sequence);
        }
    }

    /// Decides what comes after an exchange.
    fn after(&mut self, end: End) -> Next {
        if end.is_without_master() {
            self.session.send_replace(None);
        }
        match end {
            End::Stopped => Next::Finish,
            End::Again => Next::Now,
            End::Idle => {
                self.is_idle = true;
                Next::Now
            }
            End::NoRoom if self.is_fallen_back() => Next::Now,
            End::NoRoom => Next::Pause(PORTS_PAUSE),
            End::Done => {
                // A message that got through is as good as a session that has stayed up.
                self.backoff.handle_done();
                Next::Now
            }
            End::Return => {
                self.masters.go_back();
                Next::Now
            }
            End::Resync(_) => self.down(),
            End::Told(goodbye) => {
                journal::log_goodbye(self.masters.current(), &goodbye);
                self.told(goodbye.back_min_ms, goodbye.back_max_ms);
                self.down()
            }
            End::Refused(error) => {
                self.refused(&error);
                self.next_master()
            }
            End::Lost { error, open } => {
                self.journal
                    .failed(self.masters.current(), &error, &self.budget);
                if self.falls_back(&error) {
                    Next::Now
                } else if open {
                    self.down()
                } else {
                    self.next_master()
                }
            }
        }
    }

    fn refused(&mut self, error: &wire::Error) {
        self.journal.refused(self.masters.current(), error);
        let BackoffLimits { cap, .. } = self.config.backoff;
        if error.retry && error.retry_after_ms > 0 {
            let after = Duration::from_millis(error.retry_after_ms.into());
            self.backoff.handle_window(after, after.saturating_mul(2));
        } else if !error.retry {
            self.backoff
                .handle_window(cap / 2, cap.saturating_mul(3) / 2);
        }
    }

    fn next_master(&mut self) -> Next {
        if self.masters.failed() {
            self.down()
        } else {
            Next::Now
        }
    }

    fn down(&mut self) -> Next {
        if self.is_stopping() {
            return Next::Finish;
        }
        Next::Pause(self.backoff.handle_down(clock::boot(), random::bits()))
    }

    /// The master told when to come back; zero is no answer.
    fn told(&mut self, min_ms: u32, max_ms: u32) {
        if max_ms > 0 {
            let [min, max] = [min_ms, max_ms].map(|ms| Duration::from_millis(ms.into()));
            self.backoff.handle_window(min, max);
        }
    }

    /// The master in turn has welcomed this slave.
    fn handle_opened(&mut self) {
        self.masters.opened();
        let master = self.masters.current();
        self.session.send_if_modified(|session| {
            let changed = session.as_deref() != Some(master);
            if changed {
                *session = Some(master.to_owned());
            }
            changed
        });
    }

    /// A session has begun: if it is with a less preferred master, the first one is looked for.
    fn plan_return(&mut self) {
        if self.masters.is_fallback() {
            let after = self.config.return_after;
            self.failback
                .begin(self.masters.first(), &self.dialer, after);
        } else {
            self.failback.end();
        }
    }

    async fn pause(&mut self, pause: Duration) {
        let stop = self.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => self.begin_stop(),
            Ok(()) = self.updates.changed() => {}
        }
    }
}
