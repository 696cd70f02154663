//! Probes: how this host stands, read from /proc, /sys and its file systems.
//!
//! Each probe reads a text of the kernel, which never blocks, and judges it; both are separate
//! functions. The texts are read by procfs-core. [`connection`] is the exception: it judges what the
//! link tells. The two sources that may block are kept off the
//! runtime: [`disk`] asks from a thread, [`systemd`] from a child process that runs as a check.

pub(crate) mod connection;
mod cpu;
mod disk;
mod load;
mod memory;
mod network;
mod processes;
mod source;
pub(crate) mod systemd;
mod uptime;

use std::fmt::Display;
use std::io;
use std::time::Duration;

use procfs_core::LoadAverage;
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::wire::Check;

use self::disk::Disk;
use self::source::Source;
use crate::check::finding::Finding;
use crate::config::probe::Probes as Config;

/// The names of the checks that probes make.
mod names {
    pub(super) const LOAD: &str = "load";
    pub(super) const CPU: &str = "cpu";
    pub(super) const MEMORY: &str = "memory";
    pub(super) const SWAP: &str = "swap";
    /// Followed by `:` and the mount point.
    pub(super) const DISK: &str = "disk";
    /// Followed by `:` and the interface.
    pub(super) const NETWORK: &str = "network";
    pub(super) const UPTIME: &str = "uptime";
    pub(super) const PROCESSES: &str = "processes";
    pub(super) const SYSTEMD: &str = "systemd";
    pub(super) const CONNECTION: &str = "connection";
}

/// Shortest time between two samples: over less, the kernel's ticks give no percentages.
pub(crate) const SAMPLE_INTERVAL_MIN: Duration = Duration::from_millis(250);

/// What is dear to find out is looked at this often at most.
const RARELY: Duration = Duration::from_secs(60);

/// Why a probe has no figures.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error("can't read {path}: {source}")]
    Read {
        path: &'static str,
        source: io::Error,
    },
    #[error("{path} is not as expected: {reason}")]
    Parse { path: &'static str, reason: String },
}

impl ProbeError {
    fn read(path: &'static str, source: io::Error) -> Self {
        Self::Read { path, source }
    }

    fn parse(path: &'static str, reason: &impl Display) -> Self {
        let reason = reason.to_string();
        Self::Parse { path, reason }
    }
}

/// How much `part` is of `whole`, in percent with one decimal.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    (part as f64 / whole as f64 * 1000.0).round() / 10.0
}

/// Whether a check called `name` could come from one of the probes that `config` switches on.
pub(crate) fn names(config: &Config, name: &str) -> bool {
    let has_prefix = |prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    };
    (config.load.is_some() && name == names::LOAD)
        || (config.cpu.is_some() && name == names::CPU)
        || (config.memory.is_some() && name == names::MEMORY)
        || (config.swap.is_some() && name == names::SWAP)
        || (config.disk.is_some() && has_prefix(names::DISK))
        || (config.network.is_some() && has_prefix(names::NETWORK))
        || (config.uptime.is_some() && name == names::UPTIME)
        || (config.processes.is_some() && name == names::PROCESSES)
        || (config.systemd.is_some() && name == names::SYSTEMD)
        || (config.connection.is_some() && name == names::CONNECTION)
}

/// All probes of this host but [`systemd`], and what they need from one sample to the next.
pub(crate) struct Probes {
    config: Config,
    sources: Sources,
    disk: Disk,
    processes: processes::Counted,
    /// When the counters below were read.
    counted: Moment,
    ticks: Option<cpu::Ticks>,
    traffic: Option<network::Counters>,
    newest: Vec<Check>,
}

struct Sources {
    loadavg: Source,
    online: Source,
    stat: Source,
    meminfo: Source,
    net_dev: Source,
    pid_max: Source,
}

impl Probes {
    /// Takes a first reading of the counters: figures over time begin here.
    pub(crate) fn new(config: Config) -> Self {
        let mut probes = Self {
            config: Config::default(),
            sources: Sources {
                loadavg: Source::new("/proc/loadavg"),
                online: Source::new("/sys/devices/system/cpu/online"),
                stat: Source::new("/proc/stat"),
                meminfo: Source::new("/proc/meminfo"),
                net_dev: Source::new("/proc/net/dev"),
                pid_max: Source::new("/proc/sys/kernel/pid_max"),
            },
            disk: Disk::new(),
            processes: processes::Counted::default(),
            counted: clock::boot(),
            ticks: None,
            traffic: None,
            newest: Vec::new(),
        };
        probes.configure(config);
        probes
    }

    /// Takes over a new configuration for the next sample.
    pub(crate) fn configure(&mut self, config: Config) {
        // What can't be read now is reported by the next sample, which tries again.
        if config.cpu.is_some() && self.ticks.is_none() {
            self.ticks = self.sources.ticks().ok();
        }
        if config.network.is_some() && self.traffic.is_none() {
            self.traffic = self.sources.traffic().ok();
        }
        self.disk.forget_mounts();
        self.config = config;
    }

