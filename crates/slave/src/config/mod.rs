//! The configuration: what the file says, and what it comes to.
//!
//! `config/slave.toml` is compiled in: its values are the defaults, its comments the reference.

pub(crate) mod check;
mod connection;
mod limit;
pub(crate) mod probe;
mod source;

#[cfg(test)]
mod source_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use garde::Validate;
use rollcall_os::config::{ConfigError, Faults, Reported, choose_file, load_with, within};
use rollcall_os::log::{Level, LogConfig, LogFormat};
use rollcall_os::units::{Bytes, Duration};
use rollcall_protocol::limits::{INTERVAL_MAX, INTERVAL_MIN, LABEL_BYTES_MAX, LABELS_MAX};
use rollcall_protocol::name;
use serde::{Deserialize, Serialize};

use self::check::{RawCheck, RawChecks};
use self::connection::{RawConnection, TlsMode};
use self::probe::{Fault, Probes, RawProbes};
use crate::collect;
use crate::link::LinkConfig;
use crate::spool::SpoolLimits;

/// The file that lists every key.
pub(crate) const DEFAULTS: &str = include_str!("../../../../config/slave.toml");
/// Where the file is unless `--config` says otherwise.
pub(crate) const DEFAULT_PATH: &str = "/etc/rollcall/slave.toml";

const DAY: Duration = Duration::from_secs(86_400);
const TEBIBYTE: Bytes = Bytes::new(1 << 40);

/// The file as it is written.
#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
pub(crate) struct Raw {
    #[garde(skip)]
    name: String,
    #[garde(custom(within(Duration::new(INTERVAL_MIN), Duration::new(INTERVAL_MAX))))]
    interval: Duration,
    #[garde(custom(self::labels))]
    labels: BTreeMap<String, String>,
    #[garde(dive)]
    connection: RawConnection,
    #[garde(skip)]
    tls: RawTls,
    #[garde(skip)]
    state: RawState,
    #[garde(dive)]
    spool: RawSpool,
    #[garde(dive)]
    shutdown: RawShutdown,
    #[garde(skip)]
    log: LogConfig,
    #[garde(dive)]
    probe: RawProbes,
    #[garde(dive)]
    checks: RawChecks,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[garde(dive)]
    check: Vec<RawCheck>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    mode: TlsMode,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawState {
    directory: PathBuf,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawSpool {
    #[garde(custom(within(Bytes::new(64 * 1024), TEBIBYTE)))]
    bytes_max: Bytes,
    #[garde(custom(within(Duration::from_secs(60), Duration::from_secs(3650 * 86_400))))]
    age_max: Duration,
    #[garde(custom(within(Bytes::new(0), TEBIBYTE)))]
    free_space_min: Bytes,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawShutdown {
    #[garde(custom(within(Duration::from_secs(0), Duration::from_secs(300))))]
    drain: Duration,
}

/// The configuration, known to be right.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) state_directory: PathBuf,
    pub(crate) link: LinkConfig,
    pub(crate) spool: SpoolLimits,
    pub(crate) collect: collect::Config,
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
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        load_with(DEFAULTS, path, |raw, faults| resolve(raw, &host, faults))
    }

    /// The names of what can't be changed while the daemon runs, where `new` differs.
    pub(crate) fn fixed_changes(&self, new: &Self) -> Vec<&'static str> {
        let differs = [
            ("name", self.link.name != new.link.name),
            (
                "state.directory",
                self.state_directory != new.state_directory,
            ),
            ("log.format", self.log_format != new.log_format),
        ];
        let changed = differs.into_iter().filter(|(_, differs)| *differs);
        changed.map(|(key, _)| key).collect()
    }
}

fn resolve(raw: Raw, host: &str, faults: &mut Faults<'_>) -> Result<Config, Reported> {
    let mut found: Vec<Fault> = Vec::new();
    let name = resolve_name(&raw.name, host)
        .map_err(|message| found.push(("name".to_owned(), message)))
        .unwrap_or_default();
    found.extend(raw.connection.faults(raw.tls.mode));
    let probes = raw.probe.resolve().unwrap_or_else(|faults| {
        found.extend(faults);
        Probes::default()
    });
    let checks = raw
        .checks
        .resolve(&raw.check, &probes)
        .unwrap_or_else(|faults| {
            found.extend(faults);
            check::Checks::default()
        });
    let reported = found
        .into_iter()
        .map(|(key, message)| faults.add(&key, message))
        .last();
    if let Some(reported) = reported {
        return Err(reported);
    }
    let interval = raw.interval.get();
    let link = raw.connection.resolve(
        name.clone(),
        raw.labels.clone(),
        interval,
        raw.shutdown.drain.get(),
    );
    Ok(Config {
        state_directory: raw.state.directory.clone(),
        link,
        spool: SpoolLimits {
            bytes_max: raw.spool.bytes_max.get(),
            age_max: raw.spool.age_max.get(),
            free_bytes_min: raw.spool.free_space_min.get(),
        },
        collect: collect::Config {
            interval,
            probes,
            checks,
        },
        log_format: raw.log.format(),
        log_level: raw.log.level,
        raw: Raw { name, ..raw },
    })
}

/// The configured name, or the host's in lower case with "-" for "_".
fn resolve_name(configured: &str, host: &str) -> Result<String, String> {
    if !configured.is_empty() {
        return if name::is_valid(configured) {
            Ok(configured.to_owned())
        } else {
            Err(format!(
                "{configured:?} is no name: expected {}",
                name::RULE
            ))
        };
    }
    let made = host.to_ascii_lowercase().replace('_', "-");
    if name::is_valid(&made) {
        Ok(made)
    } else {
        Err(format!(
            "the name of this host, {host:?}, can't be a slave's: set one of {}",
            name::RULE
        ))
    }
}

fn labels(labels: &BTreeMap<String, String>, (): &()) -> garde::Result {
    if labels.len() > LABELS_MAX {
        return Err(garde::Error::new(format!(
            "{} labels are too many: at most {LABELS_MAX}",
            labels.len()
        )));
    }
    let fits = |text: &str| text.len() <= LABEL_BYTES_MAX && !text.contains(char::is_control);
    let bad = labels
        .iter()
        .find(|(key, value)| key.is_empty() || !fits(key) || !fits(value));
    match bad {
        None => Ok(()),
        Some((key, _)) => Err(garde::Error::new(format!(
            "bad label {key:?}: expected 1 to {LABEL_BYTES_MAX} bytes on the left, at most as many on the right, and no control characters"
        ))),
    }
}
