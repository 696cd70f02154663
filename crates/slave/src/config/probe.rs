//! `[probe.*]`: which probes run, and from where on their figures are a warning or critical.
//!
//! A fault is a key's path and what is wrong with its value.

use std::time;

use garde::Validate;
use rollcall_os::config::within;
use rollcall_os::units::Duration;
use serde::{Deserialize, Serialize};

use super::limit::{DurationLimit, Limit};
use crate::check::finding::Thresholds;

/// The path of a key and what is wrong with its value.
pub(crate) type Fault = (String, String);

/// `[probe]` as it stands in the file.
#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawProbes {
    #[garde(dive)]
    load: RawLoad,
    #[garde(dive)]
    cpu: RawPercent,
    #[garde(dive)]
    memory: RawPercent,
    #[garde(dive)]
    swap: RawPercent,
    #[garde(dive)]
    disk: RawDisk,
    #[garde(dive)]
    network: RawNetwork,
    #[garde(dive)]
    uptime: RawUptime,
    #[garde(dive)]
    processes: RawPercent,
    #[garde(dive)]
    systemd: RawSystemd,
    #[garde(dive)]
    connection: RawPercent,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawLoad {
    #[garde(skip)]
    enable: bool,
    #[garde(custom(from_zero))]
    warning: Limit,
    #[garde(custom(from_zero))]
    critical: Limit,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawPercent {
    #[garde(skip)]
    enable: bool,
    #[garde(custom(percent))]
    warning: Limit,
    #[garde(custom(percent))]
    critical: Limit,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawDisk {
    #[garde(skip)]
    enable: bool,
    #[garde(custom(percent))]
    warning: Limit,
    #[garde(custom(percent))]
    critical: Limit,
    #[garde(custom(percent))]
    inodes_warning: Limit,
    #[garde(custom(percent))]
    inodes_critical: Limit,
    #[garde(custom(within(Duration::from_millis(500), Duration::from_secs(3600))))]
    timeout: Duration,
    #[garde(custom(patterns))]
    types_exclude: Vec<String>,
    #[garde(custom(patterns))]
    mounts_exclude: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    #[garde(skip)]
    enable: bool,
    #[garde(custom(from_zero))]
    errors_per_s_warning: Limit,
    #[garde(custom(from_zero))]
    errors_per_s_critical: Limit,
    #[garde(custom(patterns))]
    interfaces_exclude: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawUptime {
    #[garde(skip)]
    enable: bool,
    #[garde(skip)]
    warning_below: DurationLimit,
    #[garde(skip)]
    critical_below: DurationLimit,
}

#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
struct RawSystemd {
    #[garde(skip)]
    enable: bool,
    #[garde(custom(from_zero))]
    warning: Limit,
    #[garde(custom(from_zero))]
    critical: Limit,
    #[garde(custom(within(Duration::from_secs(1), Duration::from_secs(24 * 3600))))]
    interval: Duration,
    #[garde(custom(within(Duration::from_millis(100), Duration::from_secs(3600))))]
    timeout: Duration,
}

/// The probes that are to run, with their thresholds. `None`: switched off.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Probes {
    /// The 5-minute load average per processor.
    pub(crate) load: Option<Thresholds>,
    /// Percent of processor time used.
    pub(crate) cpu: Option<Thresholds>,
    /// Percent of memory that is not available.
    pub(crate) memory: Option<Thresholds>,
    /// Percent of swap used.
    pub(crate) swap: Option<Thresholds>,
    /// File systems.
    pub(crate) disk: Option<Disk>,
    /// Network interfaces.
    pub(crate) network: Option<Network>,
    /// Time since boot.
    pub(crate) uptime: Option<Uptime>,
    /// Percent of the possible process ids in use.
    pub(crate) processes: Option<Thresholds>,
    /// Failed systemd units.
    pub(crate) systemd: Option<Systemd>,
    /// Percent of the budget of ports used, in per-message mode.
    pub(crate) connection: Option<Thresholds>,
}

/// What the disk probe looks at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Disk {
    /// Percent of space used.
    pub(crate) space: Thresholds,
    /// Percent of inodes used.
    pub(crate) inodes: Thresholds,
    /// How long a file system may take to answer before it is unknown.
    pub(crate) timeout: time::Duration,
    /// Types of file systems that are left out.
    pub(crate) types_exclude: Patterns,
    /// Mount points that are left out.
    pub(crate) mounts_exclude: Patterns,
}

/// What the network probe looks at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Network {
    /// Errors per second, received and sent together.
    pub(crate) errors_per_s: Thresholds,
    /// Interfaces that are left out.
    pub(crate) interfaces_exclude: Patterns,
}

/// When the time since boot is worth a word.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Uptime {
    /// Warning if it is shorter than this.
    pub(crate) warning_below: Option<time::Duration>,
    /// Critical if it is shorter than this.
    pub(crate) critical_below: Option<time::Duration>,
}