    /// How the host stands now. Within [`SAMPLE_INTERVAL_MIN`] of the last sample (and of
    /// [`Probes::new`]) it is that one again. Takes a moment longer when a file system hangs.
    pub(crate) async fn sample(&mut self) -> Vec<Check> {
        let now = clock::boot();
        let passed = now.saturating_since(self.counted);
        if passed < SAMPLE_INTERVAL_MIN {
            return self.newest.clone();
        }
        self.counted = now;
        let mut out = Findings::default();
        self.sample_processor(&mut out, now);
        self.sample_memory(&mut out);
        if let Some(config) = &self.config.uptime {
            out.one(names::UPTIME, || {
                Ok(Some(uptime::judge(config, now.since_origin())))
            });
        }
        if let Some(config) = &self.config.network {
            let begun = clock::boot();
            let found = self.sources.traffic().map(|traffic| {
                let earlier = self.traffic.take().unwrap_or_default();
                let found = network::judge(config, &earlier, &traffic, passed);
                self.traffic = Some(traffic);
                found
            });
            out.many(names::NETWORK, begun, found);
        }
        if let Some(config) = &self.config.disk {
            let begun = clock::boot();
            let found = self.disk.sample(config, now).await;
            out.many(names::DISK, begun, found);
        }
        self.newest = out.checks;
        self.newest.clone()
    }

    fn sample_processor(&mut self, out: &mut Findings, now: Moment) {
        let sources = &mut self.sources;
        if let Some(thresholds) = &self.config.load {
            out.one(names::LOAD, || {
                let load = sources.load()?;
                Ok(Some(load::judge(thresholds, &load, sources.online.text()?)))
            });
        }
        if let Some(thresholds) = &self.config.cpu {
            out.one(names::CPU, || {
                let now = sources.ticks()?;
                let earlier = self.ticks.replace(now);
                Ok(earlier.map(|earlier| cpu::judge(thresholds, &earlier, &now)))
            });
        }
        if let Some(thresholds) = &self.config.processes {
            out.one(names::PROCESSES, || {
                let load = sources.load()?;
                let pid_max = sources.pid_max.text()?;
                let found = self.processes.sample(thresholds, &load, pid_max, now);
                found.map(Some)
            });
        }
    }

    fn sample_memory(&mut self, out: &mut Findings) {
        if self.config.memory.is_none() && self.config.swap.is_none() {
            return;
        }
        let meminfo = self.sources.meminfo.text().and_then(memory::parse);
        let judged = |judge: fn(&_, &_) -> Finding, thresholds| match &meminfo {
            Ok(meminfo) => judge(thresholds, meminfo),
            Err(error) => Finding::unknown(error.to_string()),
        };
        if let Some(thresholds) = &self.config.memory {
            out.one(names::MEMORY, || {
                Ok(Some(judged(memory::judge_memory, thresholds)))
            });
        }
        if let Some(thresholds) = &self.config.swap {
            out.one(names::SWAP, || {
                Ok(Some(judged(memory::judge_swap, thresholds)))
            });
        }
    }
}

impl Sources {
    fn load(&mut self) -> Result<LoadAverage, ProbeError> {
        load::parse(self.loadavg.text()?)
    }

    fn ticks(&mut self) -> Result<cpu::Ticks, ProbeError> {
        cpu::Ticks::parse(self.stat.text()?)
    }

    fn traffic(&mut self) -> Result<network::Counters, ProbeError> {
        network::parse(self.net_dev.text()?)
    }
}

/// The checks of one sample.
#[derive(Default)]
struct Findings {
    checks: Vec<Check>,
}

impl Findings {
    /// Runs a probe that makes one check, or none for now.
    fn one(&mut self, name: &str, probe: impl FnOnce() -> Result<Option<Finding>, ProbeError>) {
        let begun = clock::boot();
        match probe() {
            Ok(Some(finding)) => self.add(name, begun, finding),
            Ok(None) => {}
            Err(error) => self.add(name, begun, Finding::unknown(error.to_string())),
        }
    }

    /// Takes the outcome of a probe that makes one check for each thing that it found.
    fn many(
        &mut self,
        prefix: &str,
        begun: Moment,
        found: Result<Vec<(String, Finding)>, ProbeError>,
    ) {
        match found {
            Ok(found) => {
                for (thing, finding) in found {
                    self.add(&format!("{prefix}:{thing}"), begun, finding);
                }
            }
            Err(error) => self.add(prefix, begun, Finding::unknown(error.to_string())),
        }
    }

    fn add(&mut self, name: &str, begun: Moment, finding: Finding) {
        let took = clock::boot().saturating_since(begun);
        self.checks
            .push(finding.into_check(name, took, clock::wall_ms()));
    }
}

#[cfg(test)]
mod tests;
