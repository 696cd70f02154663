//! TIME_WAIT: whether its ports come back early, and whether there may be too many.

use super::{Case, grown};
use crate::doctor::finding::{Finding, Severity, counted, set};
use crate::doctor::settings::Settings;

const REUSE: &str = "net.ipv4.tcp_tw_reuse";
const TIMESTAMPS: &str = "net.ipv4.tcp_timestamps";
const BUCKETS: &str = "net.ipv4.tcp_max_tw_buckets";
const DELAY: &str = "net.ipv4.tcp_tw_reuse_delay";
/// The kernel's own is 1000.
const DELAY_LONG_MS: u32 = 5000;
/// Percent of the limit.
const NEARLY_FULL: u64 = 80;

pub(super) fn check(case: Case<'_>) -> Vec<Finding> {
    let all = [
        reuse(case.settings),
        timestamps(case.settings),
        buckets(case),
        overflows(case),
    ];
    all.into_iter().flatten().collect()
}

fn reuse(settings: &Settings) -> Option<Finding> {
    let value = settings.tw_reuse?;
    let delay = settings.reuse_delay_ms();
    let what = match settings.tw_reuse_delay_ms {
        Some(delay) => format!("{REUSE} = {value}, {DELAY} = {delay} ms"),
        None => format!("{REUSE} = {value}; the delay is 1 s, fixed in this kernel"),
    };
    let (severity, means) = match value {
        0 => (
            Severity::Notice,
            "A client that closes first has each port back after 60 s only; nothing to mend where servers close \
             first or connections stay open.",
        ),
        _ if settings.timestamps == Some(0) => (
            Severity::Warning,
            "It has no effect: it needs TCP timestamps, and net.ipv4.tcp_timestamps is 0.",
        ),
        _ if delay > DELAY_LONG_MS => (
            Severity::Notice,
            "A port in TIME_WAIT comes back to a client late; the kernel's own delay is 1 s.",
        ),
        1 => (
            Severity::Ok,
            "A client may use a port in TIME_WAIT again after the delay, if its peer has timestamps too.",
        ),
        _ => (
            Severity::Ok,
            "The default: on loopback alone a port in TIME_WAIT may be used again, after the delay; so what works \
             on one host may get error 99 between two.",
        ),
    };
    let mend = match (value, settings.timestamps) {
        (0, _) => set(REUSE, 1),
        (_, Some(0)) => set(TIMESTAMPS, 1),
        _ => set(DELAY, 1000),
    };
    Some(Finding::new("tcp_tw_reuse", severity, what, means).mend(mend))
}

fn timestamps(settings: &Settings) -> Option<Finding> {
    let value = settings.timestamps?;
    let (severity, means) = match value {
        0 => (
            Severity::Warning,
            "Without them late packets can't be told from new ones, no port in TIME_WAIT comes back early, and \
             round trips are measured badly; turning them off gains nothing.",
        ),
        _ => (Severity::Ok, "Needed for using ports in TIME_WAIT again."),
    };
    let what = format!("{TIMESTAMPS} = {value}");
    Some(Finding::new("tcp_timestamps", severity, what, means).mend(set(TIMESTAMPS, 1)))
}

fn buckets(case: Case<'_>) -> Option<Finding> {
    let max = case.settings.tw_buckets?;
    let used = case
        .settings
        .sockstat
        .map_or(0, |sockstat| sockstat.time_wait);
    let percent = used.saturating_mul(100) / max.max(1);
    let severity = match percent {
        ..NEARLY_FULL => Severity::Ok,
        NEARLY_FULL.. => Severity::Warning,
    };
    Some(
        Finding::new(
            "tw_buckets",
            severity,
            format!("{used} sockets in TIME_WAIT, of {max} at most ({BUCKETS})"),
            "Beyond that number connections end without TIME_WAIT, and late packets may get into new ones; one \
             takes about 250 bytes.",
        )
        .mend(set(BUCKETS, max.saturating_mul(2))),
    )
}

