//! Processor time since the last sample, by mode.

use procfs_core::{CpuTime, ExplicitSystemInfo, FromBufReadSI, KernelStats};

use super::ProbeError;
use crate::check::finding::{Finding, Thresholds, metric};

/// Ticks since boot, of all processors together. `guest` time is part of `user`, `guest_nice` of
/// `nice` (proc(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Ticks {
    user: u64,
    nice: u64,
    system: u64,
    idle: u64,
    iowait: u64,
    irq: u64,
    steal: u64,
}

impl Ticks {
    /// Reads the text of /proc/stat (proc(5)).
    pub(super) fn parse(text: &[u8]) -> Result<Self, ProbeError> {
        // Only the ratios of the ticks are used, so their length does not matter.
        let units = ExplicitSystemInfo {
            boot_time_secs: 0,
            ticks_per_second: 1,
            page_size: 1,
            is_little_endian: true,
        };
        let stat = KernelStats::from_buf_read(text, &units)
            .map_err(|error| ProbeError::parse("/proc/stat", &error))?;
        Ok(Self::from(&stat.total))
    }

    /// What has passed since `earlier`. The counters of idle and iowait are known to step back at
    /// times (proc(5)): that counts as nothing.
    fn since(&self, earlier: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            nice: self.nice.saturating_sub(earlier.nice),
            system: self.system.saturating_sub(earlier.system),
            idle: self.idle.saturating_sub(earlier.idle),
            iowait: self.iowait.saturating_sub(earlier.iowait),
            irq: self.irq.saturating_sub(earlier.irq),
            steal: self.steal.saturating_sub(earlier.steal),
        }
    }

    fn total(&self) -> u64 {
        let Self {
            user,
            nice,
            system,
            idle,
            iowait,
            irq,
            steal,
        } = self;
        user + nice + system + idle + iowait + irq + steal
    }
}

impl From<&CpuTime> for Ticks {
    fn from(time: &CpuTime) -> Self {
        Self {
            user: time.user,
            nice: time.nice,
            system: time.system,
            idle: time.idle,
            iowait: time.iowait.unwrap_or(0),
            irq: time.irq.unwrap_or(0) + time.softirq.unwrap_or(0),
            steal: time.steal.unwrap_or(0),
        }
    }
}

/// Judges the time between two samples.
pub(super) fn judge(thresholds: &Thresholds, earlier: &Ticks, now: &Ticks) -> Finding {
    let passed = now.since(earlier);
    // Nothing has passed on a machine that was stopped in between.
    let total = passed.total().max(1) as f64;
    let percent = |ticks: u64| (ticks as f64 / total * 1000.0).round() / 10.0;
    let used = percent(passed.total() - passed.idle - passed.iowait);
    let modes = [
        ("user", passed.user),
        ("nice", passed.nice),
        ("system", passed.system),
        ("iowait", passed.iowait),
        ("irq", passed.irq),
        ("steal", passed.steal),
    ];
    let metrics = modes.map(|(mode, ticks)| metric(mode, percent(ticks), "%"));
    Finding {
        state: thresholds.judge(used),
        text: format!(
            "{used:.1}% used: {:.1}% user, {:.1}% system, {:.1}% steal; {:.1}% waiting for I/O",
            percent(passed.user + passed.nice),
            percent(passed.system + passed.irq),
            percent(passed.steal),
            percent(passed.iowait),
        ),
        metrics: [metric("used", used, "%")]
            .into_iter()
            .chain(metrics)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::wire::Health;

    use super::*;

    /// From a machine with two processors, the interrupts shortened.
    const EARLIER: &[u8] = b"cpu  1000 50 500 9000 200 10 40 30 400 20
cpu0 500 25 250 4500 100 5 20 15 200 10
cpu1 500 25 250 4500 100 5 20 15 200 10
intr 123456 0 9 0
ctxt 987654
btime 1760000000
processes 4321
procs_running 1
procs_blocked 0
softirq 1234 0 1 2
";

    #[test]
    fn percentages_are_those_of_the_time_between() {
        let earlier = Ticks::parse(EARLIER).unwrap();
        let now = Ticks {
            user: earlier.user + 250,
            system: earlier.system + 100,
            idle: earlier.idle + 500,
            iowait: earlier.iowait + 100,
            steal: earlier.steal + 50,
            ..earlier
        };
        let thresholds = Thresholds {
            warning: Some(40.0),
            critical: Some(80.0),
        };
        let found = judge(&thresholds, &earlier, &now);
        assert_eq!(found.state, Health::Warning);
        assert_eq!(
            found.text,
            "40.0% used: 25.0% user, 10.0% system, 5.0% steal; 10.0% waiting for I/O"
        );
        assert_eq!(found.metrics[0], metric("used", 40.0, "%"));
        assert_eq!(found.metrics[4], metric("iowait", 10.0, "%"));
    }

    #[test]
    fn interrupts_are_added_up_and_guests_are_not_counted_twice() {
        let ticks = Ticks::parse(EARLIER).unwrap();
        assert_eq!((ticks.user, ticks.irq, ticks.total()), (1000, 50, 10_830));
    }

    #[test]
    fn counters_that_step_back_and_stopped_clocks_are_survived() {
        let now = Ticks::parse(EARLIER).unwrap();
        let later = Ticks {
            idle: now.idle + 7,
            ..now
        };
        let stopped = judge(&Thresholds::default(), &now, &now);
        assert_eq!(stopped.metrics[0].value, 0.0);
        let back = judge(&Thresholds::default(), &later, &now);
        assert_eq!(back.metrics[0].value, 0.0);
    }
}
