//! What sockets are made of: descriptors, memory, and places in the firewall's table.

use super::{Case, grown};
use crate::doctor::finding::{Finding, Severity, set};
use crate::doctor::settings::{OpenFiles, Settings, Share};

const CONNTRACK: &str = "net.netfilter.nf_conntrack_max";
const FILE_MAX: &str = "fs.file-max";
const TCP_MEM: &str = "net.ipv4.tcp_mem";
const ORPHANS: &str = "net.ipv4.tcp_max_orphans";
/// The soft limit that a login has by default.
const FILES_FEW: u64 = 1024;
const FILES_MANY: u64 = 65_536;
const FILES_HARD_FEW: u64 = 4096;

pub(super) fn check(case: Case<'_>) -> Vec<Finding> {
    let settings = case.settings;
    let all = [
        conntrack(settings),
        file_handles(settings),
        open_files(settings),
        orphans(settings),
        memory(settings),
        aborts(case),
    ];
    all.into_iter().flatten().collect()
}

/// By percent of what there may be.
fn by_share(share: Share, warning: u64, critical: u64) -> Severity {
    match share.percent() {
        percent if percent >= critical => Severity::Critical,
        percent if percent >= warning => Severity::Warning,
        _ => Severity::Ok,
    }
}

fn conntrack(settings: &Settings) -> Option<Finding> {
    let share = settings.conntrack?;
    Some(
        Finding::new(
            "conntrack",
            by_share(share, 80, 95),
            format!("{} of {} connections in the firewall's table ({CONNTRACK})", share.used, share.max),
            "When it is full new connections are dropped without an error: they time out. Closed ones stay in it \
             for two minutes.",
        )
        .mend(set(CONNTRACK, share.max.saturating_mul(2))),
    )
}

fn file_handles(settings: &Settings) -> Option<Finding> {
    let share = settings.file_handles?;
    Some(
        Finding::new(
            "file_handles",
            by_share(share, 75, 90),
            format!(
                "{} of {} files are open on this host (fs.file-nr)",
                share.used, share.max
            ),
            "Beyond that nobody can open a file or a socket (ENFILE).",
        )
        .mend(set(FILE_MAX, share.max.saturating_mul(2))),
    )
}

fn open_files(settings: &Settings) -> Option<Finding> {
    let OpenFiles { soft, hard } = settings.open_files?;
    let is_few = |limit: Option<u64>, few| limit.is_some_and(|limit| limit <= few);
    let severity = match is_few(soft, FILES_FEW) || is_few(hard, FILES_HARD_FEW) {
        true => Severity::Notice,
        false => Severity::Ok,
    };
    let told = |limit: Option<u64>| {
        limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
    };
    Some(
        Finding::new(
            "open_files",
            severity,
            format!("a process started here may open {} files, and {} if it asks", told(soft), told(hard)),
            "Each connection is one (EMFILE beyond); services have a limit of their own: LimitNOFILE= in the unit.",
        )
        .mend(match is_few(hard, FILES_MANY - 1) {
            true => format!("prlimit --pid $$ --nofile={FILES_MANY}"),
            false => format!("ulimit -Sn {FILES_MANY}"),
        }),
    )
}

fn orphans(settings: &Settings) -> Option<Finding> {
    let share = Share {
        used: settings.sockstat?.orphans,
        max: settings.orphans_max?,
    };
    Some(
        Finding::new(
            "orphans",
            by_share(share, 50, 90),
            format!("{} of {} orphaned sockets ({ORPHANS})", share.used, share.max),
            "Closed by their process while data or the end was still to be acked; beyond that number the kernel \
             resets them, and what they had to send is lost.",
        )
        .mend(set(ORPHANS, share.max.saturating_mul(2))),
    )
}

fn memory(settings: &Settings) -> Option<Finding> {
    let [_, pressure, high] = settings.tcp_mem?;
    let used = settings.sockstat?.memory_pages;
    let severity = match used {
        _ if used >= high => Severity::Critical,
        _ if used >= pressure => Severity::Warning,
        _ => Severity::Ok,
    };
    let double = format!("\"{} {} {}\"", pressure, high, high.saturating_mul(2));
    Some(
        Finding::new(
            "tcp_memory",
            severity,
            format!("TCP holds {used} pages of memory; it economises from {pressure} on, and stops at {high} ({TCP_MEM})"),
            "Near the first its windows shrink and everything slows down; at the second connections are ended.",
        )
        .mend(set(TCP_MEM, double)),
    )
}

fn aborts(case: Case<'_>) -> Option<Finding> {
    let now = case.settings.counters.memory_aborts;
    let before = case.before.map(|before| before.memory_aborts);
    let (severity, what) = match grown(now, before) {
        Some(more) => (
            Severity::Critical,
            format!("{more} connections have just been ended for want of memory, {now} in all"),
        ),
        None if now > 0 => (
            Severity::Notice,
            format!(
                "{now} connections were ended for want of memory or because there were too many orphans"
            ),
        ),
        None => return None,
    };
    Some(Finding::new(
        "memory_aborts",
        severity,
        what,
        "Counted since the boot (TCPAbortOnMemory).",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{find, severity};
    use super::*;
    use crate::doctor::traffic::Traffic;

    #[test]
    fn a_table_that_fills_up_is_told_in_time() {
        let with = |count| {
            severity(
                "conntrack",
                &[("proc/sys/net/netfilter/nf_conntrack_count", count)],
            )
        };
        assert_eq!(with("799"), Severity::Ok);
        assert_eq!(with("800"), Severity::Warning);
        assert_eq!(with("950"), Severity::Critical);
    }

    #[test]
    fn files_run_out_for_all_or_for_one() {
        let with = |text| severity("file_handles", &[("proc/sys/fs/file-nr", text)]);
        assert_eq!(with("10 0 100"), Severity::Ok);
        assert_eq!(with("80 0 100"), Severity::Warning);
        assert_eq!(with("95 0 100"), Severity::Critical);
        let limits = (
            "proc/self/limits",
            "Max open files   1024   524288   files\n",
        );
        let found = find("open_files", &[limits], &Traffic::default());
        assert_eq!(found[0].severity, Severity::Notice);
        assert_eq!(
            found[0].what,
            "a process started here may open 1024 files, and 524288 if it asks"
        );
        assert_eq!(found[0].mend.as_deref(), Some("ulimit -Sn 65536"));
    }

    #[test]
    fn orphans_and_memory_have_limits() {
        let with = |id, orphans: u32, pages: u32| {
            let text = format!("TCP: inuse 5 orphan {orphans} tw 0 alloc 5 mem {pages}\n");
            severity(id, &[("proc/net/sockstat", &text)])
        };
        assert_eq!(with("orphans", 499, 0), Severity::Ok);
        assert_eq!(with("orphans", 500, 0), Severity::Warning);
        assert_eq!(with("orphans", 900, 0), Severity::Critical);
        assert_eq!(with("tcp_memory", 0, 199), Severity::Ok);
        assert_eq!(with("tcp_memory", 0, 200), Severity::Warning);
        assert_eq!(with("tcp_memory", 0, 300), Severity::Critical);
    }

    #[test]
    fn ended_for_want_of_memory() {
        let file = ("proc/net/netstat", "TcpExt: TCPAbortOnMemory\nTcpExt: 2\n");
        assert_eq!(severity("memory_aborts", &[file]), Severity::Notice);
        assert!(find("memory_aborts", &[], &Traffic::default()).is_empty());
    }
}
