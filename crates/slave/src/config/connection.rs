//! `[connection]` and `[tls]`: which masters, and how they are talked to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time;

use garde::Validate;
use rollcall_os::config::within;
use rollcall_os::outgoing::ScopedAddress;
use rollcall_os::socket::Liveness;
use rollcall_os::units::Duration;
use rollcall_protocol::backoff::BackoffLimits;
use rollcall_protocol::datagram::ResendLimits;
use rollcall_protocol::session::slave::SlaveTimeouts;
use rollcall_protocol::wire;
use serde::{Deserialize, Serialize};

use super::DAY;
use super::limit::{DurationLimit, off_or_within};
use super::probe::Fault;
use super::source;
use crate::link::{self, LinkConfig, scoped};

const HALF_DAY: Duration = Duration::from_secs(43_200);
const HOUR: Duration = Duration::from_secs(3600);
const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// How the masters are authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TlsMode {
    LoopbackOnly,
    Off,
}

/// `[connection] mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Pooled,
    PerMessage,
    Datagram,
}

/// `[connection] close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Close {
    MasterFirst,
    Abort,
}

/// `[connection] on_exhaustion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum OnExhaustion {
    Pool,
    Wait,
}

/// `[connection]` as it stands in the file.
#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConnection {
    #[garde(length(min = 1))]
    masters: Vec<String>,
    #[garde(skip)]
    mode: Mode,
    #[garde(skip)]
    close: Close,
    #[garde(skip)]
    on_exhaustion: OnExhaustion,
    #[garde(skip)]
    source_addresses: Vec<String>,
    #[garde(skip)]
    source_ports: String,
    #[garde(skip)]
    privileged_source_port: bool,
    #[garde(skip)]
    interface: String,
    #[garde(custom(off_or_within(Duration::from_secs(1), DAY)))]
    idle_timeout: DurationLimit,
    #[garde(custom(off_or_within(Duration::from_secs(1), MONTH)))]
    lifetime_max: DurationLimit,
    #[garde(custom(within(Duration::from_secs(1), DAY)))]
    return_after: Duration,
    #[garde(custom(within(Duration::from_millis(100), Duration::from_secs(300))))]
    connect_timeout: Duration,
    #[garde(custom(within(Duration::from_millis(100), Duration::from_secs(300))))]
    welcome_timeout: Duration,
    #[garde(custom(within(Duration::from_secs(1), HOUR)))]
    ack_timeout: Duration,
    #[garde(custom(within(Duration::from_millis(10), Duration::from_secs(60))))]
    resend_first: Duration,
    #[garde(custom(within(Duration::from_millis(10), Duration::from_secs(60))))]
    resend_longest: Duration,
    #[garde(custom(within(Duration::from_millis(1), HOUR)))]
    retry_first: Duration,
    #[garde(custom(within(Duration::from_secs(1), DAY)))]
    retry_longest: Duration,
    #[garde(custom(within(Duration::from_secs(1), DAY)))]
    retry_reset_after: Duration,
    #[garde(custom(within(Duration::from_secs(1), HALF_DAY)))]
    keepalive_idle: Duration,
    #[garde(custom(within(Duration::from_secs(1), HOUR)))]
    keepalive_interval: Duration,
    #[garde(custom(within(Duration::from_secs(1), HALF_DAY)))]
    user_timeout: Duration,
}

