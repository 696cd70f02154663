//! What an operator needs to know when there is no local port left.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread;

use rollcall_os::diag::exhaustion::{self, Exhaustion};
use rollcall_os::diag::ports::LocalPorts;

/// What the slave does about it, unless somebody knows better.
pub(super) const REPORTS_WAIT: &str =
    "the reports stay in the spool and are sent when a port is free";

/// Explains EADDRNOTAVAIL for `destination`: who has the ports, and what happens now (`plan`).
///
/// `sources` and `ports` are what the connection could have come from; by default what the kernel
/// chooses. The look takes as long as listing all sockets and processes does, so it has a thread of
/// its own; it is to be asked for once in a while, not at each failure.
pub(super) fn log_exhaustion(
    destination: SocketAddr,
    sources: Vec<IpAddr>,
    ports: Option<LocalPorts>,
    plan: &'static str,
) {
    let look = move || {
        let ports = ports.map_or_else(LocalPorts::read, Ok);
        let found = ports.and_then(|ports| exhaustion::explain(&sources, ports, destination));
        log(destination, &found, plan);
    };
    let started = thread::Builder::new().name("ports".to_owned()).spawn(look);
    if let Err(error) = started {
        log(destination, &Err(error), plan);
    }
}

fn log(destination: SocketAddr, found: &io::Result<Exhaustion>, plan: &str) {
    let text = match found {
        Ok(found) => found.to_string(),
        Err(error) => {
            format!(
                "no local port is free for connections to {destination}, and who has them can't be looked up ({error})"
            )
        }
    };
    let found = found.as_ref().ok();
    let used = found.map(|found| found.used);
    let most = found.and_then(|found| found.most.as_ref());
    let owner = most.and_then(|most| most.holder.owner.as_ref());
    tracing::error!(
        event = "ports_exhausted",
        peer = %destination,
        errno = 99,
        range = found.map(|found| tracing::field::display(found.ports.range())),
        reserved = found.map(|found| found.ports.reserved()),
        sources = found.map(|found| found.sources),
        usable = used.map(|used| used.usable),
        left = used.map(|used| used.left),
        established = used.map(|used| used.established),
        time_wait = used.map(|used| used.time_wait),
        time_wait_ends_ms = used.map(|used| used.time_wait_ends_ms),
        other = used.map(|used| used.other),
        most = most.map(|most| most.connections),
        holder_pid = owner.map(|owner| owner.pid),
        holder_command = owner.map(|owner| owner.command.as_str()),
        holder_user = most.and_then(|most| most.holder.user.as_deref()),
        holder_unit = most.and_then(|most| most.holder.unit.as_deref()),
        "{text}: {plan}"
    );
}
