//! The configuration: what the file says, and what it comes to.
//!
//! `config/master.toml` is compiled in: its values are the defaults, its comments the reference.

mod listen;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time;

use garde::Validate;
use rollcall_os::config::{ConfigError, Faults, Reported, choose_file, load_with, within};
use rollcall_os::log::{Level, LogConfig, LogFormat};
use rollcall_os::socket::Liveness;
use rollcall_os::units::{Bytes, Duration};
use rollcall_protocol::limits::{FRAME_PAYLOAD_BYTES_MAX, WINDOW_MAX};
use serde::{Deserialize, Serialize};

use crate::admission::Limits;
use crate::datagram::DatagramRules;
use crate::listener::{Rules, Sockets};
use crate::reactor::SessionRules;
use crate::roll::{PresenceRules, RingRules};
use crate::store::Retention;
use listen::RawListen;

/// The file that lists every key.
pub(crate) const DEFAULTS: &str = include_str!("../../../../config/master.toml");
/// Where the file is unless `--config` says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/rollcall/master.toml";

const FRAME_MAX: Bytes = Bytes::new(FRAME_PAYLOAD_BYTES_MAX as u64);

/// The file as it is written.
#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
pub(crate) struct Raw {
    #[garde(dive)]
    listen: RawListen,
    #[garde(skip)]
    http: RawHttp,
    #[garde(skip)]
    tls: RawTls,
    #[garde(skip)]
    state: RawState,
    #[garde(dive)]
    history: RawHistory,
    #[garde(dive)]
    presence: RawPresence,
    #[garde(dive)]
    session: RawSession,
    #[garde(dive)]
    limits: RawLimits,
    #[garde(dive)]
    shutdown: RawShutdown,
    #[garde(skip)]
    log: LogConfig,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    address: SocketAddr,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    mode: TlsMode,
}

