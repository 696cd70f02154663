//! The way to the masters: connects, feeds the session from the spool, takes in the acks.
//!
//! ```text
//!        ┌─> pause (backoff, or the window that the master told) ─┐
//!        │                                                        v
//!   lost │   all failed in a row        ┌── next master <── connect ── refused, no answer
//!        │                              │                    │
//!        └──────────────────────────────┴──── Exchange <─────┘ Hello
//!                                             (exchange.rs)
//! ```
//!
//! In pooled mode an [`Exchange`] lasts as long as its connection does; in per-message mode it
//! carries what there is to send and ends when the master closes, which it does first, so that no
//! port of this host is left in TIME_WAIT.

mod connection;
mod exchange;
mod feed;
mod journal;
mod masters;
mod ports;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_os::socket::Liveness;
use rollcall_protocol::backoff::{Backoff, BackoffLimits};
use rollcall_protocol::frame::FrameError;
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::session::slave::{Silence, SlaveTimeouts};
use rollcall_protocol::wire::Mark;
use rollcall_protocol::{Moment, wire};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::random;
use crate::spool::{Spool, SpoolError};
use connection::{ConnectError, Connection};
use exchange::Exchange;
use journal::Journal;
use masters::Masters;

/// How this slave talks to its masters, and what it says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LinkConfig {
    /// The slave's name.
    pub(crate) name: String,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Time between two reports.
    pub(crate) interval: Duration,
    /// "host:port", the most preferred first; at least one.
    pub(crate) masters: Vec<String>,
    /// One connection for all, or one for each message.
    pub(crate) mode: wire::Mode,
    /// How long an attempt to connect may take.
    pub(crate) connect_timeout: Duration,
    /// How long answers may take.
    pub(crate) timeouts: SlaveTimeouts,
    /// Pauses between attempts.
    pub(crate) backoff: BackoffLimits,
    /// How long it stays with a less preferred master before it tries the first again.
    pub(crate) return_after: Duration,
    /// How a dead peer is noticed.
    pub(crate) liveness: Liveness,
    /// How long it may go on sending when it is to stop.
    pub(crate) drain: Duration,
}

/// Why a session could not be had or has ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The master closed it without a word.
    #[error("the master closed the connection")]
    Closed,
    /// What came is not this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The master speaks a version that was not offered.
    #[error("the master chose protocol version {0}, which was not offered")]
    Version(u32),
    /// No answer in time.
    #[error(transparent)]
    Silence(#[from] Silence),
    /// The spool can't be read at the moment.
    #[error("{0}")]
    Spool(SpoolError),
}

/// How an exchange ended.
#[derive(Debug)]
enum End {
    /// Connect again at once: there is more to send, or the configuration has changed.
    Again,
    /// All was acked, and nothing is left to do on this connection.
    Done,
    /// The most preferred master is to be tried again.
    Return,
    /// What is not acked of this stream is to be moved, and was moved, to a new one.
    Resync(u64),
    /// The master is going away.
    Told(wire::MasterGoodbye),
    /// The master does not want this slave.
    Refused(wire::Error),
    /// Anything else; told apart by whether the session was open.
    Lost { error: LinkError, open: bool },
    /// This slave has said goodbye, or there was no time left to.
    Stopped,
}

/// What comes after an exchange.
enum Next {
    Now,
    Pause(Duration),
    Finish,
}

/// The task that owns the connection to the master.
#[derive(Debug)]
pub(crate) struct Link {
    spool: Spool,
    config: Arc<LinkConfig>,
    updates: watch::Receiver<Arc<LinkConfig>>,
    clock_offset_ms: watch::Sender<Option<i64>>,
    stop: CancellationToken,
    /// Once it is to stop: until when it may send.
    drain_until: Option<Moment>,
    masters: Masters,
    backoff: Backoff,
    /// When the most preferred master is to be tried again.
    return_at: Option<Moment>,
    /// The highest sequence of the process's own stream that was ever sent.
    sent: Mark,
    /// Per-message mode: what the master lacks and was acked once, to be told with the next message.
    owed: Vec<wire::Gap>,
    /// What the last master that welcomed this slave allows a frame to hold.
    payload_bytes_max: usize,
    journal: Journal,
}

