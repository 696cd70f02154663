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
//! duplicate by the ledger, and acked. Without a service manager that keeps descriptors nothing here
//! has an effect.

mod record;
mod sessions;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use prost::Message;
use rollcall_os::clock;
use rollcall_os::parking::{Keeper, Lot, ParkError, Parked, Place};
use rollcall_os::systemd::store::Store;
use rollcall_protocol::Moment;

pub(crate) use record::ParkedSession;
pub(crate) use sessions::adopt;

/// Connections that could not be parked are told at most this often.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Descriptors of the store that are not for shards: listeners.
const DESCRIPTORS_RESERVED: usize = 32;
/// Begins the name under which the store holds a listener.
const LISTENER_BEGIN: char = 'l';

/// What the service manager holds for the next process.
#[derive(Debug, Default)]
pub(crate) struct Parking {
    store: Option<Store>,
    lot: RefCell<Option<Lot<Store>>>,
    /// Names of the listeners in the store.
    listeners: RefCell<BTreeSet<String>>,
    handing_over: Cell<bool>,
    told_at: Cell<Option<Moment>>,
    suppressed: Cell<u64>,
}

impl Parking {
    /// With the store of this unit, if it has one.
    pub(crate) fn new(store: Option<Store>) -> Self {
        let lot = store.map(|store| {
            let shards = store.descriptors_max().saturating_sub(DESCRIPTORS_RESERVED);
            Lot::new(store, shards)
        });
        Self {
            store,
            lot: RefCell::new(lot),
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

    /// The process is to end because of `signal`. Returns whether its successor goes on with what is
    /// parked: after SIGTERM, which a restart sends, if there is anybody who keeps it. Whoever stops it
    /// for good, and knows, sends SIGINT.
    pub(crate) fn hand_over(&self, signal: &str) -> bool {
        let keeps = self.lot.borrow().is_some();
        self.handing_over.set(keeps && signal == "SIGTERM");
        self.handing_over.get()
    }

    /// Whether parked connections are to be left as they are.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.handing_over.get()
    }

    /// Has the service manager hold a listener that this process has bound.
    pub(crate) fn keep_listener(&self, address: SocketAddr, socket: &TcpListener) {
        // The next process would not know a port that the kernel has chosen.
        let Some(store) = self.store.filter(|_| address.port() != 0) else {
            return;
        };
        let name = listener_name(address);
        match store.keep(&name, &[socket.as_fd()]) {
            Ok(()) => {
                self.listeners.borrow_mut().insert(name);
            }
            Err(error) => {
                tracing::warn!(event = "listener_not_kept", address = %address, error = %error, "the service manager does not take the listener: a restart refuses connections for a moment");
            }
        }
    }

    /// A listener under `name` is there from before.
    pub(crate) fn note_listener(&self, name: &str) {
        if name.starts_with(LISTENER_BEGIN) {
            self.listeners.borrow_mut().insert(name.to_owned());
        }
    }

    /// The service manager need not hold the listener any more.
    pub(crate) fn forget_listener(&self, address: SocketAddr) {
        self.forget(&listener_name(address));
    }

    /// Nothing is left for a successor: the daemon stops for good.
    pub(crate) fn dissolve(&self) {
        let listeners: Vec<_> = self.listeners.borrow().iter().cloned().collect();
        for name in listeners {
            self.forget(&name);
        }
        if let Some(mut lot) = self.lot.take() {
            lot.dissolve();
        }
    }

    /// The service manager need not hold the listener under `name`, if it does.
    pub(crate) fn forget(&self, name: &str) {
        if let Some(store) = self.store
            && self.listeners.borrow_mut().remove(name)
        {
            // If it can't be told, the manager is gone, and what it held with it.
            let _ = store.forget(name);
        }
    }

    fn tell(&self, error: &ParkError) {
        let now = clock::boot();
        let is_due = |told: Moment| now.saturating_since(told) > TOLD_EVERY;
        if !self.told_at.get().is_none_or(is_due) {
            return self.suppressed.set(self.suppressed.get() + 1);
        }
        self.told_at.set(Some(now));
        tracing::warn!(
            event = "connection_not_parked",
            error = %error,
            parked = self.len(),
            suppressed = self.suppressed.take(),
            "a connection would not outlive a restart of the master; it is served all the same"
        );
    }
}

/// Short, and without the colon, which separates names.
fn listener_name(address: SocketAddr) -> String {
    let address = address.to_string().replace(':', "_");
    format!("{LISTENER_BEGIN}{address}")
}
