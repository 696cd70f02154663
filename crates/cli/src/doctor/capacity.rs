//! How many connections a second can go to one destination, for ever.

use serde::Serialize;

use super::settings::Settings;
use super::traffic::TIME_WAIT_MS;

/// Connections per second to one address and port from one address of this host, if this host
/// closes first. If the other side does, its TIME_WAIT takes no port here, and there is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Capacity {
    /// To other hosts.
    pub(super) elsewhere_per_s: u64,
    /// To this host itself.
    pub(super) loopback_per_s: u64,
}

impl Capacity {
    /// That of a host with these settings.
    pub(super) fn of(settings: &Settings) -> Self {
        let ports = u64::from(settings.ports.usable());
        let per_s = |is_loopback| {
            let each_ms = match settings.reuses(is_loopback) {
                true => settings.reuse_delay_ms().clamp(1, TIME_WAIT_MS),
                false => TIME_WAIT_MS,
            };
            ports * 1000 / u64::from(each_ms)
        };
        Self {
            elsewhere_per_s: per_s(false),
            loopback_per_s: per_s(true),
        }
    }

    /// For people.
    pub(super) fn told(self, settings: &Settings) -> String {
        let usable = settings.ports.usable();
        let to_itself = match self.loopback_per_s == self.elsewhere_per_s {
            true => String::new(),
            false => format!(
                "; {} connections/s to itself, because of tcp_tw_reuse",
                self.loopback_per_s
            ),
        };
        format!(
            "{} connections/s ({usable} ports{to_itself})",
            self.elsewhere_per_s
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::{Fixture, HOST};

    #[test]
    fn reuse_multiplies_it_where_it_is_on() {
        let with = |reuse: &str, delay: &str| {
            let settings = Fixture::new(HOST)
                .with("proc/sys/net/ipv4/tcp_tw_reuse", reuse)
                .with("proc/sys/net/ipv4/tcp_tw_reuse_delay", delay)
                .with("proc/sys/net/ipv4/ip_local_port_range", "10000 15999")
                .settings();
            let capacity = Capacity::of(&settings);
            (capacity.elsewhere_per_s, capacity.loopback_per_s)
        };
        assert_eq!(with("0", "1000"), (100, 100));
        assert_eq!(with("1", "1000"), (6000, 6000));
        assert_eq!(with("2", "1000"), (100, 6000));
        assert_eq!(with("1", "100"), (60_000, 60_000));
    }
}