impl Link {
    /// A link that has not connected yet. The newest configuration of `updates` is used;
    /// `clock_offset_ms` is told the master's clock minus ours; `stop` makes it drain and end.
    pub(crate) fn new(
        spool: Spool,
        mut updates: watch::Receiver<Arc<LinkConfig>>,
        clock_offset_ms: watch::Sender<Option<i64>>,
        stop: CancellationToken,
    ) -> Self {
        let config = Arc::clone(&updates.borrow_and_update());
        Self {
            spool,
            masters: Masters::new(config.masters.clone()),
            backoff: Backoff::new(config.backoff),
            config,
            updates,
            clock_offset_ms,
            stop,
            drain_until: None,
            return_at: None,
            sent: Mark::default(),
            owed: Vec::new(),
            payload_bytes_max: FRAME_PAYLOAD_BYTES_MAX,
            journal: Journal::default(),
        }
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

    fn is_per_message(&self) -> bool {
        self.config.mode == wire::Mode::PerMessage
    }

    fn is_stopping(&self) -> bool {
        self.drain_until.is_some()
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
            self.backoff = Backoff::new(new.backoff);
            self.config = new;
        }
    }

    /// Per-message mode: until something is spooled, or it is to stop. Returns false if the
    /// configuration has changed meanwhile.
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
        if self.is_per_message() && !self.wait_for_work().await? {
            return Ok(End::Again);
        }
        if self.return_at.is_some_and(|at| clock::boot() >= at) {
            self.return_at = None;
            self.masters.go_back();
        }
        let config = Arc::clone(&self.config);
        let master = self.masters.current().to_owned();
        let connecting = Connection::open(&master, config.connect_timeout, &config.liveness);
        let connection = match self.unless_drained(connecting).await {
            Some(Ok(connection)) => connection,
            Some(Err(error)) => {
                return Ok(End::Lost {
                    error: error.into(),
                    open: false,
                });
            }
            None => return Ok(End::Stopped),
        };
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

    /// Decides what comes after an exchange.
    fn after(&mut self, end: End) -> Next {
        match end {
            End::Stopped => Next::Finish,
            End::Again => Next::Now,
            End::Done => {
                // A message that got through is as good as a session that has stayed up.
                self.backoff = Backoff::new(self.config.backoff);
                Next::Now
            }
            End::Return => {
                self.masters.go_back();
                Next::Now
            }
            End::Resync(_) => self.down(),
            End::Told(goodbye) => {
                tracing::info!(
                    event = "master_goodbye",
                    master = self.masters.current(),
                    back_min_ms = goodbye.back_min_ms,
                    back_max_ms = goodbye.back_max_ms,
                    "the master goes away for a while"
                );
                self.told(goodbye.back_min_ms, goodbye.back_max_ms);
                self.down()
            }
            End::Refused(error) => {
                self.journal.refused(self.masters.current(), &error);
                let BackoffLimits { cap, .. } = self.config.backoff;
                if error.retry && error.retry_after_ms > 0 {
                    let after = Duration::from_millis(error.retry_after_ms.into());
                    self.backoff.handle_window(after, after.saturating_mul(2));
                } else if !error.retry {
                    self.backoff
                        .handle_window(cap / 2, cap.saturating_mul(3) / 2);
                }
                self.next_master()
            }
            End::Lost { error, open } => {
                self.journal.failed(self.masters.current(), &error);
                if open {
                    self.down()
                } else {
                    self.next_master()
                }
            }
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

    /// A session with a less preferred master has begun: when to look for the first again. Spread
    /// over half as long again, so that not all slaves go back together.
    fn plan_return(&mut self, now: Moment) {
        if !self.masters.is_fallback() {
            self.return_at = None;
        } else if self.return_at.is_none() {
            let after = self.config.return_after;
            let spread = after.mul_f64(0.5 * random::unit());
            self.return_at = Some(now + after + spread);
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
