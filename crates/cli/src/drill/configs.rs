//! The configurations of the drill's daemons: what differs from the defaults, and why.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollcall_os::units;
use rollcall_protocol::api::Mode;
use toml::{Table, Value};

use super::stored::CHECK;

/// Silence after which a slave is late. What the drill ends is back sooner, so who is called late or
/// missing is called so by mistake.
const LATE_AFTER: Duration = Duration::from_secs(5);
/// Silence after which a slave is missing.
const MISSING_AFTER: Duration = Duration::from_secs(10);
/// The least that the master takes for each, in intervals.
const INTERVALS_MIN: (f64, f64) = (1.5, 3.0);
/// The most that the master takes, in intervals.
const INTERVALS_MAX: f64 = 1000.0;
/// What slaves are given to come back after the master was away: longer than their longest pause.
const RECONNECT_WINDOW: units::Duration = units::Duration::from_secs(5);
/// The longest pause of the slaves' backoff. That of production would make a drill a wait.
const RETRY_LONGEST: units::Duration = units::Duration::from_secs(1);
/// How often the check runs whose changes are followed, at most.
const CHECK_INTERVAL_MIN: units::Duration = units::Duration::from_secs(1);
/// Counts its runs in a file and goes from state to state, so that each run is a change.
const CHECK_SCRIPT: &str =
    "printf . >>\"$0\" && n=$(wc -c <\"$0\") && echo \"run $n\" && exit $((n % 3))";

/// Probes that are left on: cheap ones, since many slaves share this host.
const PROBES_OFF: [&str; 5] = ["cpu", "disk", "network", "processes", "systemd"];

/// A configuration can't be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigsError {
    /// The file.
    #[error("can't write {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The text.
    #[error("can't write TOML")]
    Serialize(#[from] toml::ser::Error),
}

/// A slave of the drill.
#[derive(Debug)]
pub(super) struct SlaveConfig<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// How often it reports.
    pub(super) interval: units::Duration,
    /// How it connects.
    pub(super) mode: Mode,
    /// Where.
    pub(super) master: SocketAddr,
    /// The folder of its state.
    pub(super) state: &'a Path,
    /// Where its check counts.
    pub(super) counter: &'a Path,
}

/// Writes the master's configuration to `path`.
///
/// # Errors
/// [`ConfigsError`]
pub(super) fn master(
    path: &Path,
    slaves: SocketAddr,
    http: SocketAddr,
    state: &Path,
    interval: units::Duration,
) -> Result<(), ConfigsError> {
    let in_intervals = |silence: Duration, least: f64| {
        (silence.as_secs_f64() / interval.get().as_secs_f64()).clamp(least, INTERVALS_MAX)
    };
    let (late_min, missing_min) = INTERVALS_MIN;
    let late_after = in_intervals(LATE_AFTER, late_min).min(INTERVALS_MAX / 2.0);
    let mut config = Config::default();
    config
        .set("listen.addresses", vec![slaves.to_string()])
        .set("http.address", http.to_string())
        .set("state.directory", text(state))
        .set("log.format", "json")
        .set("presence.late_after", late_after)
        .set(
            "presence.missing_after",
            in_intervals(MISSING_AFTER, missing_min),
        )
        .set("presence.reconnect_window", RECONNECT_WINDOW.to_string());
    config.write(path)
}

/// Writes a slave's configuration to `path`.
///
/// # Errors
/// [`ConfigsError`]
pub(super) fn slave(path: &Path, slave: &SlaveConfig<'_>) -> Result<(), ConfigsError> {
    let check_interval = slave.interval.max(CHECK_INTERVAL_MIN).to_string();
    let command = ["/bin/sh", "-c", CHECK_SCRIPT].map(str::to_owned);
    let command = command.into_iter().chain([text(slave.counter)]);
    let mut check = Table::new();
    check.insert("name".to_owned(), CHECK.into());
    check.insert("command".to_owned(), command.collect::<Vec<_>>().into());
    check.insert("interval".to_owned(), check_interval.into());
    let mut config = Config::default();
    config
        .set("name", slave.name)
        .set("interval", slave.interval.to_string())
        .set("connection.masters", vec![slave.master.to_string()])
        .set("connection.mode", slave.mode.as_str())
        .set("connection.retry_longest", RETRY_LONGEST.to_string())
        .set("connection.retry_reset_after", RETRY_LONGEST.to_string())
        .set("state.directory", text(slave.state))
        .set("log.format", "json")
        .set("check", vec![Value::Table(check)]);
    for probe in PROBES_OFF {
        config.set(&format!("probe.{probe}.enable"), false);
    }
    config.write(path)
}

/// A configuration in the making.
#[derive(Debug, Default)]
struct Config(Table);

impl Config {
    /// Sets a key, given with its sections: `log.format`.
    fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        let (sections, last) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.0;
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            let inner = table
                .entry(section)
                .or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else {
                // A key that is a value already is no section: the daemon will say so.
                return self;
            };
            table = inner;
        }
        table.insert(last.to_owned(), value.into());
        self
    }

    fn write(&self, path: &Path) -> Result<(), ConfigsError> {
        let text = format!(
            "# Written by `rollcall drill`.\n\n{}",
            toml::to_string(&self.0)?
        );
        fs::write(path, text).map_err(|source| ConfigsError::Write {
            path: path.to_owned(),
            source,
        })
    }
}

/// The folder was asked for in UTF-8.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn address() -> SocketAddr {
        ([127, 0, 0, 1], 7).into()
    }

    fn read(path: &Path) -> Table {
        fs::read_to_string(path).unwrap().parse().unwrap()
    }

    #[test]
    fn silence_is_measured_in_seconds_whatever_the_interval_is() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("master.toml");
        for (interval_ms, late, missing) in
            [(100, 50.0, 100.0), (10, 500.0, 1000.0), (60_000, 1.5, 3.0)]
        {
            let interval = units::Duration::from_millis(interval_ms);
            master(&path, address(), address(), scratch.path(), interval).unwrap();
            let presence = &read(&path)["presence"];
            assert_eq!(presence["late_after"].as_float(), Some(late));
            assert_eq!(presence["missing_after"].as_float(), Some(missing));
        }
    }

    #[test]
    fn the_check_of_a_slave_goes_from_state_to_state_and_counts() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("slave.toml");
        let counter = scratch.path().join("counter");
        let config = SlaveConfig {
            name: "drill-01",
            interval: units::Duration::from_millis(100),
            mode: Mode::PerMessage,
            master: address(),
            state: scratch.path(),
            counter: &counter,
        };
        slave(&path, &config).unwrap();
        let config = read(&path);
        assert_eq!(config["connection"]["mode"].as_str(), Some("per-message"));
        assert_eq!(config["probe"]["disk"]["enable"].as_bool(), Some(false));
        let command = config["check"][0]["command"].as_array().unwrap();
        let command: Vec<_> = command.iter().filter_map(Value::as_str).collect();
        for run in 1..=4 {
            let out = Command::new(command[0])
                .args(&command[1..])
                .output()
                .unwrap();
            assert_eq!(out.status.code(), Some(run % 3));
            assert_eq!(out.stdout, format!("run {run}\n").into_bytes());
        }
    }
}
