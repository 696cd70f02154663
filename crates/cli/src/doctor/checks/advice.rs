//! Advice against TIME_WAIT that is repeated on the web and is wrong, where somebody has taken it.

use super::Case;
use crate::doctor::finding::{Finding, Severity, set};
use crate::doctor::settings::Settings;
use crate::doctor::sysctl_files::Line;

const RECYCLE: &str = "net.ipv4.tcp_tw_recycle";
const BUCKETS: &str = "net.ipv4.tcp_max_tw_buckets";
const FIN_TIMEOUT: &str = "net.ipv4.tcp_fin_timeout";
/// The kernel's own (TCP_FIN_TIMEOUT), in seconds.
const FIN_TIMEOUT_DEFAULT_S: u32 = 60;
/// Fewer is no default of any host with more than 256 MiB.
const BUCKETS_SMALL: u64 = 4096;

pub(super) fn check(case: Case<'_>) -> Vec<Finding> {
    let settings = case.settings;
    let all = [recycle(settings), buckets(settings), fin_timeout(settings)];
    all.into_iter().flatten().collect()
}

/// The last line that sets it: that one counts.
fn line<'a>(settings: &'a Settings, key: &str) -> Option<&'a Line> {
    settings.lines.iter().rfind(|line| line.key == key)
}

/// The command that takes a parameter out of its file.
fn remove(line: &Line) -> String {
    format!("sed -i '{}d' {}", line.number, line.file.display())
}

fn recycle(settings: &Settings) -> Option<Finding> {
    if settings.tw_recycle.is_some_and(|value| value != 0) {
        return Some(
            Finding::new(
                "tcp_tw_recycle",
                Severity::Critical,
                format!("{RECYCLE} is on"),
                "Of several clients behind one address (NAT) some can't connect, now and then and without an \
                 error: their timestamps differ.",
            )
            .mend(set(RECYCLE, 0)),
        );
    }
    let line = line(settings, RECYCLE)?;
    let means = match settings.tw_recycle {
        Some(_) => "At the next boot it is on, and cuts off clients behind NAT.",
        None => {
            "It cut off clients behind NAT and is gone since Linux 4.12: here the line does nothing, and whoever \
             relies on it does so in vain."
        }
    };
    let what = format!("{RECYCLE} = {} in {}", line.value, line.place());
    let severity = Severity::Warning;
    Some(Finding::new("tcp_tw_recycle", severity, what, means).mend(remove(line)))
}

fn buckets(settings: &Settings) -> Option<Finding> {
    let value = settings.tw_buckets?;
    let line = line(settings, BUCKETS);
    let default = settings.tw_buckets_default();
    let is_lowered = match default {
        Some(default) => value < default,
        None => value < BUCKETS_SMALL && line.is_some(),
    };
    if !is_lowered {
        return None;
    }
    let place = line.map_or_else(String::new, |line| format!(", by {}", line.place()));
    let kernel = default.map_or_else(String::new, |default| {
        format!(" from the kernel's {default}")
    });
    let mend = default.map_or_else(
        || format!("take it out of its file and boot: the kernel finds its own {BUCKETS}"),
        |default| set(BUCKETS, default),
    );
    Some(
        Finding::new(
            "tw_buckets_lowered",
            Severity::Warning,
            format!("{BUCKETS} was lowered{kernel} to {value}{place}"),
            "It makes TIME_WAIT disappear by doing without it: late packets of an old connection may get into a \
             new one, for a saving of 250 bytes each.",
        )
        .mend(mend),
    )
}

