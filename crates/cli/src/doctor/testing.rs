//! A host for tests: its files in a folder, its sockets by hand.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use rollcall_os::diag::owner::{Holder, Owner};
use rollcall_os::diag::sockets::{Socket, TcpState};

use super::root::Root;
use super::settings::Settings;

/// Files of a host on which all is well.
pub(super) const HOST: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "6.18.44\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    (
        "proc/sys/net/ipv4/ip_local_reserved_ports",
        "40000,50000-50001\n",
    ),
    ("proc/sys/net/ipv4/tcp_tw_reuse", "2\n"),
    ("proc/sys/net/ipv4/tcp_tw_reuse_delay", "1000\n"),
    ("proc/sys/net/ipv4/tcp_timestamps", "1\n"),
    ("proc/sys/net/ipv4/tcp_fin_timeout", "60\n"),
    ("proc/sys/net/core/somaxconn", "4096\n"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "2048\n"),
    ("proc/sys/net/ipv4/tcp_syncookies", "1\n"),
    ("proc/sys/net/ipv4/tcp_max_tw_buckets", "131072\n"),
    ("proc/sys/net/ipv4/tcp_ehash_entries", "262144\n"),
    ("proc/sys/net/ipv4/tcp_max_orphans", "1000\n"),
    ("proc/sys/net/ipv4/tcp_mem", "100\t200\t300\n"),
    ("proc/sys/net/netfilter/nf_conntrack_count", "10\n"),
    ("proc/sys/net/netfilter/nf_conntrack_max", "1000\n"),
    ("proc/sys/fs/file-nr", "560\t0\t100000\n"),
    (
        "proc/self/limits",
        "Limit  Soft Limit  Hard Limit  Units\nMax open files            20000    unlimited    files\n",
    ),
    (
        "proc/net/sockstat",
        "sockets: used 26\nTCP: inuse 5 orphan 1 tw 487 alloc 5 mem 40\n",
    ),
    (
        "proc/net/netstat",
        "TcpExt: TW ListenOverflows ListenDrops TCPTimeWaitOverflow TCPAbortOnMemory\nTcpExt: 9 0 0 0 0\n",
    ),
];

/// A folder that is laid out like a host.
pub(super) struct Fixture(tempfile::TempDir);

impl Fixture {
    pub(super) fn new(files: &[(&str, &str)]) -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        files
            .iter()
            .fold(fixture, |fixture, (path, text)| fixture.with(path, text))
    }

    /// With this file, or another text in it.
    pub(super) fn with(self, path: &str, text: &str) -> Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    pub(super) fn root(&self) -> Root {
        Root::at(self.0.path())
    }

    pub(super) fn settings(&self) -> Settings {
        Settings::read(&self.root()).unwrap()
    }
}

/// A socket in `state` from `local` to `remote`, which has 30 s left if that is TIME_WAIT.
pub(super) fn socket(state: TcpState, local: &str, remote: &str) -> Socket {
    let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
    let is_time_wait = state == TcpState::TimeWait;
    Socket {
        state,
        local: address(local),
        remote: address(remote),
        inode: if is_time_wait { 0 } else { 1 },
        uid: 0,
        expires_ms: is_time_wait.then_some(30_000),
        receive_queue: 0,
        send_queue: 0,
        interface: 0,
        ipv6_only: false,
        cgroup: None,
    }
}

/// The same, open in a process.
pub(super) fn held(state: TcpState, local: &str, remote: &str, command: &str) -> Holder {
    Holder {
        socket: socket(state, local, remote),
        owner: Some(Owner {
            pid: 812,
            command: command.to_owned(),
            user: "web".to_owned(),
            unit: Some("web.service".to_owned()),
            since_ms: 0,
            others: 0,
        }),
        is_likely: false,
        user: Some("web".to_owned()),
        unit: Some("web.service".to_owned()),
        is_hidden: false,
    }
}
