//! The reactor: the one thread that owns the roll and all connections.
//!
//! No lock and no channel lies between a socket and the roll. Whatever one turn of the loop brings is
//! one group; while the store commits it, the next one gathers; when it is durable, the connections
//! that wait for it consume and ack.

mod commit;
mod credit;
mod failure;
mod history;
#[cfg(test)]
mod tests;
mod tick;

use std::cell::{Cell, RefCell, RefMut};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_os::rate_limit::PerPeer;
use rollcall_protocol::Moment;
use rollcall_protocol::api::EventRow;
use rollcall_protocol::limits::{FRAME_BYTES_MAX, ID_BYTES, VERSION_MAX};
use rollcall_protocol::session::Refusal;
use rollcall_protocol::wire::{ComeBack, Mark, MasterGoodbye, Welcome};
use tokio::sync::{Notify, broadcast, watch};

use crate::adoption::Parking;
use crate::roll::{Published, Roll, SessionId, Taken};
use crate::stats::Stats;
use crate::view::{Degraded, RollSnapshot};
use commit::Turn;
use credit::Credit;

pub(crate) use credit::SHARE_FRAMES;
#[cfg(test)]
pub(crate) use credit::SHARES_MAX;
pub(crate) use failure::CoreFailure;

/// The shortest window that slaves are told to come back in.
const COME_BACK_SHORTEST_MS: u32 = 200;

/// What a master tells its slaves to keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionRules {
    /// How long a connection may stay silent before its Hello.
    pub(crate) hello_timeout: Duration,
    /// How long a peer may take to read what it is sent.
    pub(crate) write_timeout: Duration,
    /// Largest payload of a frame in bytes.
    pub(crate) frame_bytes_max: usize,
    /// Unacked reports and gaps on a connection.
    pub(crate) window: u32,
    /// Slaves that may come back in a second after the master was away.
    pub(crate) reconnect_rate: u32,
}

/// Where the roll and its events are published.
#[derive(Debug)]
pub(crate) struct Publication {
    /// The newest snapshot.
    pub(crate) roll: watch::Sender<Arc<RollSnapshot>>,
    /// Events, once they are durable.
    pub(crate) events: broadcast::Sender<Arc<EventRow>>,
    /// The master's own figures.
    pub(crate) stats: Arc<Stats>,
}

/// See the module's documentation.
pub(crate) struct Reactor {
    roll: RefCell<Roll>,
    /// What the core tasks and the connections share to look through; see `connection`.
    buffer: RefCell<Box<[u8]>>,
    rules: Cell<SessionRules>,
    master_id: [u8; ID_BYTES],
    sessions: Cell<SessionId>,
    publication: Publication,
    published: RefCell<Published>,
    published_at: Cell<Moment>,
    /// Budgets for lines about peers that were refused, and that went away in the middle of a frame.
    refusals: RefCell<PerPeer>,
    cuts: RefCell<PerPeer>,
    /// The group that gathers now, and the one that is being committed.
    gathering: RefCell<Rc<Turn>>,
    committing: RefCell<Option<Rc<Turn>>>,
    committing_since: Cell<Option<Moment>>,
    committed_at: Cell<Moment>,
    /// The newest group that is on disk.
    durable_group: Cell<u64>,
    degraded: RefCell<Option<Degraded>>,
    credit: Credit,
    parking: Parking,
    wanted: Notify,
    failed: Notify,
}

impl Reactor {
    /// Owns `roll` from now on; `published` is what of it is durable.
    pub(crate) fn new(
        roll: Roll,
        published: Published,
        rules: SessionRules,
        master_id: [u8; ID_BYTES],
        publication: Publication,
    ) -> Self {
        const LINES_PER_MINUTE: u32 = 3;
        const PEERS_MAX: usize = 1024;
        let reactor = Self {
            roll: RefCell::new(roll),
            buffer: RefCell::new(vec![0; FRAME_BYTES_MAX].into_boxed_slice()),
            rules: Cell::new(rules),
            master_id,
            sessions: Cell::new(0),
            publication,
            published: RefCell::default(),
            published_at: Cell::new(Moment::ZERO),
            refusals: RefCell::new(PerPeer::new(
                LINES_PER_MINUTE,
                Duration::from_secs(60),
                PEERS_MAX,
            )),
            cuts: RefCell::new(PerPeer::new(
                LINES_PER_MINUTE,
                Duration::from_secs(60),
                PEERS_MAX,
            )),
            gathering: RefCell::default(),
            committing: RefCell::default(),
            committing_since: Cell::default(),
            committed_at: Cell::new(Moment::ZERO),
            durable_group: Cell::new(0),
            degraded: RefCell::default(),
            credit: Credit::new(),
            parking: Parking::default(),
            wanted: Notify::new(),
            failed: Notify::new(),
        };
        reactor.publish(published);
        reactor
    }

    /// The same, with connections that outlive the process.
    pub(crate) fn with_parking(mut self, parking: Parking) -> Self {
        self.parking = parking;
        self
    }