fn overflows(case: Case<'_>) -> Option<Finding> {
    let now = case.settings.counters.time_wait_overflows;
    let before = case.before.map(|before| before.time_wait_overflows);
    let (severity, what) = match grown(now, before) {
        Some(more) => (
            Severity::Warning,
            format!(
                "{} just ended without TIME_WAIT, {now} in all",
                counted(more, "connection")
            ),
        ),
        None if now > 0 => (
            Severity::Notice,
            format!(
                "{} ended without TIME_WAIT since the counting began",
                counted(now, "connection")
            ),
        ),
        None => return None,
    };
    let means = "There were more at a time than net.ipv4.tcp_max_tw_buckets allows.";
    let more = case.settings.tw_buckets.unwrap_or(65_536).saturating_mul(2);
    Some(Finding::new("tw_overflows", severity, what, means).mend(set(BUCKETS, more)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{find, severity};
    use super::*;
    use crate::doctor::testing::{Fixture, HOST};
    use crate::doctor::traffic::Traffic;

    const REUSE_FILE: &str = "proc/sys/net/ipv4/tcp_tw_reuse";
    const DELAY_FILE: &str = "proc/sys/net/ipv4/tcp_tw_reuse_delay";
    const TIMESTAMPS_FILE: &str = "proc/sys/net/ipv4/tcp_timestamps";

    #[test]
    fn reuse_is_told_with_what_it_needs() {
        assert_eq!(severity("tcp_tw_reuse", &[]), Severity::Ok);
        assert_eq!(severity("tcp_tw_reuse", &[(REUSE_FILE, "1")]), Severity::Ok);
        assert_eq!(
            severity("tcp_tw_reuse", &[(REUSE_FILE, "0")]),
            Severity::Notice
        );
        let slow = [(DELAY_FILE, "60000")];
        let found = find("tcp_tw_reuse", &slow, &Traffic::default());
        assert_eq!(found[0].severity, Severity::Notice);
        assert!(
            found[0].what.contains("tcp_tw_reuse_delay = 60000 ms"),
            "{}",
            found[0].what
        );
        let files = [(REUSE_FILE, "1"), (TIMESTAMPS_FILE, "0")];
        let found = find("tcp_tw_reuse", &files, &Traffic::default());
        assert_eq!(found[0].severity, Severity::Warning);
        assert_eq!(
            found[0].mend.as_deref(),
            Some("sysctl -w net.ipv4.tcp_timestamps=1")
        );
    }

    #[test]
    fn timestamps_off_is_a_warning() {
        assert_eq!(severity("tcp_timestamps", &[]), Severity::Ok);
        assert_eq!(
            severity("tcp_timestamps", &[(TIMESTAMPS_FILE, "0")]),
            Severity::Warning
        );
    }

    #[test]
    fn many_in_time_wait_are_told_before_there_are_too_many() {
        assert_eq!(severity("tw_buckets", &[]), Severity::Ok);
        let files = [("proc/sys/net/ipv4/tcp_max_tw_buckets", "500")];
        assert_eq!(severity("tw_buckets", &files), Severity::Warning);
    }

    #[test]
    fn overflows_are_worse_while_they_happen() {
        let files = [(
            "proc/net/netstat",
            "TcpExt: TCPTimeWaitOverflow\nTcpExt: 7\n",
        )];
        assert_eq!(severity("tw_overflows", &files), Severity::Notice);
        let settings = Fixture::new(HOST).with(files[0].0, files[0].1).settings();
        let mut before = settings.counters;
        before.time_wait_overflows = 5;
        let case = Case {
            settings: &settings,
            traffic: &Traffic::default(),
            before: Some(before),
            is_asked: false,
        };
        let found = overflows(case).unwrap();
        assert_eq!(found.severity, Severity::Warning);
        assert!(found.what.starts_with("2 connections"), "{}", found.what);
    }
}
