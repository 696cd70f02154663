//! The line that a failed bind is told with.

use std::fmt;

use super::{Cause, Connections, Explanation, Transport};
use crate::diag::address::LocalAddress;
use crate::diag::owner::{Holder, Owner};
use crate::diag::ports::local_port_range;
use crate::diag::sockets::TcpState;
use crate::diag::sysctl;
use crate::diag::text::{plural, seconds};

/// Addresses that are listed at most.
const ADDRESSES_MAX: usize = 12;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.finding(), self.remedy())
    }
}

impl Explanation {
    /// What is in the way, in one clause.
    pub fn finding(&self) -> String {
        let port = self.address.port();
        match &self.cause {
            Cause::Listener(holder) => self.listener(holder),
            Cause::Outgoing(connections) => outgoing(port, connections),
            Cause::Remnants(connections) => remnants(port, connections),
            Cause::Bound(holder) => format!(
                "{holder} has bound {} and does not listen on it",
                holder.socket.local
            ),
            Cause::Unseen => format!(
                "port {port} is taken and no socket on it is seen: its holder has just let go of it, or, before Linux 6.8, has bound it without listening"
            ),
            Cause::NotListed(error) => {
                format!("port {port} is taken, and by whom can't be looked up ({error})")
            }
            Cause::Privileged { unprivileged_from } => format!(
                "ports below {unprivileged_from} (net.ipv4.ip_unprivileged_port_start) need CAP_NET_BIND_SERVICE"
            ),
            Cause::Forbidden => {
                format!("port {port} needs no privilege, so a security module forbids it")
            }
            Cause::NotLocal { local } => format!(
                "this host has no address {}; it has {}",
                self.address.ip(),
                list(local)
            ),
            Cause::NotReady { interface } => format!(
                "{} is on {interface} and can't be used yet: IPv6 looks for a duplicate of it, or has found one",
                self.address.ip()
            ),
            Cause::NoScope => format!(
                "{} is a link-local address, which needs its interface",
                self.address.ip()
            ),
            Cause::NoFamily => "this kernel has no such address family; IPv6 may be off".to_owned(),
            Cause::NoDescriptor => "this process has no descriptor left".to_owned(),
            Cause::Other => "no such address can be bound here".to_owned(),
        }
    }

    /// What helps, as an instruction.
    pub fn remedy(&self) -> String {
        let port = self.address.port();
        match &self.cause {
            Cause::Listener(holder) | Cause::Bound(holder) => stop(holder.owner.as_ref()),
            Cause::Outgoing(connections) => reserve(port, connections),
            Cause::Remnants(connections) if connections.time_wait == connections.count => format!(
                "wait these {} s, or configure another port; a listener that sets SO_REUSEADDR leaves nothing that is in the way",
                seconds(connections.time_wait_ends_ms)
            ),
            Cause::Remnants(_) => {
                "end the process that has them, or configure another port".to_owned()
            }
            Cause::Unseen => "try again, or configure another port".to_owned(),
            Cause::NotListed(_) => {
                "see `ss -tanp` as root, and stop the holder or configure another port".to_owned()
            }
            Cause::Privileged { unprivileged_from } => format!(
                "add AmbientCapabilities=CAP_NET_BIND_SERVICE to the unit (and to its CapabilityBoundingSet=, if it has one), or configure a port from {unprivileged_from} on"
            ),
            Cause::Forbidden => format!(
                "see `journalctl -k` for its message; for SELinux: `semanage port -a -t unreserved_port_t -p tcp {port}`"
            ),
            Cause::NotLocal { .. } => {
                "correct it in the configuration, or, if it comes later, set [listen] freebind = true"
                    .to_owned()
            }
            Cause::NotReady { interface } => {
                format!("see `ip address show dev {interface}` (tentative, dadfailed)")
            }
            Cause::NoScope => format!(
                "write it with the number of the interface (`ip link`), such as [{}%2]:{port}",
                self.address.ip()
            ),
            Cause::NoFamily => "configure an address of the other family".to_owned(),
            Cause::NoDescriptor => "raise LimitNOFILE".to_owned(),
            Cause::Other => "check the address in the configuration".to_owned(),
        }
    }

