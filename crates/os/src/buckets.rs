//! A limit on how often each address may be served, in memory that does not grow.
//!
//! A service over UDP can't know who is at the other end, and an attacker writes any address into its
//! datagrams. So nothing is kept of an address but a time in a table of fixed size: two token buckets,
//! found by two hashes that nobody outside can foretell. Addresses that share a bucket share its
//! tokens, and one is refused only if both of its buckets are empty: one that is flooded from takes
//! nothing from another, and neither does a flood from many, until it fills the table.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use rollcall_protocol::Moment;

use crate::rate_limit::canonical;

/// Buckets of one row; a power of two.
const ROW: usize = 1 << 15;

/// Token buckets for all addresses. An IPv6 peer is its /64, since a host has the whole of it to
/// change addresses in.
#[derive(Debug)]
pub struct Buckets {
    /// Time in which one token comes, in nanoseconds.
    token_ns: u64,
    /// A bucket is empty when it is full again no sooner than after this.
    full_ns: u64,
    /// When each bucket is full again, in nanoseconds on the caller's clock: a bucket that is full
    /// lies in the past (the generic cell rate algorithm, ITU-T I.371).
    rows: [Box<[u64]>; 2],
    hashers: [RandomState; 2],
}

impl Buckets {
    /// Each address gets `rate` tokens a second and saves up to `burst` of them; at least one each.
    pub fn new(rate: u32, burst: u32) -> Self {
        let row = || vec![0; ROW].into_boxed_slice();
        let token_ns = 1_000_000_000 / u64::from(rate.max(1));
        Self {
            token_ns,
            full_ns: token_ns * u64::from(burst.max(1)),
            rows: [row(), row()],
            hashers: [RandomState::new(), RandomState::new()],
        }
    }

    /// Whether `address` has a token left at `now`; if so, it is taken.
    pub fn take(&mut self, address: IpAddr, now: Moment) -> bool {
        let address = canonical(address);
        let now_ns = u64::try_from(now.since_origin().as_nanos()).unwrap_or(u64::MAX);
        let [first, second] = &mut self.rows;
        let [one, other] = [0, 1].map(|row: usize| place(&self.hashers[row], address));
        let buckets = [&mut first[one], &mut second[other]];
        let after = buckets.map(|bucket| {
            *bucket = now_ns.max(*bucket);
            bucket
        });
        let has_token = |full_at: u64| full_at - now_ns + self.token_ns <= self.full_ns;
        if !after.iter().any(|full_at| has_token(**full_at)) {
            return false;
        }
        for full_at in after {
            // One that is empty owes nothing to who was let in by the other one.
            if has_token(*full_at) {
                *full_at += self.token_ns;
            }
        }
        true
    }
}

fn place(hasher: &RandomState, address: IpAddr) -> usize {
    // Truncated on purpose: a row has far fewer buckets than there are hashes.
    usize::try_from(hasher.hash_one(address) % ROW as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    fn at(milliseconds: u64) -> Moment {
        Moment::new(Duration::from_millis(milliseconds))
    }

    fn peer(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number))
    }

    fn served(buckets: &mut Buckets, address: IpAddr, now: Moment, tries: u32) -> usize {
        (0..tries).filter(|_| buckets.take(address, now)).count()
    }

    #[test]
    fn an_address_has_its_burst_and_then_its_rate() {
        let mut buckets = Buckets::new(10, 5);
        assert_eq!(served(&mut buckets, peer(1), at(1000), 100), 5);
        assert_eq!(served(&mut buckets, peer(1), at(1099), 100), 0);
        assert_eq!(served(&mut buckets, peer(1), at(1100), 100), 1);
        assert_eq!(served(&mut buckets, peer(1), at(1400), 100), 3);
        // No more than the burst is saved up.
        assert_eq!(served(&mut buckets, peer(1), at(60_000), 100), 5);
    }

    #[test]
    fn a_flood_takes_nothing_from_another_address() {
        let mut buckets = Buckets::new(10, 5);
        let flood = (0..10_000).filter(|_| buckets.take(peer(1), at(0))).count();
        assert_eq!(flood, 5);
        // From forged addresses, fewer than there are buckets: next to nobody is hit in both rows.
        for number in 0..5_000 {
            for _ in 0..10 {
                buckets.take(peer(1_000_000 + number), at(0));
            }
        }
        let undisturbed = (0..1000)
            .filter(|number| served(&mut buckets, peer(2_000_000 + number), at(0), 5) == 5)
            .count();
        assert!(undisturbed > 900, "{undisturbed} of 1000");
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_a_mapped_one_is_ipv4() {
        let mut buckets = Buckets::new(1, 1);
        for (address, allowed) in [
            ("2001:db8::1", true),
            ("2001:db8::ffff:2", false),
            ("2001:db8:0:1::1", true),
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", false),
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(buckets.take(address, at(0)), allowed, "{address}");
        }
    }

    #[test]
    fn limits_are_never_none_at_all() {
        let mut buckets = Buckets::new(0, 0);
        assert!(buckets.take(peer(1), at(0)));
        assert!(!buckets.take(peer(1), at(999)));
        assert!(buckets.take(peer(1), at(1000)));
    }
}
