//! Load averages, judged per processor.

use procfs_core::{FromRead, LoadAverage};

use super::ProbeError;
use crate::check::finding::{Finding, Thresholds, metric};

/// Reads the text of /proc/loadavg (proc(5)).
pub(super) fn parse(text: &[u8]) -> Result<LoadAverage, ProbeError> {
    LoadAverage::from_read(text).map_err(|error| ProbeError::parse("/proc/loadavg", &error))
}

/// Judges the load of a host whose processors are those of `online`, the text of
/// /sys/devices/system/cpu/online.
pub(super) fn judge(thresholds: &Thresholds, load: &LoadAverage, online: &[u8]) -> Finding {
    let processors = count_processors(&String::from_utf8_lossy(online));
    let per_processor = hundredths(load.five) / f64::from(processors);
    Finding {
        state: thresholds.judge(per_processor),
        text: format!(
            "{:.2}, {:.2}, {:.2} over 1, 5 and 15 minutes; {per_processor:.2} per processor of {processors}",
            load.one, load.five, load.fifteen
        ),
        metrics: vec![
            metric("load1", hundredths(load.one), ""),
            metric("load5", hundredths(load.five), ""),
            metric("load15", hundredths(load.fifteen), ""),
        ],
    }
}

/// The kernel gives two decimals; as an f32 made longer they would show seven wrong ones.
fn hundredths(value: f32) -> f64 {
    (f64::from(value) * 100.0).round() / 100.0
}

/// Counts the processors of a list such as `0-3,6` (cpuset(7)); at least 1.
fn count_processors(list: &str) -> u32 {
    let count = list
        .trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .fold(0_u32, u32::saturating_add);
    count.max(1)
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::wire::Health;

    use super::*;

    #[test]
    fn processors_are_counted() {
        for (list, count) in [
            ("0\n", 1),
            ("0-1\n", 2),
            ("0-3,6,8-9", 7),
            ("", 1),
            ("3-1", 1),
            ("0-4294967295", 1),
        ] {
            assert_eq!(count_processors(list), count, "{list}");
        }
    }

    #[test]
    fn the_five_minutes_per_processor_are_judged() {
        let load = parse(b"0.50 8.20 3.07 2/613 12345\n").unwrap();
        let thresholds = Thresholds {
            warning: Some(2.0),
            critical: Some(4.0),
        };
        let found = judge(&thresholds, &load, b"0-3\n");
        assert_eq!(found.state, Health::Warning);
        assert_eq!(
            found.text,
            "0.50, 8.20, 3.07 over 1, 5 and 15 minutes; 2.05 per processor of 4"
        );
        assert_eq!(found.metrics[1], metric("load5", 8.2, ""));
        assert_eq!(judge(&thresholds, &load, b"0-1\n").state, Health::Critical);
        assert_eq!(judge(&thresholds, &load, b"0-7\n").state, Health::Ok);
    }

    #[test]
    fn garbage_is_an_error_that_names_its_source() {
        let error = parse(b"what").unwrap_err().to_string();
        assert!(error.contains("/proc/loadavg"), "{error}");
    }
}
