//! Why no connection can be made to a destination: every local port for it is taken (EADDRNOTAVAIL
//! of connect(2), errno 99).

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::destination::{self, DestinationUse};
use super::owner::{Holder, holders};
use super::ports::LocalPorts;
use super::text::seconds;

/// Who has the ports for one destination. It displays as one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhaustion {
    /// Where the connection was to go.
    pub destination: SocketAddr,
    /// How many addresses it could have come from.
    pub sources: usize,
    /// Which ports it could have had.
    pub ports: LocalPorts,
    /// How they are used.
    pub used: DestinationUse,
    /// Who has most of the connections that are open.
    pub most: Option<Share>,
}

/// The connections of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// One of them, and whose it is.
    pub holder: Holder,
    /// How many.
    pub connections: u32,
}

/// Looks who has the ports for `destination`, from the addresses in `sources` or, without any, from
/// the one that the kernel chooses.
///
/// Blocks for as long as listing sockets and processes takes.
///
/// # Errors
/// As [`super::sockets::tcp`].
pub fn explain(
    sources: &[IpAddr],
    ports: LocalPorts,
    destination: SocketAddr,
) -> io::Result<Exhaustion> {
    let connections = destination::connections(sources, destination)?;
    let used = destination::count(&connections, &destination::bound()?, sources.len(), &ports);
    let open: Vec<_> = connections
        .into_iter()
        .filter(|socket| socket.inode != 0)
        .collect();
    Ok(Exhaustion {
        destination,
        sources: sources.len().max(1),
        ports,
        used,
        most: most(holders(&open)),
    })
}

/// The process with the most of these; where it can't be seen, the unit and user.
fn most(holders: Vec<Holder>) -> Option<Share> {
    let mut shares: HashMap<_, Share> = HashMap::new();
    for holder in holders {
        let pid = holder.owner.as_ref().map(|owner| owner.pid);
        let key = (pid, holder.unit.clone(), holder.user.clone());
        let share = shares.entry(key).or_insert(Share {
            holder,
            connections: 0,
        });
        share.connections += 1;
    }
    shares.into_values().max_by_key(|share| share.connections)
}

impl fmt::Display for Exhaustion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = &self.used;
        match used.left {
            0 => write!(f, "all {} local ports", used.usable)?,
            left => write!(f, "only {left} of {} local ports", used.usable)?,
        }
        write!(f, " ({}", self.ports)?;
        if self.sources > 1 {
            write!(f, " at each of {} addresses", self.sources)?;
        }
        let verb = if used.left == 0 { "taken" } else { "left" };
        write!(
            f,
            ") for connections to {} are {verb}: {} established, {} in TIME_WAIT",
            self.destination, used.established, used.time_wait
        )?;
        if used.time_wait > 0 {
            let left = seconds(used.time_wait_ends_ms);
            write!(f, " (the last for {left} s more)")?;
        }
        if used.other > 0 {
            write!(f, ", {} in other states", used.other)?;
        }
        if let Some(most) = &self.most {
            write!(f, "; {} are open by {}", most.connections, most.holder)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpStream};

    use super::*;
    use crate::diag::ports::PortRange;
    use crate::diag::testing::{eventually, own_listener};

    /// The ports of these connections, as if there were no others.
    fn ports_of(streams: &[TcpStream]) -> LocalPorts {
        let ports = streams
            .iter()
            .map(|stream| stream.local_addr().unwrap().port());
        let first = ports.clone().min().unwrap();
        let last = ports.clone().max().unwrap();
        let ours: Vec<_> = ports.collect();
        let others = (first..=last).filter(|port| !ours.contains(port));
        let reserved = others.map(|port| PortRange {
            first: port,
            last: port,
        });
        LocalPorts::new(PortRange { first, last }, reserved.collect())
    }

    #[test]
    fn who_has_the_ports_is_told() {
        let (listener, destination) = own_listener();
        let mut streams: Vec<_> = (0..4)
            .map(|_| TcpStream::connect(destination).unwrap())
            .collect();
        let ports = ports_of(&streams);
        let accepted: Vec<_> = (0..4).map(|_| listener.accept().unwrap().0).collect();
        let found = explain(&[], ports.clone(), destination).unwrap();
        assert_eq!((found.used.usable, found.used.left), (4, 0));
        let most = found.most.clone().unwrap();
        let owner = most.holder.owner.clone().unwrap();
        assert_eq!((most.connections, owner.pid), (4, std::process::id()));
        let line = found.to_string();
        for part in [
            "all 4 local ports",
            &destination.to_string(),
            "4 established, 0 in TIME_WAIT; 4 are open by pid",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        // Two are closed here first. A process that another test forks at this moment has copies of the
        // descriptors: a close alone would wait for it.
        for stream in streams.drain(2..) {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        drop(accepted);
        let found = eventually("TIME_WAIT", || {
            let found = explain(&[], ports.clone(), destination).unwrap();
            (found.used.time_wait == 2).then_some(found)
        });
        assert_eq!(found.used.left, 0);
        let line = found.to_string();
        assert!(line.contains("2 in TIME_WAIT (the last for "), "{line}");
    }
}