/// How slaves are authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum TlsMode {
    LoopbackOnly,
    Off,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawState {
    directory: PathBuf,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawHistory {
    #[garde(custom(within(Duration::from_secs(3600), Duration::from_secs(3650 * 86_400))))]
    keep: Duration,
    #[garde(custom(within(Bytes::new(64 << 20), Bytes::new(1 << 40))))]
    max_size: Bytes,
    #[garde(custom(within(0, 1000)))]
    reports: usize,
    #[garde(custom(within(Bytes::new(1 << 20), Bytes::new(64 << 30))))]
    reports_max_size: Bytes,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawPresence {
    #[garde(custom(within(1.0, 1000.0)))]
    late_after: f64,
    #[garde(custom(within(1.0, 10_000.0)))]
    missing_after: f64,
    #[garde(custom(within(Duration::from_secs(0), Duration::from_secs(3600))))]
    reconnect_window: Duration,
    #[garde(custom(within(1, 1_000_000)))]
    reconnect_rate: u32,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawSession {
    #[garde(custom(within(1, WINDOW_MAX)))]
    window: u32,
    #[garde(custom(within(Duration::from_millis(100), Duration::from_secs(300))))]
    hello_timeout: Duration,
    #[garde(custom(within(Duration::from_millis(100), Duration::from_secs(300))))]
    write_timeout: Duration,
    #[garde(custom(within(Duration::from_secs(1), Duration::from_secs(43_200))))]
    keepalive_idle: Duration,
    #[garde(custom(within(Duration::from_secs(1), Duration::from_secs(3600))))]
    keepalive_interval: Duration,
    #[garde(custom(within(Duration::from_secs(1), Duration::from_secs(43_200))))]
    user_timeout: Duration,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    #[garde(skip)]
    connections_max: usize,
    #[garde(skip)]
    connections_per_address_max: usize,
    #[garde(custom(within(1, 1_000_000)))]
    datagram_rate: u32,
    #[garde(custom(within(1, 1_000_000)))]
    datagram_burst: u32,
    #[garde(custom(within(1, 1_000_000)))]
    datagrams_max: usize,
    #[garde(custom(within(Bytes::new(1024), FRAME_MAX)))]
    frame_max: Bytes,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawShutdown {
    #[garde(custom(within(Duration::from_millis(100), Duration::from_secs(300))))]
    deadline: Duration,
}

/// The configuration, known to be right.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Its `connections_max` is as configured: 0 for as many as the limit of open files allows.
    pub(crate) listen: Rules,
    pub(crate) sockets: Sockets,
    pub(crate) datagrams: DatagramRules,
    pub(crate) http: SocketAddr,
    pub(crate) state_directory: PathBuf,
    pub(crate) retention: Retention,
    pub(crate) rings: RingRules,
    pub(crate) presence: PresenceRules,
    pub(crate) session: SessionRules,
    pub(crate) shutdown_deadline: time::Duration,
    /// None: the one that suits where it goes.
    pub(crate) log_format: Option<LogFormat>,
    pub(crate) log_level: Level,
    /// The file as it was resolved, for `--check`.
    pub(crate) raw: Raw,
}

impl Config {
    /// Loads the file at `path`; without one, the one at [`DEFAULT_PATH`] if it exists; else the
    /// defaults.
    ///
    /// # Errors
    /// All faults of the file at once, each with its place and what would be right.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let path = choose_file(path, Path::new(DEFAULT_PATH));
        load_with(DEFAULTS, path, resolve)
    }

    /// The names of what can't be changed while the daemon runs, where `new` differs.
    pub(crate) fn fixed_changes(&self, new: &Self) -> Vec<&'static str> {
        let (own, its) = (self.sockets.options, new.sockets.options);
        let differs = [
            ("listen.backlog", own.backlog != its.backlog),
            ("listen.ipv6_only", own.ipv6_only != its.ipv6_only),
            ("listen.freebind", own.freebind != its.freebind),
            (
                "listen.datagram, limits.datagram*",
                self.datagrams != new.datagrams,
            ),
            ("http.address", self.http != new.http),
            (
                "state.directory",
                self.state_directory != new.state_directory,
            ),
            (
                "history",
                self.retention != new.retention || self.rings != new.rings,
            ),
            (
                "session.keepalive_*, session.user_timeout",
                self.sockets.liveness != new.sockets.liveness,
            ),
            ("log.format", self.log_format != new.log_format),
        ];
        let changed = differs.into_iter().filter(|(_, differs)| *differs);
        changed.map(|(key, _)| key).collect()
    }
}

fn resolve(raw: Raw, faults: &mut Faults<'_>) -> Result<Config, Reported> {
    let mut reported = raw.listen.check(raw.tls.mode, raw.http.address, faults);
    if raw.presence.missing_after <= raw.presence.late_after {
        let message = format!(
            "must be more than presence.late_after, which is {}",
            raw.presence.late_after
        );
        reported = Some(faults.add("presence.missing_after", message));
    }
    match reported {
        Some(reported) => Err(reported),
        None => Ok(resolved(raw)),
    }
}

fn resolved(raw: Raw) -> Config {
    Config {
        listen: Rules {
            listeners: raw.listen.listeners(),
            limits: Limits {
                connections_max: raw.limits.connections_max,
                connections_per_address_max: raw.limits.connections_per_address_max,
            },
        },
        sockets: Sockets {
            options: raw.listen.options(),
            liveness: Liveness {
                keepalive_idle: raw.session.keepalive_idle.get(),
                keepalive_interval: raw.session.keepalive_interval.get(),
                user_timeout: raw.session.user_timeout.get(),
            },
        },
        datagrams: DatagramRules {
            addresses: raw.listen.datagram().to_vec(),
            rate: raw.limits.datagram_rate,
            burst: raw.limits.datagram_burst,
            in_hand_max: raw.limits.datagrams_max,
        },
        http: raw.http.address,
        state_directory: raw.state.directory.clone(),
        retention: Retention {
            keep: raw.history.keep.get(),
            bytes_max: raw.history.max_size.get(),
        },
        rings: RingRules {
            reports_max: raw.history.reports,
            bytes_max: usize::try_from(raw.history.reports_max_size.get()).unwrap_or(usize::MAX),
        },
        presence: PresenceRules {
            late_after: raw.presence.late_after,
            missing_after: raw.presence.missing_after,
            reconnect_window: raw.presence.reconnect_window.get(),
        },
        session: SessionRules {
            hello_timeout: raw.session.hello_timeout.get(),
            write_timeout: raw.session.write_timeout.get(),
            frame_bytes_max: usize::try_from(raw.limits.frame_max.get())
                .unwrap_or(FRAME_PAYLOAD_BYTES_MAX),
            window: raw.session.window,
            reconnect_rate: raw.presence.reconnect_rate,
        },
        shutdown_deadline: raw.shutdown.deadline.get(),
        log_format: raw.log.format(),
        log_level: raw.log.level,
        raw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::Listener;

    /// The keys that have a fault, in the order of the file.
    pub(super) fn faults_of(text: &str) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        match load_with(DEFAULTS, Some(file.path()), resolve) {
            Ok(_) => Vec::new(),
            Err(error) => {
                let faults = error.faults().iter();
                faults.map(|fault| fault.key.clone()).collect()
            }
        }
    }

    #[test]
    fn the_shipped_file_is_the_defaults() {
        let config = load_with(DEFAULTS, None, resolve).unwrap();
        let listener = Listener {
            address: "127.0.0.1:7412".parse().unwrap(),
            privileged: false,
        };
        assert_eq!(config.listen.listeners, [listener]);
        assert_eq!(config.session.frame_bytes_max, FRAME_PAYLOAD_BYTES_MAX);
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let text = "[listen]\naddresses = [\"0.0.0.0:7412\", \"127.0.0.1:1\", \"127.0.0.1:1\"]\n\
                    [presence]\nlate_after = 4.0\n[session]\nwindow = 0\n";
        assert_eq!(
            faults_of(text),
            [
                "listen.addresses[0]",
                "listen.addresses[2]",
                "presence.missing_after",
                "session.window"
            ]
        );
    }
}
