//! Which addresses the kernel would not let two sockets listen on at a time.

use std::net::SocketAddr;

/// Whether `one` and `other` can't both be listened on: the same port, and one takes in what is for
/// the other. `ipv6_only` is that of the sockets.
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr, ipv6_only: bool) -> bool {
    // Port 0 is a free one, another one each time.
    one.port() == other.port()
        && one.port() != 0
        && (takes_in(one, other, ipv6_only) || takes_in(other, one, ipv6_only))
}

fn takes_in(wide: SocketAddr, narrow: SocketAddr, ipv6_only: bool) -> bool {
    if wide.ip() == narrow.ip() {
        // The same link-local address on two interfaces is two addresses.
        return match (wide, narrow) {
            (SocketAddr::V6(one), SocketAddr::V6(other)) => one.scope_id() == other.scope_id(),
            _ => true,
        };
    }
    wide.ip().is_unspecified()
        && (wide.is_ipv4() == narrow.is_ipv4() || wide.is_ipv6() && !ipv6_only)
}

#[cfg(test)]
mod tests {
    use rollcall_os::socket::{ListenOptions, listen_with};

    use super::*;

    const ADDRESSES: [&str; 6] = [
        "0.0.0.0",
        "127.0.0.1",
        "127.0.0.2",
        "[::]",
        "[::1]",
        "0.0.0.0",
    ];

    /// The kernel says the same.
    #[test]
    fn what_overlaps_can_not_be_listened_on_twice() {
        let Ok(probe) = listen_with("[::1]:0".parse().unwrap(), &ListenOptions::new(1)) else {
            eprintln!("SKIPPED: this host has no IPv6");
            return;
        };
        drop(probe);
        for ipv6_only in [true, false] {
            let options = ListenOptions {
                ipv6_only,
                ..ListenOptions::new(1)
            };
            for (at, first) in ADDRESSES.iter().enumerate() {
                for second in &ADDRESSES[at + 1..] {
                    let held =
                        listen_with(format!("{first}:0").parse().unwrap(), &options).unwrap();
                    let first = held.local_addr().unwrap();
                    let second = format!("{second}:{}", first.port()).parse().unwrap();
                    let both = listen_with(second, &options);
                    assert_eq!(
                        both.is_err(),
                        overlap(first, second, ipv6_only),
                        "{first} and {second}, IPv6 only: {ipv6_only}"
                    );
                }
            }
        }
    }
}
