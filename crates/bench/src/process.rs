//! What the kernel tells of a process: its CPU time and its resident memory.

use std::time::Duration;

/// The CPU time and memory of a process at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Usage {
    /// User and system time of all its threads since it started.
    pub(crate) cpu: Duration,
    /// Resident memory in KiB.
    pub(crate) rss_kib: u64,
}

/// Reads `/proc/PID/stat` and `/proc/PID/status`; `None` if there is no such process (any more).
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let ticks = cpu_ticks(&read("stat")?)?;
    let rss_kib = rss_kib(&read("status")?)?;
    let per_second = rustix::param::clock_ticks_per_second();
    let nanos = u128::from(ticks) * 1_000_000_000 / u128::from(per_second);
    let cpu = Duration::from_nanos(u64::try_from(nanos).ok()?);
    Some(Usage { cpu, rss_kib })
}

/// utime and stime, fields 14 and 15 of proc_pid_stat(5). The second field is the name in brackets,
/// which may hold blanks and brackets itself.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn rss_kib(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194560 100 0 0 0 70 30 5 6 20 0 1 0";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks("12 (a) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(
            rss_kib("Name:\tx\nVmRSS:\t    5124 kB\nThreads: 1\n"),
            Some(5124)
        );
        assert_eq!(rss_kib("Name:\tx\n"), None);
    }

    #[test]
    fn the_own_process_is_there_and_pid_0_is_not() {
        let own = usage(std::process::id()).unwrap();
        assert!(own.rss_kib > 500, "{own:?}");
        assert_eq!(usage(0), None);
    }
}
