//! `[connection]` and `[tls]`: which masters, and how they are talked to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time;

use garde::Validate;
use rollcall_os::config::within;
use rollcall_os::socket::Liveness;
use rollcall_os::units::Duration;
use rollcall_protocol::backoff::BackoffLimits;
use rollcall_protocol::session::slave::SlaveTimeouts;
use rollcall_protocol::wire;
use serde::{Deserialize, Serialize};

use super::DAY;
use super::probe::Fault;
use crate::link::LinkConfig;

const HALF_DAY: Duration = Duration::from_secs(43_200);
const HOUR: Duration = Duration::from_secs(3600);

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
}

/// `[connection]` as it stands in the file.
#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConnection {
    #[garde(length(min = 1))]
    masters: Vec<String>,
    #[garde(skip)]
    mode: Mode,
    #[garde(custom(within(Duration::from_secs(1), DAY)))]
    return_after: Duration,
    #[garde(custom(within(Duration::from_millis(100), Duration::from_secs(300))))]
    connect_timeout: Duration,
    #[garde(custom(within(Duration::from_millis(100), Duration::from_secs(300))))]
    welcome_timeout: Duration,
    #[garde(custom(within(Duration::from_secs(1), HOUR)))]
    ack_timeout: Duration,
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
    /// What is wrong beyond single values.
    pub(super) fn faults(&self, tls: TlsMode) -> Vec<Fault> {
        let mut faults = Vec::new();
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
            }
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
            },
            connect_timeout: self.connect_timeout.get(),
            timeouts: SlaveTimeouts {
                welcome: self.welcome_timeout.get(),
                ack: self.ack_timeout.get(),
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
    if master.starts_with('[') {
        master.parse::<SocketAddr>().ok()?;
        return host.strip_prefix('[')?.strip_suffix(']');
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!host.is_empty() && host.bytes().all(is_name)).then_some(host)
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
