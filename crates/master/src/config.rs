//! The configuration: what the file says, and what it comes to.
//!
//! `config/master.toml` is compiled in: its values are the defaults, its comments the reference.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time;

use garde::Validate;
use rollcall_os::config::{ConfigError, Faults, Reported, load_with, within};
use rollcall_os::log::{Level, LogConfig, LogFormat};
use rollcall_os::socket::Liveness;
use rollcall_os::units::{Bytes, Duration};
use rollcall_protocol::limits::{FRAME_PAYLOAD_BYTES_MAX, WINDOW_MAX};
use serde::{Deserialize, Serialize};

use crate::reactor::SessionRules;
use crate::roll::{PresenceRules, RingRules};
use crate::store::Retention;

/// The file that lists every key.
pub(crate) const DEFAULTS: &str = include_str!("../../../config/master.toml");
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

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawListen {
    #[garde(length(min = 1))]
    addresses: Vec<SocketAddr>,
    #[garde(range(min = 1))]
    backlog: u16,
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
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) backlog: u16,
    pub(crate) http: SocketAddr,
    pub(crate) state_directory: PathBuf,
    pub(crate) retention: Retention,
    pub(crate) rings: RingRules,
    pub(crate) presence: PresenceRules,
    pub(crate) session: SessionRules,
    pub(crate) liveness: Liveness,
    /// 0: as many as the limit of open files allows.
    pub(crate) connections_max: usize,
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
        let default = Path::new(DEFAULT_PATH);
        let path = path.or_else(|| default.exists().then_some(default));
        load_with(DEFAULTS, path, resolve)
    }

    /// The names of what can't be changed while the daemon runs, where `new` differs.
    pub(crate) fn fixed_changes(&self, new: &Self) -> Vec<&'static str> {
        let differs = [
            (
                "listen",
                self.listen != new.listen || self.backlog != new.backlog,
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
                self.liveness != new.liveness,
            ),
            (
                "limits.connections_max",
                self.connections_max != new.connections_max,
            ),
            ("log.format", self.log_format != new.log_format),
        ];
        let changed = differs.into_iter().filter(|(_, differs)| *differs);
        changed.map(|(key, _)| key).collect()
    }
}

fn resolve(raw: Raw, faults: &mut Faults<'_>) -> Result<Config, Reported> {
    let mut reported = None;
    if raw.tls.mode == TlsMode::LoopbackOnly {
        for (at, address) in raw.listen.addresses.iter().enumerate() {
            if !is_loopback(address.ip()) {
                let message = format!(
                    "{address} is not a loopback address; set [tls] mode = \"off\" to accept slaves from the network without authentication"
                );
                reported = Some(faults.add(&format!("listen.addresses[{at}]"), message));
            }
        }
    }
    for (at, address) in raw.listen.addresses.iter().enumerate() {
        if raw.listen.addresses[..at].contains(address) {
            reported = Some(faults.add(
                &format!("listen.addresses[{at}]"),
                format!("{address} is listed twice"),
            ));
        }
    }
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
        listen: raw.listen.addresses.clone(),
        backlog: raw.listen.backlog,
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
        },
        liveness: Liveness {
            keepalive_idle: raw.session.keepalive_idle.get(),
            keepalive_interval: raw.session.keepalive_interval.get(),
            user_timeout: raw.session.user_timeout.get(),
        },
        connections_max: raw.limits.connections_max,
        shutdown_deadline: raw.shutdown.deadline.get(),
        log_format: raw.log.format(),
        log_level: raw.log.level,
        raw,
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_file_is_the_defaults() {
        let config = load_with(DEFAULTS, None, resolve).unwrap();
        assert_eq!(config.listen, ["127.0.0.1:7412".parse().unwrap()]);
        assert_eq!(config.session.frame_bytes_max, FRAME_PAYLOAD_BYTES_MAX);
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "[listen]\naddresses = [\"0.0.0.0:7412\", \"127.0.0.1:1\", \"127.0.0.1:1\"]\n\
                    [presence]\nlate_after = 4.0\n[session]\nwindow = 0\n";
        std::fs::write(file.path(), text).unwrap();
        let error = load_with(DEFAULTS, Some(file.path()), resolve).unwrap_err();
        let keys: Vec<_> = error
            .faults()
            .iter()
            .map(|fault| fault.key.as_str())
            .collect();
        assert_eq!(
            keys,
            [
                "listen.addresses[0]",
                "listen.addresses[2]",
                "presence.missing_after",
                "session.window"
            ],
            "{error}"
        );
    }
}
