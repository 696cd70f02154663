//! What an operator needs to know when there is no local port left.

use std::fs;
use std::net::SocketAddr;

/// Explains EADDRNOTAVAIL for `destination` with the figures that are cheap to have.
pub(super) fn log_exhaustion(destination: SocketAddr) {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let sockets = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let range: Vec<&str> = range.split_whitespace().collect();
    tracing::error!(
        event = "ports_exhausted",
        peer = %destination,
        errno = 99,
        range = range.join("-"),
        in_use = tcp_count(&sockets, "inuse"),
        time_wait = tcp_count(&sockets, "tw"),
        "every local port for this destination is taken (EADDRNOTAVAIL); the reports stay in the spool and are sent when one is free: `ss -tan` shows who has them"
    );
}

/// The figure `name` of the line "TCP: inuse 5 orphan 0 tw 3 …" (proc(5)).
fn tcp_count(sockstat: &str, name: &str) -> Option<u64> {
    let line = sockstat
        .lines()
        .find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_whitespace();
    words.find(|word| *word == name)?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::tcp_count;

    #[test]
    fn the_figures_are_found_by_name() {
        let text =
            "sockets: used 9\nTCP: inuse 27 orphan 0 tw 14200 alloc 30 mem 4\nUDP: inuse 1\n";
        assert_eq!(tcp_count(text, "tw"), Some(14_200));
        assert_eq!(tcp_count(text, "inuse"), Some(27));
        assert_eq!(tcp_count(text, "none"), None);
        assert_eq!(tcp_count("", "tw"), None);
    }
}
