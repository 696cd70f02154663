//! A limit on the log lines that one peer can cause.
//!
//! Whoever can reach a port can make the daemon log something. A peer gets a few lines a window;
//! the next line that is let through says how many were held back. Memory is bounded: peers beyond
//! the limit share one budget.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use rollcall_protocol::Moment;

/// The limiter. An IPv6 peer is its /64, since a host has the whole of it to change addresses in.
#[derive(Debug)]
pub struct PerPeer {
    lines_per_window: u32,
    window: Duration,
    peers_max: usize,
    peers: HashMap<IpAddr, Budget>,
    /// For all peers that found no place in `peers`.
    shared: Budget,
    swept_at: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Budget {
    window_began: Moment,
    lines: u32,
    suppressed: u64,
}

impl Budget {
    const fn new(now: Moment) -> Self {
        Self {
            window_began: now,
            lines: 0,
            suppressed: 0,
        }
    }

    fn allow(&mut self, now: Moment, window: Duration, lines_max: u32) -> Option<u64> {
        if now.saturating_since(self.window_began) >= window {
            self.window_began = now;
            self.lines = 0;
        }
        if self.lines >= lines_max {
            self.suppressed = self.suppressed.saturating_add(1);
            return None;
        }
        self.lines = self.lines.saturating_add(1);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl PerPeer {
    /// Lets `lines_per_window` lines (at least one) of each peer through in each `window`, and
    /// remembers at most `peers_max` peers at a time.
    pub fn new(lines_per_window: u32, window: Duration, peers_max: usize) -> Self {
        Self {
            lines_per_window: lines_per_window.max(1),
            window,
            peers_max,
            peers: HashMap::new(),
            shared: Budget::new(Moment::ZERO),
            swept_at: Moment::ZERO,
        }
    }

    /// Whether a line about this peer may be written now. `Some` carries how many lines of its
    /// budget were held back since the last one that was let through.
    pub fn allow(&mut self, key: IpAddr, now: Moment) -> Option<u64> {
        let key = canonical(key);
        if !self.peers.contains_key(&key) && self.peers.len() >= self.peers_max {
            self.sweep(now);
        }
        let has_room = self.peers.len() < self.peers_max;
        let budget = match self.peers.get_mut(&key) {
            Some(budget) => budget,
            None if has_room => self.peers.entry(key).or_insert(Budget::new(now)),
            None => &mut self.shared,
        };
        budget.allow(now, self.window, self.lines_per_window)
    }

    /// Forgets the peers whose window has ended. At most once a window, so that a flood from ever
    /// new addresses does not buy a walk over all peers with each line.
    fn sweep(&mut self, now: Moment) {
        if now.saturating_since(self.swept_at) < self.window {
            return;
        }
        self.swept_at = now;
        let (window, shared) = (self.window, &mut self.shared);
        self.peers.retain(|_, budget| {
            let keep = now.saturating_since(budget.window_began) < window;
            if !keep {
                // What was held back must still be told by somebody's line.
                shared.suppressed = shared.suppressed.saturating_add(budget.suppressed);
            }
            keep
        });
    }
}

/// What counts as one peer.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from_bits(network))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use rollcall_protocol::Moment;

    use super::PerPeer;

    const WINDOW: Duration = Duration::from_secs(10);

    fn at(milliseconds: u64) -> Moment {
        Moment::new(Duration::from_millis(milliseconds))
    }

    fn peer(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number))
    }

    #[test]
    fn the_next_line_tells_what_was_suppressed() {
        let mut limit = PerPeer::new(2, WINDOW, 8);
        assert_eq!(limit.allow(peer(1), at(0)), Some(0));
        assert_eq!(limit.allow(peer(1), at(1)), Some(0));
        for millisecond in 2..1002 {
            assert_eq!(limit.allow(peer(1), at(millisecond)), None);
        }
        assert_eq!(
            limit.allow(peer(2), at(5)),
            Some(0),
            "others are not concerned"
        );
        assert_eq!(limit.allow(peer(1), at(9_999)), None);
        assert_eq!(limit.allow(peer(1), at(10_000)), Some(1001));
        assert_eq!(limit.allow(peer(1), at(10_001)), Some(0));
    }

    #[test]
    fn a_flood_from_new_addresses_is_bounded_in_memory_and_lines() {
        let mut limit = PerPeer::new(1, WINDOW, 4);
        let allowed = (0..100_000)
            .filter(|number| limit.allow(peer(*number), at(20_000)).is_some())
            .count();
        assert_eq!(allowed, 5, "four peers and the shared budget");
        assert_eq!(limit.peers.len(), 4);
    }

    #[test]
    fn forgotten_peers_make_room_and_their_counts_are_told() {
        let mut limit = PerPeer::new(1, WINDOW, 2);
        for _ in 0..3 {
            limit.allow(peer(1), at(0));
            limit.allow(peer(2), at(15_000));
        }
        assert_eq!(
            limit.allow(peer(3), at(16_000)),
            Some(0),
            "peer 1 made room"
        );
        assert_eq!(
            limit.allow(peer(4), at(16_000)),
            Some(2),
            "peer 1's two lines"
        );
        assert_eq!(
            limit.allow(peer(2), at(16_000)),
            None,
            "peer 2 is still known"
        );
    }

    #[test]
    fn an_ipv6_network_is_one_peer_and_a_mapped_address_is_ipv4() {
        let mut limit = PerPeer::new(1, WINDOW, 8);
        for (address, allowed) in [
            ("2001:db8::1", true),
            ("2001:db8::ffff:2", false),
            ("2001:db8:0:1::1", true),
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(limit.allow(address, at(0)).is_some(), allowed, "{address}");
        }
    }
}