impl RawConnection {
    fn source(&self) -> source::Raw<'_> {
        source::Raw {
            addresses: &self.source_addresses,
            ports: &self.source_ports,
            privileged: self.privileged_source_port,
            interface: &self.interface,
        }
    }

    /// What is wrong beyond single values.
    pub(super) fn faults(&self, tls: TlsMode) -> Vec<Fault> {
        let literals = self.masters.iter().map(|master| literal(master));
        let literals: Vec<_> = literals.collect();
        let mut faults = self.source().faults(&literals);
        for (at, master) in self.masters.iter().enumerate() {
            let key = format!("connection.masters[{at}]");
            let Some(host) = host_of(master) else {
                faults.push((
                    key,
                    format!("{master:?} is no address: expected \"host:port\", such as \"master.example:7412\" or \"[::1]:7412\""),
                ));
                continue;
            };
            if tls == TlsMode::LoopbackOnly && !is_loopback(host) {
                faults.push((
                    key,
                    format!("{master} is not a loopback address; set [tls] mode = \"off\" to report over the network without authentication"),
                ));
            } else if self.masters[..at].contains(master) {
                faults.push((key, format!("{master} is listed twice")));
            } else if literal(master).is_some_and(|ip| ip.needs_scope())
                && self.interface.is_empty()
            {
                faults.push((
                    key,
                    format!("{master} is a link-local address: name its interface, as in \"[fe80::1%eth0]:7412\""),
                ));
            }
        }
        if self.resend_longest < self.resend_first {
            faults.push((
                "connection.resend_longest".to_owned(),
                format!(
                    "must be at least resend_first, which is {}",
                    self.resend_first
                ),
            ));
        }
        if self.retry_longest < self.retry_first {
            faults.push((
                "connection.retry_longest".to_owned(),
                format!(
                    "must be at least retry_first, which is {}",
                    self.retry_first
                ),
            ));
        }
        faults
    }

    /// The link's configuration, together with what the slave says of itself.
    pub(super) fn resolve(
        &self,
        name: String,
        labels: BTreeMap<String, String>,
        interval: time::Duration,
        drain: time::Duration,
    ) -> LinkConfig {
        LinkConfig {
            name,
            labels,
            interval,
            masters: self.masters.clone(),
            mode: match self.mode {
                Mode::Pooled => wire::Mode::Pooled,
                Mode::PerMessage => wire::Mode::PerMessage,
                Mode::Datagram => wire::Mode::Datagram,
            },
            close: match self.close {
                Close::MasterFirst => link::Close::MasterFirst,
                Close::Abort => link::Close::Abort,
            },
            on_exhaustion: match self.on_exhaustion {
                OnExhaustion::Pool => link::OnExhaustion::Pool,
                OnExhaustion::Wait => link::OnExhaustion::Wait,
            },
            outgoing: self.source().resolve(),
            idle_timeout: self.idle_timeout.0.map(Duration::get),
            lifetime_max: self.lifetime_max.0.map(Duration::get),
            connect_timeout: self.connect_timeout.get(),
            timeouts: SlaveTimeouts {
                welcome: self.welcome_timeout.get(),
                ack: self.ack_timeout.get(),
            },
            resend: ResendLimits {
                first: self.resend_first.get(),
                longest: self.resend_longest.get(),
            },
            backoff: BackoffLimits {
                base: self.retry_first.get(),
                cap: self.retry_longest.get(),
                reset_after: self.retry_reset_after.get(),
            },
            return_after: self.return_after.get(),
            liveness: Liveness {
                keepalive_idle: self.keepalive_idle.get(),
                keepalive_interval: self.keepalive_interval.get(),
                user_timeout: self.user_timeout.get(),
            },
            drain,
        }
    }
}

/// The host of "host:port", if that is what it is; an IPv6 address without its brackets.
fn host_of(master: &str) -> Option<&str> {
    let (host, port) = master.rsplit_once(':')?;
    if port.parse::<u16>().ok()? == 0 {
        return None;
    }
    if scoped(master).is_some() {
        return host.strip_prefix('[')?.split_once('%').map(|(ip, _)| ip);
    }
    if master.starts_with('[') {
        master.parse::<SocketAddr>().ok()?;
        return host.strip_prefix('[')?.strip_suffix(']');
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!host.is_empty() && host.bytes().all(is_name)).then_some(host)
}

/// The address in "address:port", if it is no name.
fn literal(master: &str) -> Option<ScopedAddress> {
    if let Some((address, _)) = scoped(master) {
        return Some(address);
    }
    let address: SocketAddr = master.parse().ok()?;
    let ip = address.ip();
    Some(ScopedAddress { ip, scope: None })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::{host_of, is_loopback};

    #[test]
    fn an_address_has_a_host_and_a_port() {
        assert_eq!(host_of("master.example:7412"), Some("master.example"));
        assert_eq!(host_of("10.0.0.1:1"), Some("10.0.0.1"));
        assert_eq!(host_of("[::1]:7412"), Some("::1"));
        assert_eq!(host_of("[fe80::1%eth0]:7412"), Some("fe80::1"));
        for bad in [
            "",
            "host",
            "host:",
            ":7412",
            "host:0",
            "host:65536",
            "::1:7412",
            "[::1]",
            "a b:1",
            "[x]:1",
            "[fe80::1%]:1",
            "[fe80::1%a/b]:1",
            "[fe80::1%eth0]:0",
        ] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn loopback_is_recognised() {
        for host in [
            "localhost",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["10.0.0.1", "::", "0.0.0.0", "localhost.example"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
