//! Space and inodes of each file system.

mod mounts;
mod statvfs;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use bytesize::ByteSize;
use rollcall_protocol::Moment;
use rollcall_protocol::wire::Health;
use rustix::fs::StatVfs;

use self::mounts::{Mount, select};
use self::statvfs::{Answer, Asker};
use super::source::Source;
use super::{ProbeError, RARELY, percent};
use crate::check::finding::{Finding, metric, severity};
use crate::config::probe::Disk as Config;

/// The file systems of this host, and what they last said.
pub(super) struct Disk {
    table: Source,
    /// The mounts that the filter lets through, and when the table was read.
    mounts: Option<(Moment, Vec<Mount>)>,
    asker: Asker,
    last: HashMap<PathBuf, Finding>,
}

impl Disk {
    pub(super) fn new() -> Self {
        Self {
            table: Source::new("/proc/self/mountinfo"),
            mounts: None,
            asker: Asker::default(),
            last: HashMap::new(),
        }
    }

    /// The filter may have changed: the mounts are looked up anew.
    pub(super) fn forget_mounts(&mut self) {
        self.mounts = None;
    }

    /// What each file system says now, by its mount point. One that has not answered keeps what it
    /// last said until the timeout of the configuration has passed.
    pub(super) async fn sample(
        &mut self,
        config: &Config,
        now: Moment,
    ) -> Result<Vec<(String, Finding)>, ProbeError> {
        let points = self.points(config, now)?;
        let mut last = HashMap::with_capacity(points.len());
        for (point, answer) in self.asker.ask(points, now).await {
            let before = self.last.remove(&point);
            if let Some(finding) = judge(config, answer, now, before) {
                last.insert(point, finding);
            }
        }
        self.last = last;
        let by_name = self.last.iter();
        Ok(by_name
            .map(|(point, finding)| (point.to_string_lossy().into_owned(), finding.clone()))
            .collect())
    }

    /// The mount points, from the table as it was read when it last changed.
    fn points(&mut self, config: &Config, now: Moment) -> Result<Vec<PathBuf>, ProbeError> {
        // Asked in any case, because the asking clears the kernel's mark. That there is one on
        // every kernel is not relied on.
        let changed = self.table.is_changed();
        let mounts = match self.mounts.take() {
            Some(known) if !changed && now.saturating_since(known.0) < RARELY => known,
            _ => (now, select(config, self.table.text()?)),
        };
        let points = mounts.1.iter().map(|mount| mount.point.clone()).collect();
        self.mounts = Some(mounts);
        Ok(points)
    }
}

fn judge(config: &Config, answer: Answer, now: Moment, before: Option<Finding>) -> Option<Finding> {
    match answer {
        Answer::Given(Ok(usage)) => judge_usage(config, &usage),
        // It was unmounted after the list was read.
        Answer::Given(Err(error)) if error.kind() == io::ErrorKind::NotFound => None,
        Answer::Given(Err(error)) => Some(Finding::unknown(format!(
            "can't be asked: {error} (mounts_exclude in [probe.disk] leaves it out)"
        ))),
        Answer::Hangs(since) => {
            let silent = now.saturating_since(since);
            if silent < config.timeout {
                return before;
            }
            Some(Finding::unknown(format!(
                "has not answered for {} s",
                silent.as_secs()
            )))
        }
        Answer::NotAsked => before.or_else(|| {
            Some(Finding::unknown(
                "not asked, because too many other file systems do not answer",
            ))
        }),
    }
}

