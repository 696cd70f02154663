//! Memory and swap.

use bytesize::ByteSize;
use procfs_core::{FromBufRead, Meminfo};
use rollcall_protocol::wire::Health;

use super::{ProbeError, percent};
use crate::check::finding::{Finding, Thresholds, metric};

/// Reads the text of /proc/meminfo (proc(5)); sizes become bytes.
pub(super) fn parse(text: &[u8]) -> Result<Meminfo, ProbeError> {
    Meminfo::from_buf_read(text).map_err(|error| ProbeError::parse("/proc/meminfo", &error))
}

pub(super) fn judge_memory(thresholds: &Thresholds, memory: &Meminfo) -> Finding {
    let total = memory.mem_total;
    // Kernels before 3.14 do not say what is available.
    let available = memory.mem_available.unwrap_or_else(|| {
        memory
            .mem_free
            .saturating_add(memory.buffers)
            .saturating_add(memory.cached)
    });
    let used = percent(total.saturating_sub(available), total);
    Finding {
        state: thresholds.judge(used),
        text: format!(
            "{used:.1}% of {} used, {} available",
            ByteSize(total),
            ByteSize(available)
        ),
        metrics: vec![
            metric("used", used, "%"),
            metric("available", available as f64, "B"),
            metric("total", total as f64, "B"),
        ],
    }
}

pub(super) fn judge_swap(thresholds: &Thresholds, memory: &Meminfo) -> Finding {
    let total = memory.swap_total;
    if total == 0 {
        return Finding {
            state: Health::Ok,
            text: "no swap".to_owned(),
            metrics: vec![metric("total", 0.0, "B")],
        };
    }
    let used = percent(total.saturating_sub(memory.swap_free), total);
    Finding {
        state: thresholds.judge(used),
        text: format!(
            "{used:.1}% of {} used, {} free",
            ByteSize(total),
            ByteSize(memory.swap_free)
        ),
        metrics: vec![
            metric("used", used, "%"),
            metric("free", memory.swap_free as f64, "B"),
            metric("total", total as f64, "B"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &[u8] = b"MemTotal:        2048000 kB
MemFree:           99000 kB
MemAvailable:     204800 kB
Buffers:           10000 kB
Cached:           120000 kB
SwapCached:            0 kB
Active:           900000 kB
Inactive:         400000 kB
Dirty:                52 kB
Writeback:             0 kB
Mapped:           100000 kB
Slab:              80000 kB
SwapTotal:       1048576 kB
SwapFree:         786432 kB
Committed_AS:    1000000 kB
VmallocTotal:   34359738367 kB
VmallocUsed:       25000 kB
VmallocChunk:          0 kB
";

    fn with(line: &str, instead: &str) -> Meminfo {
        let text = String::from_utf8(MEMINFO.to_vec()).unwrap();
        assert!(text.contains(line));
        parse(text.replace(line, instead).as_bytes()).unwrap()
    }

    #[test]
    fn what_is_available_is_not_used() {
        let thresholds = Thresholds {
            warning: Some(90.0),
            critical: Some(95.0),
        };
        let found = judge_memory(&thresholds, &parse(MEMINFO).unwrap());
        assert_eq!(found.state, Health::Warning);
        assert_eq!(found.text, "90.0% of 2.0 GiB used, 200.0 MiB available");
        assert_eq!(
            found.metrics[1],
            metric("available", 204_800.0 * 1024.0, "B")
        );
    }

    #[test]
    fn an_old_kernel_says_nothing_of_what_is_available() {
        let memory = with("MemAvailable:     204800 kB\n", "");
        let found = judge_memory(&Thresholds::default(), &memory);
        assert_eq!(
            found.metrics[1],
            metric("available", 229_000.0 * 1024.0, "B")
        );
    }

    #[test]
    fn swap_is_judged_if_there_is_any() {
        let thresholds = Thresholds {
            warning: Some(10.0),
            critical: Some(25.0),
        };
        let found = judge_swap(&thresholds, &parse(MEMINFO).unwrap());
        assert_eq!(found.state, Health::Critical);
        assert_eq!(found.text, "25.0% of 1.0 GiB used, 768.0 MiB free");
        let none = judge_swap(
            &thresholds,
            &with("SwapTotal:       1048576", "SwapTotal:             0"),
        );
        assert_eq!((none.state, none.text.as_str()), (Health::Ok, "no swap"));
    }
}