/// How the failed units of systemd are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Systemd {
    /// Number of failed units.
    pub(crate) failed: Thresholds,
    /// Time between two looks: each costs a process.
    pub(crate) interval: time::Duration,
    /// The most that one look may take.
    pub(crate) timeout: time::Duration,
}

/// Names that are left out: each is a whole name or, with a `*` at its end, the beginning of one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Patterns(Vec<String>);

impl Patterns {
    /// Takes patterns whose `*`, if any, is at the end.
    pub(crate) fn new(patterns: Vec<String>) -> Self {
        Self(patterns)
    }

    /// Whether one of the patterns fits.
    pub(crate) fn matches(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => name == pattern,
            })
    }
}

impl RawProbes {
    /// Makes the probes to run.
    ///
    /// # Errors
    /// All faults that concern more than one key, by the path of a key.
    pub(crate) fn resolve(&self) -> Result<Probes, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut rising = |section: &str, prefix: &str, warning: Limit, critical: Limit| {
            if let (Some(low), Some(high)) = (warning.0, critical.0)
                && high < low
            {
                faults.push((
                    format!("probe.{section}.{prefix}critical"),
                    format!(
                        "{high} is below {prefix}warning ({low}); give at least that, or \"off\""
                    ),
                ));
            }
            Thresholds {
                warning: warning.0,
                critical: critical.0,
            }
        };
        let load = rising("load", "", self.load.warning, self.load.critical);
        let cpu = rising("cpu", "", self.cpu.warning, self.cpu.critical);
        let memory = rising("memory", "", self.memory.warning, self.memory.critical);
        let swap = rising("swap", "", self.swap.warning, self.swap.critical);
        let processes = rising(
            "processes",
            "",
            self.processes.warning,
            self.processes.critical,
        );
        let failed = rising("systemd", "", self.systemd.warning, self.systemd.critical);
        let connection = rising(
            "connection",
            "",
            self.connection.warning,
            self.connection.critical,
        );
        let disk = &self.disk;
        let space = rising("disk", "", disk.warning, disk.critical);
        let inodes = rising("disk", "inodes_", disk.inodes_warning, disk.inodes_critical);
        let network = &self.network;
        let errors_per_s = rising(
            "network",
            "errors_per_s_",
            network.errors_per_s_warning,
            network.errors_per_s_critical,
        );
        let uptime = self.uptime.resolve(&mut faults);
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Probes {
            load: self.load.enable.then_some(load),
            cpu: self.cpu.enable.then_some(cpu),
            memory: self.memory.enable.then_some(memory),
            swap: self.swap.enable.then_some(swap),
            disk: disk.enable.then(|| Disk {
                space,
                inodes,
                timeout: disk.timeout.get(),
                types_exclude: Patterns::new(disk.types_exclude.clone()),
                mounts_exclude: Patterns::new(disk.mounts_exclude.clone()),
            }),
            network: network.enable.then(|| Network {
                errors_per_s,
                interfaces_exclude: Patterns::new(network.interfaces_exclude.clone()),
            }),
            uptime: self.uptime.enable.then_some(uptime),
            processes: self.processes.enable.then_some(processes),
            systemd: self.systemd.enable.then(|| Systemd {
                failed,
                interval: self.systemd.interval.get(),
                timeout: self.systemd.timeout.get(),
            }),
            connection: self.connection.enable.then_some(connection),
        })
    }
}

impl RawUptime {
    fn resolve(&self, faults: &mut Vec<Fault>) -> Uptime {
        let (warning, critical) = (self.warning_below.0, self.critical_below.0);
        if let (Some(warning), Some(critical)) = (warning, critical)
            && critical > warning
        {
            faults.push((
                "probe.uptime.critical_below".to_owned(),
                format!(
                    "{critical} is above warning_below ({warning}); give at most that, or \"off\""
                ),
            ));
        }
        Uptime {
            warning_below: warning.map(Duration::get),
            critical_below: critical.map(Duration::get),
        }
    }
}

fn percent(limit: &Limit, (): &()) -> garde::Result {
    in_range(*limit, 100.0, "0 to 100")
}

fn from_zero(limit: &Limit, (): &()) -> garde::Result {
    in_range(*limit, f64::MAX, "0 or more")
}

fn in_range(limit: Limit, max: f64, range: &str) -> garde::Result {
    match limit.0 {
        Some(value) if !(0.0..=max).contains(&value) => Err(garde::Error::new(format!(
            "out of range: {value} is not {range} or \"off\""
        ))),
        _ => Ok(()),
    }
}

fn patterns(patterns: &[String], (): &()) -> garde::Result {
    for pattern in patterns {
        if pattern.strip_suffix('*').unwrap_or(pattern).contains('*') || pattern.is_empty() {
            return Err(garde::Error::new(format!(
                "bad pattern {pattern:?}: expected a name, or its beginning and one \"*\" at the end"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