fn fin_timeout(settings: &Settings) -> Option<Finding> {
    let is_default = |line: &&Line| line.value == FIN_TIMEOUT_DEFAULT_S.to_string();
    let line = line(settings, FIN_TIMEOUT).filter(|line| !is_default(line));
    let live = settings
        .fin_timeout_s
        .filter(|value| *value < FIN_TIMEOUT_DEFAULT_S);
    let what = match (line, live) {
        (Some(line), _) => format!("{FIN_TIMEOUT} = {} in {}", line.value, line.place()),
        (None, Some(value)) => format!("{FIN_TIMEOUT} = {value}"),
        (None, None) => return None,
    };
    let mend = line.map_or_else(|| set(FIN_TIMEOUT, FIN_TIMEOUT_DEFAULT_S), remove);
    Some(
        Finding::new(
            "tcp_fin_timeout",
            Severity::Warning,
            what,
            "It is not the time of TIME_WAIT, which is always 60 s, but that of FIN_WAIT_2 without a process: no \
             port comes back sooner by it.",
        )
        .mend(mend),
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{find, severity};
    use super::*;
    use crate::doctor::traffic::Traffic;

    const FILE: &str = "etc/sysctl.d/90-tuning.conf";

    fn none(id: &str, files: &[(&str, &str)]) -> bool {
        find(id, files, &Traffic::default()).is_empty()
    }

    #[test]
    fn recycling_is_told_in_a_file_and_worse_where_it_works() {
        assert!(none("tcp_tw_recycle", &[]));
        let files = [(FILE, "# faster\nnet.ipv4.tcp_tw_recycle = 1\n")];
        let found = find("tcp_tw_recycle", &files, &Traffic::default());
        assert_eq!(found[0].severity, Severity::Warning);
        assert_eq!(
            found[0].what,
            "net.ipv4.tcp_tw_recycle = 1 in /etc/sysctl.d/90-tuning.conf, line 2"
        );
        assert_eq!(
            found[0].mend.as_deref(),
            Some("sed -i '2d' /etc/sysctl.d/90-tuning.conf")
        );
        let on = ("proc/sys/net/ipv4/tcp_tw_recycle", "1");
        assert_eq!(severity("tcp_tw_recycle", &[on]), Severity::Critical);
        assert!(none(
            "tcp_tw_recycle",
            &[("proc/sys/net/ipv4/tcp_tw_recycle", "0")]
        ));
    }

    #[test]
    fn a_lowered_limit_is_told_with_the_kernels_own() {
        let live = ("proc/sys/net/ipv4/tcp_max_tw_buckets", "5000");
        let file = ("etc/sysctl.conf", "net.ipv4.tcp_max_tw_buckets=5000");
        assert!(none("tw_buckets_lowered", &[]));
        let found = find("tw_buckets_lowered", &[live, file], &Traffic::default());
        assert_eq!(found[0].severity, Severity::Warning);
        assert_eq!(
            found[0].what,
            "net.ipv4.tcp_max_tw_buckets was lowered from the kernel's 131072 to 5000, by /etc/sysctl.conf, line 1"
        );
        // In a namespace that shares the host's table the number is negative.
        let shared = ("proc/sys/net/ipv4/tcp_ehash_entries", "-8192");
        assert!(none("tw_buckets_lowered", &[live, shared]));
        // A kernel that does not tell its own: only what is far too low counts.
        let unknown = ("proc/sys/net/ipv4/tcp_ehash_entries", "?");
        assert!(none("tw_buckets_lowered", &[live, file, unknown]));
        let low = ("proc/sys/net/ipv4/tcp_max_tw_buckets", "100");
        assert_eq!(
            severity("tw_buckets_lowered", &[low, file, unknown]),
            Severity::Warning
        );
    }

    #[test]
    fn the_wrong_timeout_is_told_in_a_file_and_in_force() {
        assert!(none("tcp_fin_timeout", &[]));
        let file = (FILE, "net/ipv4/tcp_fin_timeout=15");
        assert_eq!(severity("tcp_fin_timeout", &[file]), Severity::Warning);
        assert!(none(
            "tcp_fin_timeout",
            &[(FILE, "net.ipv4.tcp_fin_timeout=60")]
        ));
        let live = ("proc/sys/net/ipv4/tcp_fin_timeout", "15");
        let found = find("tcp_fin_timeout", &[live], &Traffic::default());
        assert_eq!(
            found[0].mend.as_deref(),
            Some("sysctl -w net.ipv4.tcp_fin_timeout=60")
        );
    }

    #[test]
    fn of_two_lines_the_last_one_counts() {
        let files = [
            (FILE, "net.ipv4.tcp_fin_timeout=15"),
            ("etc/sysctl.d/99-late.conf", "net.ipv4.tcp_fin_timeout=30"),
        ];
        let found = find("tcp_fin_timeout", &files, &Traffic::default());
        assert!(
            found[0].what.contains("= 30 in /etc/sysctl.d/99-late.conf"),
            "{}",
            found[0].what
        );
    }
}
