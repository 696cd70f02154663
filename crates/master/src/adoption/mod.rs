//! Sessions that outlive the process: what is parked with the service manager, and how the next
//! process goes on with it. Restart, upgrade and crash take the same way.
//!
//! ```text
//!   Hello ── park: the connection and a record of the session ──> commit, consume, Welcome
//!   reports ── peek, commit, consume, ack ──                      the roll has the rest
//!   death, at any point
//!   successor ── roll from the store ──> each parked connection:
//!       its first bytes are a Hello that was not consumed      a new session
//!       its mark says that a frame may be torn                 dropped: the slave connects anew
//!       the roll knows the slave and its streams               resumed: the marks are acked again
//! ```
//! Whatever the successor finds unconsumed is taken in as ever: what was committed before is a
//! duplicate by the ledger, and acked. Without a service manager that keeps descriptors the process
//! keeps them itself, and passes them on to the program that takes it over (`upgrade`).

mod listeners;
mod record;
mod sessions;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use prost::Message;
use rollcall_os::clock;
use rollcall_os::parking::{self, Lot, ParkError, Parked, Place};
use rollcall_os::systemd::store::Store;
use rollcall_protocol::Moment;

use listeners::Listeners;
pub(crate) use listeners::Side;
pub(crate) use record::ParkedSession;
pub(crate) use sessions::adopt;

/// Connections that could not be parked are told at most this often; where only an upgrade in place
/// would miss them, once.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Descriptors of the store that are not for shards: listeners.
const DESCRIPTORS_RESERVED: usize = 32;

/// What is held for the next process.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    /// Who outlives this process.
    store: Option<Store>,
    lot: RefCell<Option<Lot<Option<Store>>>>,
    listeners: Listeners,
    handing_over: Cell<bool>,
    told_at: Cell<Option<Moment>>,
    suppressed: Cell<u64>,
}

impl Parking {
    /// With the store of this unit, if it has one; `files` may be open.
    pub(crate) fn new(store: Option<Store>, files: u64) -> Self {
        let descriptors_max = match store {
            Some(store) => store.descriptors_max().saturating_sub(DESCRIPTORS_RESERVED),
            None => usize::try_from(parking::shard_descriptors(files)).unwrap_or(usize::MAX),
        };
        Self {
            store,
            lot: RefCell::new(Some(Lot::new(store, descriptors_max))),
            listeners: Listeners::new(store),
            ..Self::default()
        }
    }

    /// What lies in the shards whose `ends` this process was started with. It stays parked.
    fn take_over(&self, ends: Vec<(String, OwnedFd)>) -> Vec<Parked> {
        let mut lot = self.lot.borrow_mut();
        let Some(lot) = lot.as_mut() else {
            return Vec::new();
        };
        lot.adopt(ends, |shard, error| {
            tracing::error!(event = "shard_lost", shard, error = %error, "parked connections can't be read, and their slaves connect anew; if it says open files, raise LimitNOFILE");
        })
    }

    /// Parks the connection of `session`. `None` if it can't be, which was told.
    pub(crate) fn park(&self, socket: BorrowedFd<'_>, session: &ParkedSession) -> Option<Place> {
        let parked = match self.lot.borrow_mut().as_mut() {
            Some(lot) => lot.park(socket, &session.encode_to_vec()),
            None => return None,
        };
        parked.map_err(|error| self.tell(&error)).ok()
    }

    /// The connection at `place` has ended, and was shut down.
    pub(crate) fn leave(&self, place: &Place) {
        if let Some(lot) = self.lot.borrow_mut().as_mut() {
            lot.leave(place);
        }
    }

    /// Takes the connection at `place` out: it ends with its last descriptor.
    pub(crate) fn evict(&self, place: &Place) {
        if let Some(lot) = self.lot.borrow_mut().as_mut() {
            lot.evict(place);
        }
    }

    /// Connections that are parked.
    pub(crate) fn len(&self) -> usize {
        self.lot.borrow().as_ref().map_or(0, Lot::len)
    }

    /// Shards that are open.
    pub(crate) fn shards(&self) -> usize {
        self.lot.borrow().as_ref().map_or(0, Lot::shards)
    }

    /// The process is to end because of `signal`. Returns whether its successor goes on with what is
    /// parked: after SIGTERM, which a restart sends, if there is anybody who keeps it. Whoever stops it
    /// for good, and knows, sends SIGINT.
    pub(crate) fn hand_over(&self, signal: &str) -> bool {
        self.handing_over
            .set(self.store.is_some() && signal == "SIGTERM");
        self.is_handing_over()
    }

    /// Another program is to take the process over, and to go on with what is parked.
    pub(crate) fn hand_over_to_oneself(&self) -> bool {
        self.handing_over.set(true);
        true
    }

    /// Whether parked connections are to be left as they are.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.handing_over.get()
    }

    /// Holds a listener that this process has bound.
    pub(crate) fn keep_listener(&self, side: Side, address: SocketAddr, socket: &TcpListener) {
        self.listeners.keep(side, address, socket);
    }

    /// Holds a listener that was there before, under `name`.
    pub(crate) fn note_listener(&self, name: String, address: SocketAddr, socket: &TcpListener) {
        self.listeners.note(name, address, socket);
    }

    /// The listener is about to be closed, and nobody need hold it.
    pub(crate) fn forget_listener(&self, address: SocketAddr) {
        self.listeners.forget(address);
    }

    /// The service manager need not hold the listener under `name`.
    pub(crate) fn forget(&self, name: &str) {
        self.listeners.forget_name(name);
    }

    /// No listener is left for a successor.
    pub(crate) fn give_up_listeners(&self) {
        self.listeners.give_up();
    }

    /// Nothing is left for a successor: the daemon stops for good.
    pub(crate) fn dissolve(&self) {
        self.listeners.give_up();
        if let Some(mut lot) = self.lot.take() {
            lot.dissolve();
        }
    }

    /// All that is held, for the program that takes this process over. Nothing is left here.
    pub(crate) fn pass_on(&self) -> Vec<(String, OwnedFd)> {
        let ends = self.lot.take().map(Lot::into_ends).unwrap_or_default();
        ends.into_iter().chain(self.listeners.pass_on()).collect()
    }

    fn tell(&self, error: &ParkError) {
        let now = clock::boot();
        let is_due = |told: Moment| self.store.is_some() && now.saturating_since(told) > TOLD_EVERY;
        if !self.told_at.get().is_none_or(is_due) {
            return self.suppressed.set(self.suppressed.get() + 1);
        }
        self.told_at.set(Some(now));
        tracing::warn!(
            event = "connection_not_parked",
            error = %error,
            parked = self.len(),
            suppressed = self.suppressed.take(),
            "a connection would not outlive a restart or an upgrade of the master; it is served all the same"
        );
    }
}
