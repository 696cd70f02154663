//! Who has a socket open: process, command, user, systemd unit, since when.
//!
//! Which process has which socket is told by /proc/PID/fd, which only its user and root may read
//! (ptrace(2), PTRACE_MODE_READ_FSCREDS). What everybody may know of a socket is its user and, on
//! Linux 5.9 and later, the control group in which it was made, hence its unit, and often enough the
//! process: if just one in that group runs as that user. Such an owner is marked as likely.

mod process;
mod unit;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use process::Process;
use unit::Group;

use super::sockets::{Socket, TcpState};
use super::text::{bounded, moment};

/// A process that has a socket open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its process id in this PID namespace.
    pub pid: u32,
    /// Its command line: escaped, and cut after 120 characters.
    pub command: String,
    /// The name of its effective user; the number if the name is not known here.
    pub user: String,
    /// The systemd unit that it runs in.
    pub unit: Option<String>,
    /// When it was started: milliseconds since 1970.
    pub since_ms: i64,
    /// How many more processes have the same socket open.
    pub others: usize,
}

impl fmt::Display for Owner {
    /// `pid 812 "sshd -D" (user root, unit ssh.service, since 2026-11-22T05:01:12Z)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pid {} \"{}\" (user {}",
            self.pid, self.command, self.user
        )?;
        if let Some(unit) = &self.unit {
            write!(f, ", unit {unit}")?;
        }
        write!(f, ", since {})", moment(self.since_ms))?;
        match self.others {
            0 => Ok(()),
            1 => write!(f, " and 1 more process"),
            others => write!(f, " and {others} more processes"),
        }
    }
}

/// The owners of sockets, as far as this process may see them.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    /// By the socket's inode.
    pub found: HashMap<u32, Owner>,
    /// Whether every process of this PID namespace could be looked at. If not, what was not found
    /// may well be there.
    pub all_seen: bool,
}

/// Looks through all processes for the sockets with these inodes. Of several that have one open it
/// is the oldest, and pid 1 only if there is no other: systemd keeps what it hands to its services.
pub fn owners(inodes: &HashSet<u32>) -> Owners {
    let mut pids: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut all_seen = Path::new("/proc/1").exists();
    for pid in all_pids() {
        match sockets_of(pid) {
            Ok(open) => {
                for inode in open.into_iter().filter(|inode| inodes.contains(inode)) {
                    pids.entry(inode).or_default().push(pid);
                }
            }
            Err(error) => all_seen &= error.kind() != io::ErrorKind::PermissionDenied,
        }
    }
    let names = UserNames::read();
    let owner = |(inode, pids): (u32, Vec<u32>)| {
        let processes = pids.iter().filter_map(|pid| Process::read(*pid));
        Some((inode, owner(first(processes)?, pids.len() - 1, &names)))
    };
    Owners {
        found: pids.into_iter().filter_map(owner).collect(),
        all_seen,
    }
}

/// The oldest one, and pid 1 only if there is no other.
fn first(processes: impl Iterator<Item = Process>) -> Option<Process> {
    processes.min_by_key(|process| (process.pid == 1, process.since_ms))
}

fn owner(process: Process, others: usize, names: &UserNames) -> Owner {
    Owner {
        pid: process.pid,
        command: process.command,
        user: names.name(process.uid),
        unit: process.unit,
        since_ms: process.since_ms,
        others,
    }
}

fn all_pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect()
}

/// The inodes of a process's sockets, each once: links to `socket:[INODE]` (proc_pid_fd(5)).
fn sockets_of(pid: u32) -> io::Result<HashSet<u32>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let links = entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok());
    let inode = |link: std::path::PathBuf| {
        let number = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        number.parse().ok()
    };
    Ok(links.filter_map(inode).collect())
}

/// The names of users by their numbers.
#[derive(Clone, Debug)]
pub struct UserNames(HashMap<u32, String>);

