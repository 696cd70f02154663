//! What a host is set to, and what its kernel has counted: /proc and sysctl.d.

use std::collections::HashMap;

use rollcall_os::diag::ports::{LocalPorts, PortRange, port_list};

use super::root::Root;
use super::sysctl_files::{self, Line};

/// Every figure that is not about single sockets. What this kernel or namespace does not tell is
/// `None`.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) kernel: String,
    pub(super) ports: LocalPorts,
    /// The reserved ports as sysctl(8) prints them.
    pub(super) reserved: String,
    pub(super) reserved_ranges: Vec<PortRange>,
    pub(super) tw_reuse: Option<u8>,
    /// Milliseconds after which a port in TIME_WAIT may be used again, where that is allowed.
    pub(super) tw_reuse_delay_ms: Option<u32>,
    pub(super) timestamps: Option<u8>,
    /// Linux before 4.12 only.
    pub(super) tw_recycle: Option<u8>,
    pub(super) fin_timeout_s: Option<u32>,
    pub(super) somaxconn: Option<u32>,
    pub(super) syn_backlog: Option<u32>,
    pub(super) syncookies: Option<u8>,
    pub(super) tw_buckets: Option<u64>,
    /// Places in the table of connections; negative in a namespace that shares that of the host
    /// (Linux 6.1).
    pub(super) ehash_entries: Option<i64>,
    pub(super) orphans_max: Option<u64>,
    /// Pages: low, pressure, high.
    pub(super) tcp_mem: Option<[u64; 3]>,
    pub(super) conntrack: Option<Share>,
    pub(super) file_handles: Option<Share>,
    pub(super) open_files: Option<OpenFiles>,
    pub(super) sockstat: Option<Sockstat>,
    pub(super) counters: Counters,
    /// Lines of sysctl.conf and sysctl.d about TCP that are in force at boot.
    pub(super) lines: Vec<Line>,
}

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) used: u64,
    pub(super) max: u64,
}

impl Share {
    /// In percent, rounded down.
    pub(super) fn percent(self) -> u64 {
        self.used.saturating_mul(100) / self.max.max(1)
    }
}

/// RLIMIT_NOFILE of this process; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenFiles {
    pub(super) soft: Option<u64>,
    pub(super) hard: Option<u64>,
}

/// The TCP line of /proc/net/sockstat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sockstat {
    pub(super) orphans: u64,
    pub(super) time_wait: u64,
    pub(super) memory_pages: u64,
}

/// What has gone wrong since the boot, or since the network namespace was made (/proc/net/netstat).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Connections that found the queue of their listener full.
    pub(super) listen_overflows: u64,
    /// Those, and others that a listener could not take.
    pub(super) listen_drops: u64,
    /// Ends of connections that got no TIME_WAIT because there were too many.
    pub(super) time_wait_overflows: u64,
    /// Connections that were ended for want of memory.
    pub(super) memory_aborts: u64,
}

/// Why a host can't be looked at.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    /// The one thing without which nothing can be said.
    #[error("can't read net.ipv4.ip_local_port_range: is /proc mounted, and this Linux?")]
    NoRange,
}

impl Settings {
    /// What `root` says now.
    ///
    /// # Errors
    /// [`SettingsError`]
    pub(super) fn read(root: &Root) -> Result<Self, SettingsError> {
        let range = root.sysctl("net.ipv4.ip_local_port_range");
        let range: Option<PortRange> = range.and_then(|text| text.parse().ok());
        let range = range.ok_or(SettingsError::NoRange)?;
        let reserved = root
            .sysctl("net.ipv4.ip_local_reserved_ports")
            .unwrap_or_default();
        let reserved_ranges = port_list(&reserved).unwrap_or_default();
        let netfilter = |name: &str| root.number(&format!("net.netfilter.nf_conntrack_{name}"));
        let share = |used: Option<u64>, max: Option<u64>| {
            Some(Share {
                used: used?,
                max: max?,
            })
        };
        Ok(Self {
            kernel: root.sysctl("kernel.osrelease").unwrap_or_default(),
            ports: LocalPorts::new(range, reserved_ranges.clone()),
            reserved,
            reserved_ranges,
            tw_reuse: root.number("net.ipv4.tcp_tw_reuse"),
            tw_reuse_delay_ms: root.number("net.ipv4.tcp_tw_reuse_delay"),
            timestamps: root.number("net.ipv4.tcp_timestamps"),
            tw_recycle: root.number("net.ipv4.tcp_tw_recycle"),
            fin_timeout_s: root.number("net.ipv4.tcp_fin_timeout"),
            somaxconn: root.number("net.core.somaxconn"),
            syn_backlog: root.number("net.ipv4.tcp_max_syn_backlog"),
            syncookies: root.number("net.ipv4.tcp_syncookies"),
            tw_buckets: root.number("net.ipv4.tcp_max_tw_buckets"),
            ehash_entries: root.number("net.ipv4.tcp_ehash_entries"),
            orphans_max: root.number("net.ipv4.tcp_max_orphans"),
            tcp_mem: root
                .sysctl("net.ipv4.tcp_mem")
                .and_then(|text| three(&text)),
            conntrack: share(netfilter("count"), netfilter("max")),
            file_handles: root
                .sysctl("fs.file-nr")
                .and_then(|text| file_handles(&text)),
            open_files: root
                .text("proc/self/limits")
                .and_then(|text| open_files(&text)),
            sockstat: root
                .text("proc/net/sockstat")
                .and_then(|text| sockstat(&text)),
            counters: root
                .text("proc/net/netstat")
                .map_or_else(Counters::default, |text| counters(&text)),
            lines: sysctl_files::read(root),
        })
    }