    fn listener(&self, holder: &Holder) -> String {
        let local = holder.socket.local;
        let what = match self.transport {
            Transport::Tcp => "listens on",
            Transport::Udp => "has a UDP socket on",
        };
        let place = if local == self.address {
            " already"
        } else if self.address.is_ipv4() && local.is_ipv6() {
            ", which takes IPv4 as well"
        } else if local.ip().is_unspecified() {
            ", which is every address"
        } else {
            ", which every address would include"
        };
        format!("{holder} {what} {local}{place}")
    }
}

/// What to do about a process that has the port.
fn stop(owner: Option<&Owner>) -> String {
    let other = "configure another port";
    match owner {
        Some(owner) if owner.pid == std::process::id() => {
            "that is this process itself: an address is configured twice".to_owned()
        }
        Some(owner) if owner.pid == 1 => {
            format!(
                "systemd listens for a socket unit (`systemctl list-sockets`): stop that, or {other}"
            )
        }
        Some(Owner {
            unit: Some(unit), ..
        }) if unit.ends_with(".service") => {
            format!("stop it (`systemctl stop {unit}`), or {other}")
        }
        _ => format!("stop it, or {other}"),
    }
}

fn outgoing(port: u16, connections: &Connections) -> String {
    let example = &connections.example;
    let socket = &example.socket;
    let others = match connections.count - 1 {
        0 => String::new(),
        others => format!(" and of {} more", plural(others, "connection")),
    };
    let whose = if example.is_orphan() {
        String::new()
    } else {
        format!(", of {example}")
    };
    format!(
        "port {port} is the source port of the connection {} -> {} ({}{}){others}{whose}",
        socket.local,
        socket.remote,
        socket.state,
        ending(connections),
    )
}

/// For TIME_WAIT, when it is over.
fn ending(connections: &Connections) -> String {
    if connections.time_wait == 0 {
        return String::new();
    }
    let left = seconds(connections.time_wait_ends_ms);
    if connections.time_wait == connections.count && connections.count == 1 {
        return format!(" for {left} s more");
    }
    format!(
        ", {} in TIME_WAIT for up to {left} s more",
        connections.time_wait
    )
}

fn remnants(port: u16, connections: &Connections) -> String {
    let mut parts = Vec::new();
    let open = connections.count - connections.time_wait;
    if open > 0 {
        let example = &connections.example;
        parts.push(format!(
            "{open} not closed on both sides, such as {} -> {} ({}), of {example}",
            example.socket.local, example.socket.remote, example.socket.state,
        ));
    }
    if connections.time_wait > 0 {
        parts.push(format!(
            "{} in TIME_WAIT, the last for {} s more",
            connections.time_wait,
            seconds(connections.time_wait_ends_ms)
        ));
    }
    format!(
        "{} that an earlier listener accepted without SO_REUSEADDR {} port {port}: {}",
        plural(connections.count, "connection"),
        if connections.count == 1 {
            "keeps"
        } else {
            "keep"
        },
        parts.join(", and ")
    )
}

/// How to keep a port from being taken for outgoing connections.
fn reserve(port: u16, connections: &Connections) -> String {
    let end = match connections.example.socket.state {
        TcpState::TimeWait => "wait for its end",
        _ => "end that connection",
    };
    let range = local_port_range().ok().filter(|range| range.contains(port));
    let Some(range) = range else {
        return format!("{end}, or configure another port");
    };
    // The parameter is a list, and to set it is to set all of it.
    let reserved = sysctl::read("net.ipv4.ip_local_reserved_ports").unwrap_or_default();
    let list = if reserved.is_empty() {
        port.to_string()
    } else {
        format!("{reserved},{port}")
    };
    format!(
        "{end} and keep the port for listeners (`sysctl -w net.ipv4.ip_local_reserved_ports={list}`), or configure one outside of net.ipv4.ip_local_port_range ({range})"
    )
}

fn list(addresses: &[LocalAddress]) -> String {
    if addresses.is_empty() {
        return "none".to_owned();
    }
    let mut shown: Vec<_> = addresses
        .iter()
        .take(ADDRESSES_MAX)
        .map(ToString::to_string)
        .collect();
    if addresses.len() > ADDRESSES_MAX {
        shown.push(format!("{} more", addresses.len() - ADDRESSES_MAX));
    }
    shown.join(", ")
}