impl UserNames {
    /// Those of /etc/passwd. Directory services are not asked: this must not wait for a network.
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/etc/passwd").unwrap_or_default())
    }

    /// passwd(5): "name:password:uid:…".
    fn parse(passwd: &str) -> Self {
        let entry = |line: &str| {
            let mut fields = line.split(':');
            let name = bounded(fields.next()?, 32);
            let uid = fields.nth(1)?.parse().ok()?;
            Some((uid, name))
        };
        // Of several names for one number the first counts, as it does for getpwuid(3).
        Self(passwd.lines().rev().filter_map(entry).collect())
    }

    /// The name, or the number.
    pub fn name(&self, uid: u32) -> String {
        self.0.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}

/// A socket and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The socket.
    pub socket: Socket,
    /// Its owner; `None` if nobody has it open any more, or it can't be seen.
    pub owner: Option<Owner>,
    /// The owner is concluded from the socket's control group and user, not seen.
    pub is_likely: bool,
    /// The user of the owner, or who made the socket. TIME_WAIT has none.
    pub user: Option<String>,
    /// The systemd unit: the owner's, or the one that the socket was made in.
    pub unit: Option<String>,
    /// There is an owner, but seeing it takes root (CAP_SYS_PTRACE).
    pub is_hidden: bool,
}

impl Holder {
    /// Nobody has it open: the kernel alone keeps it.
    pub fn is_orphan(&self) -> bool {
        self.socket.inode == 0
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Some(owner) if self.is_likely => write!(
                f,
                "most likely {owner}, by its control group (for certain only as root)"
            ),
            Some(owner) => write!(f, "{owner}"),
            None if self.is_orphan() => write!(f, "no process"),
            None => {
                write!(f, "a process")?;
                if let Some(user) = &self.user {
                    write!(f, " of user {user}")?;
                }
                if let Some(unit) = &self.unit {
                    write!(f, " in unit {unit}")?;
                }
                let why = if self.is_hidden {
                    "its pid is not visible without root or CAP_SYS_PTRACE"
                } else {
                    "in no process of this PID namespace: of a container, the kernel's own, or just gone"
                };
                write!(f, " ({why})")
            }
        }
    }
}

/// Who has each of these sockets, in their order.
pub fn holders(sockets: &[Socket]) -> Vec<Holder> {
    let inodes: HashSet<u32> = sockets.iter().map(|socket| socket.inode).collect();
    let owners = owners(&inodes.into_iter().filter(|inode| *inode != 0).collect());
    let names = UserNames::read();
    let mut groups: HashMap<u64, Option<Group>> = HashMap::new();
    let holder = |socket: &Socket| {
        if let Some(owner) = owners.found.get(&socket.inode) {
            return seen(*socket, owner.clone());
        }
        let id = socket.cgroup.filter(|_| socket.inode != 0);
        let group = id.and_then(|id| groups.entry(id).or_insert_with(|| Group::find(id)).as_ref());
        unseen(*socket, group, owners.all_seen, &names)
    };
    sockets.iter().map(holder).collect()
}

fn seen(socket: Socket, owner: Owner) -> Holder {
    Holder {
        socket,
        is_likely: false,
        user: Some(owner.user.clone()),
        unit: owner.unit.clone(),
        owner: Some(owner),
        is_hidden: false,
    }
}

fn unseen(socket: Socket, group: Option<&Group>, all_seen: bool, names: &UserNames) -> Holder {
    let is_hidden = socket.inode != 0 && !all_seen;
    let process = group
        .filter(|_| is_hidden)
        .and_then(|group| only_process(&group.pids, socket.uid));
    let unit = group.and_then(|group| group.unit.clone());
    let user = (socket.state != TcpState::TimeWait).then(|| names.name(socket.uid));
    Holder {
        socket,
        is_likely: process.is_some(),
        owner: process.map(|process| owner(process, 0, names)),
        user,
        unit,
        is_hidden,
    }
}

/// The process of a group that runs as this user, if there is just one and the group is small
/// enough to be one service.
fn only_process(pids: &[u32], uid: u32) -> Option<Process> {
    const PROCESSES_MAX: usize = 64;
    if pids.len() > PROCESSES_MAX {
        return None;
    }
    let mut all = pids.iter().filter_map(|pid| Process::read(*pid));
    let first = all.find(|process| process.uid == uid)?;
    all.all(|process| process.uid != uid).then_some(first)
}

#[cfg(test)]
mod tests;
