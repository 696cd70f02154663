//! Who gets in: the limits of connections in all and of each address, and listeners for privileged
//! source ports.

mod figures;

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt};
use rollcall_protocol::session::Refusal;
use rollcall_protocol::wire::ErrorCode;

pub(crate) use figures::{Figures, ListenerFigures, Reason};

/// When a peer that found no room is to try again. What is full now may not be for long.
const COME_BACK: Duration = Duration::from_millis(100);
/// The same, where somebody has to do something first.
const COME_BACK_LATER: Duration = Duration::from_secs(5);
/// Ports that only a privileged process of the peer's host can bind (ip(7),
/// net.ipv4.ip_unprivileged_port_start on that host).
const PRIVILEGED_BELOW: u16 = 1024;

/// How many may be in at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Over all listeners.
    pub(crate) connections_max: usize,
    /// Of one address; 0: as many as there may be in all.
    pub(crate) connections_per_address_max: usize,
}

/// Counts connections and keeps them within the limits.
#[derive(Debug)]
pub(crate) struct Admission {
    open: Cell<usize>,
    by_address: RefCell<HashMap<IpAddr, usize>>,
    limits: Cell<Limits>,
}

/// A peer that does not get in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) reason: Reason,
    pub(crate) refusal: Refusal,
}

impl Admission {
    /// Nobody is in yet.
    pub(crate) fn new(limits: Limits) -> Rc<Self> {
        Rc::new(Self {
            open: Cell::new(0),
            by_address: RefCell::new(HashMap::new()),
            limits: Cell::new(limits),
        })
    }

    /// Limits for who comes from now on. Nobody who is in is thrown out.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.limits.set(limits);
    }

    /// Lets `peer` in, whose address is not IPv4-mapped, or says why not. Whoever is in has to
    /// [`Self::leave`] once.
    pub(crate) fn admit(&self, peer: SocketAddr, privileged: bool) -> Result<(), Denied> {
        if privileged && peer.port() >= PRIVILEGED_BELOW {
            return Err(Denied::source_port(peer));
        }
        let limits = self.limits.get();
        let max = limits.connections_max;
        if self.open.get() >= max {
            return Err(Denied::full(max));
        }
        let address = peer.ip();
        let max = limits.connections_per_address_max;
        let mut by_address = self.by_address.borrow_mut();
        let count = by_address.entry(address).or_default();
        if max > 0 && *count >= max {
            return Err(Denied::per_address(address, max));
        }
        *count += 1;
        self.open.set(self.open.get() + 1);
        Ok(())
    }

    /// Counts one that was let in by the process before, whatever the limits are now.
    pub(crate) fn count_in(&self, address: IpAddr) {
        *self.by_address.borrow_mut().entry(address).or_default() += 1;
        self.open.set(self.open.get() + 1);
    }

    /// A connection from `address` has ended that was let in.
    pub(crate) fn leave(&self, address: IpAddr) {
        self.open.set(self.open.get().saturating_sub(1));
        if let Entry::Occupied(mut count) = self.by_address.borrow_mut().entry(address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

impl Denied {
    fn full(max: usize) -> Self {
        let text = format!(
            "all {max} connections are in use; raise [limits] connections_max and LimitNOFILE"
        );
        Self {
            reason: Reason::Full,
            refusal: Refusal::for_now(ErrorCode::Busy, text, COME_BACK),
        }
    }

    fn per_address(address: IpAddr, max: usize) -> Self {
        let text = format!(
            "{address} has {max} connections, as many as [limits] connections_per_address_max allows"
        );
        Self {
            reason: Reason::PerAddress,
            refusal: Refusal::for_now(ErrorCode::Busy, text, COME_BACK_LATER),
        }
    }

    fn source_port(peer: SocketAddr) -> Self {
        let text = format!(
            "this listener is for source ports below {PRIVILEGED_BELOW} and you come from {}; set [connection] privileged_source_port = true in the slave's configuration",
            peer.port()
        );
        Self {
            reason: Reason::SourcePort,
            refusal: Refusal::for_good(ErrorCode::SourcePort, text),
        }
    }

    /// No descriptor is left to serve a peer.
    pub(crate) fn no_descriptor() -> Self {
        let text = "the master has no descriptor left; raise its LimitNOFILE";
        Self {
            reason: Reason::NoDescriptor,
            refusal: Refusal::for_now(ErrorCode::Busy, text, COME_BACK_LATER),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(connections_max: usize, connections_per_address_max: usize) -> Rc<Admission> {
        Admission::new(Limits {
            connections_max,
            connections_per_address_max,
        })
    }

    fn reason(result: Result<(), Denied>) -> Option<Reason> {
        result.err().map(|denied| denied.reason)
    }

    fn peer(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn places_are_limited_for_each_address_and_in_all() {
        let admission = admission(3, 2);
        let (one, other) = (peer("192.0.2.1:5000"), peer("[2001:db8::1]:5000"));
        assert_eq!(admission.admit(one, false), Ok(()));
        assert_eq!(admission.admit(one, false), Ok(()));
        let third = admission.admit(one, false);
        assert_eq!(reason(third), Some(Reason::PerAddress));
        assert_eq!(admission.admit(other, false), Ok(()));
        assert_eq!(reason(admission.admit(other, false)), Some(Reason::Full));
        admission.leave(one.ip());
        assert_eq!(admission.admit(one, false), Ok(()));
        assert_eq!(admission.open.get(), 3);
    }

    #[test]
    fn nothing_is_kept_of_who_has_left() {
        let admission = admission(10, 0);
        for port in 1..=5000 {
            let peer = SocketAddr::from(([192, 0, 2, 1], port));
            assert_eq!(admission.admit(peer, false), Ok(()));
            assert_eq!(admission.by_address.borrow().len(), 1);
            admission.leave(peer.ip());
        }
        assert!(admission.by_address.borrow().is_empty());
        assert_eq!(admission.open.get(), 0);
    }

    #[test]
    fn refusing_counts_nobody() {
        let admission = admission(10, 1);
        let one = peer("192.0.2.1:1");
        assert_eq!(admission.admit(one, false), Ok(()));
        for _ in 0..5 {
            assert!(admission.admit(one, false).is_err());
        }
        admission.leave(one.ip());
        assert!(admission.by_address.borrow().is_empty());
        assert_eq!(admission.open.get(), 0);
    }

    #[test]
    fn a_privileged_listener_takes_ports_below_1024_only() {
        let admission = admission(10, 0);
        assert!(admission.admit(peer("192.0.2.1:1023"), true).is_ok());
        let denied = admission.admit(peer("192.0.2.1:1024"), true).unwrap_err();
        assert_eq!(denied.reason, Reason::SourcePort);
        assert_eq!(denied.refusal.retry_after, None);
        assert!(denied.refusal.text.contains("from 1024"), "{denied:?}");
    }

    #[test]
    fn new_limits_throw_nobody_out() {
        let admission = admission(10, 0);
        let one = peer("192.0.2.1:9");
        for _ in 0..3 {
            assert_eq!(admission.admit(one, false), Ok(()));
        }
        admission.set_limits(Limits {
            connections_max: 10,
            connections_per_address_max: 2,
        });
        for left in [2, 1] {
            let late = admission.admit(one, false);
            assert_eq!(reason(late), Some(Reason::PerAddress), "{left}");
            admission.leave(one.ip());
        }
        assert_eq!(admission.admit(one, false), Ok(()));
    }
}