/// `None` for a file system without blocks, which is none that could be full.
fn judge_usage(config: &Config, usage: &StatVfs) -> Option<Finding> {
    if usage.f_blocks == 0 {
        return None;
    }
    let used = usage.f_blocks.saturating_sub(usage.f_bfree);
    let available = usage.f_bavail;
    // As df(1) counts: what is reserved for root is neither used nor there for others.
    let used_percent = percent(used, used.saturating_add(available));
    let bytes = |blocks: u64| blocks.saturating_mul(usage.f_frsize);
    let (total, available) = (bytes(usage.f_blocks), bytes(available));
    let mut state = config.space.judge(used_percent);
    let mut text = format!(
        "{used_percent:.1}% of {} used, {} available",
        ByteSize(total),
        ByteSize(available)
    );
    let mut metrics = vec![
        metric("used", used_percent, "%"),
        metric("available", available as f64, "B"),
        metric("total", total as f64, "B"),
    ];
    // Some file systems (btrfs, vfat) have no fixed number of inodes.
    if usage.f_files > 0 {
        let inodes = percent(usage.f_files.saturating_sub(usage.f_ffree), usage.f_files);
        let of_inodes = config.inodes.judge(inodes);
        text.push_str(&format!("; {inodes:.1}% of inodes"));
        metrics.push(metric("inodes_used", inodes, "%"));
        state = worse(state, of_inodes);
    }
    Some(Finding {
        state,
        text,
        metrics,
    })
}

fn worse(a: Health, b: Health) -> Health {
    if severity(b) > severity(a) { b } else { a }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::fs::StatVfsMountFlags;

    use super::*;
    use crate::check::finding::Thresholds;
    use crate::config::probe::Patterns;

    fn config() -> Config {
        let limits = Thresholds {
            warning: Some(80.0),
            critical: Some(90.0),
        };
        Config {
            space: limits,
            inodes: limits,
            timeout: Duration::from_secs(5),
            types_exclude: Patterns::default(),
            mounts_exclude: Patterns::default(),
        }
    }

    fn usage(available: u64, inodes_free: u64) -> StatVfs {
        StatVfs {
            f_bsize: 4096,
            f_frsize: 1024,
            f_blocks: 1_048_576,
            f_bfree: available + 48_576,
            f_bavail: available,
            f_files: 1000,
            f_ffree: inodes_free,
            f_favail: inodes_free,
            f_fsid: 0,
            f_flag: StatVfsMountFlags::empty(),
            f_namemax: 255,
        }
    }

    #[test]
    fn space_and_inodes_are_judged_and_the_worse_counts() {
        let found = judge_usage(&config(), &usage(500_000, 990)).unwrap();
        assert_eq!(found.state, Health::Ok);
        assert_eq!(
            found.text,
            "50.0% of 1.0 GiB used, 488.3 MiB available; 1.0% of inodes"
        );
        let state = |available, inodes_free| {
            judge_usage(&config(), &usage(available, inodes_free))
                .unwrap()
                .state
        };
        assert_eq!(state(200_000, 990), Health::Warning);
        assert_eq!(state(500_000, 100), Health::Critical);
        assert_eq!(state(100_000, 200), Health::Critical);
    }

    #[test]
    fn file_systems_without_blocks_or_inodes() {
        let no_inodes = StatVfs {
            f_files: 0,
            f_ffree: 0,
            ..usage(500_000, 0)
        };
        assert_eq!(judge_usage(&config(), &no_inodes).unwrap().metrics.len(), 3);
        let no_blocks = StatVfs {
            f_blocks: 0,
            ..usage(0, 0)
        };
        assert_eq!(judge_usage(&config(), &no_blocks), None);
    }

    #[test]
    fn one_that_hangs_keeps_its_word_until_the_timeout() {
        let at = |seconds| Moment::new(Duration::from_secs(seconds));
        let before = judge_usage(&config(), &usage(500_000, 990));
        let judged = |now| judge(&config(), Answer::Hangs(at(100)), at(now), before.clone());
        assert_eq!(judged(104), before);
        let late = judged(107).unwrap();
        assert_eq!(late.state, Health::Unknown);
        assert_eq!(late.text, "has not answered for 7 s");
        assert_eq!(
            judge(&config(), Answer::Hangs(at(100)), at(101), None),
            None
        );
    }

    #[tokio::test]
    async fn the_root_of_this_host_is_there() {
        let mut disk = Disk::new();
        let found = disk.sample(&config(), Moment::ZERO).await.unwrap();
        let (_, root) = found.iter().find(|(point, _)| point == "/").unwrap();
        assert!(
            root.metrics
                .iter()
                .any(|metric| metric.name == "total" && metric.value > 0.0)
        );
    }
}
