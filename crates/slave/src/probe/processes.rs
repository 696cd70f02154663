//! Processes, and how much of the room for process ids they take.

use std::fs;

use procfs_core::LoadAverage;
use rollcall_protocol::Moment;

use super::{ProbeError, RARELY, percent};
use crate::check::finding::{Finding, Thresholds, metric};

/// The number of processes as last counted. Counting walks through all of /proc, which costs more
/// than all other probes together; the threads, which are what is judged, are told at once.
#[derive(Default)]
pub(super) struct Counted(Option<(Moment, u64)>);

impl Counted {
    pub(super) fn sample(
        &mut self,
        thresholds: &Thresholds,
        load: &LoadAverage,
        pid_max: &[u8],
        now: Moment,
    ) -> Result<Finding, ProbeError> {
        let pid_max = parse_pid_max(pid_max)?;
        let processes = match self.0 {
            Some((when, processes)) if now.saturating_since(when) < RARELY => processes,
            _ => {
                let processes = count()?;
                self.0 = Some((now, processes));
                processes
            }
        };
        // All threads of the host, each of which takes a process id.
        Ok(judge(thresholds, processes, load.max.into(), pid_max))
    }
}

/// Counts the processes that this one may see: where /proc is mounted with `hidepid`, an
/// unprivileged agent counts its own only.
fn count() -> Result<u64, ProbeError> {
    let is_process = |name: &[u8]| name.first().is_some_and(u8::is_ascii_digit);
    let mut count = 0;
    for entry in fs::read_dir("/proc").map_err(|error| ProbeError::read("/proc", error))? {
        let entry = entry.map_err(|error| ProbeError::read("/proc", error))?;
        count += u64::from(is_process(entry.file_name().as_encoded_bytes()));
    }
    Ok(count)
}

fn parse_pid_max(text: &[u8]) -> Result<u64, ProbeError> {
    String::from_utf8_lossy(text)
        .trim()
        .parse()
        .map_err(|error| ProbeError::parse("/proc/sys/kernel/pid_max", &error))
}

fn judge(thresholds: &Thresholds, processes: u64, threads: u64, pid_max: u64) -> Finding {
    let used = percent(threads, pid_max);
    Finding {
        state: thresholds.judge(used),
        text: format!("{processes} processes, {threads} threads; {used:.1}% of {pid_max} ids used"),
        metrics: vec![
            metric("processes", processes as f64, ""),
            metric("threads", threads as f64, ""),
            metric("used", used, "%"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rollcall_protocol::wire::Health;

    use super::*;

    #[test]
    fn the_ids_in_use_are_judged() {
        let thresholds = Thresholds {
            warning: Some(80.0),
            critical: Some(90.0),
        };
        let pid_max = parse_pid_max(b"32768\n").unwrap();
        let found = judge(&thresholds, 213, 26_215, pid_max);
        assert_eq!(found.state, Health::Warning);
        assert_eq!(
            found.text,
            "213 processes, 26215 threads; 80.0% of 32768 ids used"
        );
    }

    #[test]
    fn processes_are_counted_rarely() {
        let load = super::super::load::parse(b"0.00 0.00 0.00 1/613 1\n").unwrap();
        let at = |seconds| Moment::new(Duration::from_secs(seconds));
        let mut counted = Counted(Some((at(100), 12_345)));
        let mut text = |now| {
            counted
                .sample(&Thresholds::default(), &load, b"32768\n", now)
                .unwrap()
                .text
        };
        assert!(text(at(159)).starts_with("12345 processes, 613 threads"));
        assert!(!text(at(160)).starts_with("12345 "));
    }

    #[test]
    fn this_process_is_among_those_counted() {
        assert!(count().unwrap() >= 1);
    }
}