    /// How long a port in TIME_WAIT is kept from a client that may use it again: 1 s where the kernel
    /// has no parameter for it.
    pub(super) fn reuse_delay_ms(&self) -> u32 {
        self.tw_reuse_delay_ms.unwrap_or(1000)
    }

    /// Whether a client may use a port in TIME_WAIT again for a destination of this kind.
    pub(super) fn reuses(&self, is_loopback: bool) -> bool {
        let is_on = match self.tw_reuse {
            Some(1) => true,
            Some(2) => is_loopback,
            _ => false,
        };
        is_on && self.timestamps != Some(0)
    }

    /// The kernel's own value of net.ipv4.tcp_max_tw_buckets: half of the places in its table of
    /// connections (`tcp_set_hashinfo` in net/ipv4/tcp_ipv4.c).
    pub(super) fn tw_buckets_default(&self) -> Option<u64> {
        self.ehash_entries.map(|entries| entries.unsigned_abs() / 2)
    }
}

fn three(text: &str) -> Option<[u64; 3]> {
    let numbers: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
    numbers.try_into().ok()
}

/// Allocated, free (always 0), maximum (proc_sys_fs(5)).
fn file_handles(text: &str) -> Option<Share> {
    let [used, _, max] = three(text)?;
    Some(Share { used, max })
}

/// "Max open files   1024   524288   files"
fn open_files(text: &str) -> Option<OpenFiles> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_whitespace();
    let mut next = || words.next().map(|word| word.parse().ok());
    Some(OpenFiles {
        soft: next()?,
        hard: next()?,
    })
}

/// "TCP: inuse 5 orphan 0 tw 487 alloc 5 mem 404"
fn sockstat(text: &str) -> Option<Sockstat> {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let words: Vec<_> = line.split_whitespace().collect();
    let value = |name: &str| {
        let mut pairs = words.chunks_exact(2);
        pairs.find(|pair| pair[0] == name)?[1].parse().ok()
    };
    Some(Sockstat {
        orphans: value("orphan")?,
        time_wait: value("tw")?,
        memory_pages: value("mem")?,
    })
}

/// Two lines for each group: names, then numbers.
fn counters(text: &str) -> Counters {
    let lines: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("TcpExt:"))
        .collect();
    let [names, numbers, ..] = lines.as_slice() else {
        return Counters::default();
    };
    let values: HashMap<_, _> = names
        .split_whitespace()
        .zip(numbers.split_whitespace())
        .collect();
    let value = |name: &str| {
        values
            .get(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    Counters {
        listen_overflows: value("ListenOverflows"),
        listen_drops: value("ListenDrops"),
        time_wait_overflows: value("TCPTimeWaitOverflow"),
        memory_aborts: value("TCPAbortOnMemory"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::{Fixture, HOST};

    #[test]
    fn a_host_is_read() {
        let settings = Fixture::new(HOST).settings();
        assert_eq!(settings.kernel, "6.18.44");
        assert_eq!(settings.ports.usable(), 28_232 - 3);
        assert_eq!(settings.reserved, "40000,50000-50001");
        assert_eq!(
            (settings.tw_reuse, settings.tw_reuse_delay_ms),
            (Some(2), Some(1000))
        );
        assert_eq!(settings.tw_recycle, None);
        assert_eq!(settings.tcp_mem, Some([100, 200, 300]));
        assert_eq!(
            settings.conntrack,
            Some(Share {
                used: 10,
                max: 1000
            })
        );
        assert_eq!(
            settings.file_handles,
            Some(Share {
                used: 560,
                max: 100_000
            })
        );
        assert_eq!(
            settings.open_files,
            Some(OpenFiles {
                soft: Some(20_000),
                hard: None
            })
        );
        let sockstat = settings.sockstat.unwrap();
        assert_eq!(
            (sockstat.orphans, sockstat.time_wait, sockstat.memory_pages),
            (1, 487, 40)
        );
        assert_eq!(settings.tw_buckets_default(), Some(131_072));
    }

    #[test]
    fn what_is_not_there_is_not_told() {
        let fixture = Fixture::new(&[("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")]);
        let settings = fixture.settings();
        assert_eq!(settings.ports.usable(), 28_232);
        assert!(settings.tw_reuse.is_none() && settings.sockstat.is_none());
        assert_eq!(settings.counters, Counters::default());
        assert!(Settings::read(&Fixture::new(&[]).root()).is_err());
    }

    #[test]
    fn reuse_takes_the_switch_and_timestamps() {
        let with = |reuse: &str, timestamps: &str| {
            let settings = Fixture::new(HOST)
                .with("proc/sys/net/ipv4/tcp_tw_reuse", reuse)
                .with("proc/sys/net/ipv4/tcp_timestamps", timestamps)
                .settings();
            (settings.reuses(true), settings.reuses(false))
        };
        assert_eq!(with("0", "1"), (false, false));
        assert_eq!(with("1", "1"), (true, true));
        assert_eq!(with("2", "1"), (true, false));
        assert_eq!(with("1", "0"), (false, false));
    }
}