    /// The roll, for one call or a few that belong together. A panic while it is held ends the
    /// daemon: its owner would be half done.
    pub(crate) fn roll(&self) -> RollGuard<'_> {
        RollGuard {
            roll: self.roll.borrow_mut(),
            failed: &self.failed,
            // Whoever cleans up after another panic leaves nothing half done here.
            unwinding: std::thread::panicking(),
        }
    }

    /// The shared buffer, for use without waiting in between.
    pub(crate) fn buffer(&self) -> RefMut<'_, Box<[u8]>> {
        self.buffer.borrow_mut()
    }

    /// The rules for sessions.
    pub(crate) fn rules(&self) -> SessionRules {
        self.rules.get()
    }

    /// Rules for what comes from now on.
    pub(crate) fn set_rules(&self, rules: SessionRules) {
        self.rules.set(rules);
    }

    /// The master's own figures.
    pub(crate) fn stats(&self) -> &Stats {
        &self.publication.stats
    }

    /// What backlogs may take.
    pub(crate) fn credit(&self) -> &Credit {
        &self.credit
    }

    /// What outlives the process.
    pub(crate) fn parking(&self) -> &Parking {
        &self.parking
    }

    /// A name for a new connection.
    pub(crate) fn next_session(&self) -> SessionId {
        let id = self.sessions.get() + 1;
        self.sessions.set(id);
        id
    }

    /// The answer to a Hello of a slave that has `backlog` unacked reports.
    pub(crate) fn welcome(&self, marks: Vec<Mark>, backlog: u64) -> Welcome {
        let rules = self.rules();
        let window = if backlog > u64::from(SHARE_FRAMES) {
            rules.window.min(SHARE_FRAMES)
        } else {
            rules.window
        };
        let (back_min_ms, back_max_ms) = self.come_back();
        Welcome {
            version: VERSION_MAX,
            master_id: self.master_id.to_vec(),
            master_version: env!("CARGO_PKG_VERSION").to_owned(),
            marks,
            max_frame_bytes: u32::try_from(rules.frame_bytes_max).unwrap_or(u32::MAX),
            window,
            back_min_ms,
            back_max_ms,
        }
    }

    /// What a slave is told when the master goes away.
    pub(crate) fn goodbye(&self, marks: Vec<Mark>) -> MasterGoodbye {
        let (back_min_ms, back_max_ms) = self.come_back();
        MasterGoodbye {
            marks,
            back_min_ms,
            back_max_ms,
        }
    }

    /// What to tell a slave that was told to come back within `told_ms`, once that has become far too
    /// short: whoever came while the fleet was small would come in a herd with all the others.
    pub(crate) fn come_back_later(&self, told_ms: &mut u32) -> Option<ComeBack> {
        let (back_min_ms, back_max_ms) = self.come_back();
        let known = (*told_ms).max(COME_BACK_SHORTEST_MS);
        if back_max_ms <= known.saturating_mul(2) {
            return None;
        }
        *told_ms = back_max_ms;
        Some(ComeBack {
            back_min_ms,
            back_max_ms,
        })
    }

    /// Counts what became of a report or a gap.
    pub(crate) fn count(&self, taken: Taken) {
        let stats = self.stats();
        match taken {
            Taken::Applied => stats.applied.add(1),
            Taken::Duplicate => stats.duplicates.add(1),
            Taken::Previewed => {}
        }
    }

    /// Tells of a peer that was refused.
    pub(crate) fn log_refused(&self, peer: SocketAddr, refusal: &Refusal) {
        self.stats().refused.add(1);
        if let Some(suppressed) = self.may_tell_of(peer, &self.refusals) {
            tracing::warn!(
                event = "session_refused",
                peer = %peer,
                code = refusal.code.as_str_name(),
                error = %refusal,
                suppressed,
                "a connection was refused"
            );
        }
    }

    /// Tells of a peer that closed in the middle of a frame.
    pub(crate) fn log_cut(&self, peer: SocketAddr) {
        if let Some(suppressed) = self.may_tell_of(peer, &self.cuts) {
            tracing::warn!(
                event = "connection_cut",
                peer = %peer,
                suppressed,
                "the peer closed in the middle of a frame"
            );
        }
    }

    /// Whether a line about what `peer` did may be written: a few a minute for each address. If so,
    /// how many were left out before it.
    fn may_tell_of(&self, peer: SocketAddr, budget: &RefCell<PerPeer>) -> Option<u64> {
        let allowed = budget.borrow_mut().allow(peer.ip(), clock::boot());
        if allowed.is_none() {
            self.stats().suppressed.add(1);
        }
        allowed
    }

    /// The window in which the slaves of this fleet come back, in milliseconds.
    fn come_back(&self) -> (u32, u32) {
        let roll = self.roll();
        let rate = self.rules().reconnect_rate;
        let within = come_back_within(roll.len(), rate, roll.reconnect_window());
        (0, u32::try_from(within.as_millis()).unwrap_or(u32::MAX))
    }

    /// Resolves when a core task has left something half done.
    pub(crate) async fn failed(&self) {
        self.failed.notified().await;
    }
}

/// How long so many slaves may take to come back if `rate` of them come in a second: never longer than
/// the master gives them before it holds their silence against them.
fn come_back_within(slaves: usize, rate: u32, reconnect_window: Duration) -> Duration {
    let shortest = Duration::from_millis(COME_BACK_SHORTEST_MS.into());
    let slaves = u64::try_from(slaves).unwrap_or(u64::MAX);
    let time = Duration::from_millis(slaves.saturating_mul(1000) / u64::from(rate.max(1)));
    time.max(shortest).min(reconnect_window)
}

/// See [`Reactor::roll`].
pub(crate) struct RollGuard<'a> {
    roll: RefMut<'a, Roll>,
    failed: &'a Notify,
    unwinding: bool,
}

impl Deref for RollGuard<'_> {
    type Target = Roll;

    fn deref(&self) -> &Roll {
        &self.roll
    }
}

impl DerefMut for RollGuard<'_> {
    fn deref_mut(&mut self) -> &mut Roll {
        &mut self.roll
    }
}

impl Drop for RollGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.unwinding {
            self.failed.notify_one();
        }
    }
}
