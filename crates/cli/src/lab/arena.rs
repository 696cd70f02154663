//! Where experiments run: best in a network namespace of their own with a hundred source ports, else
//! on this host's loopback with a hundred of its ports.

use std::cell::Cell;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::PathBuf;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rollcall_os::diag::ports::{LocalPorts, PortRange, local_port_range};
use rollcall_os::diag::sockets::{self, Filter, Socket, States, TcpState};
use rollcall_os::diag::sysctl;
use rollcall_os::outgoing::narrow;

use super::namespace::{self, Right};
use super::sockets::{
    CallError, Reuse, connect_bound, connect_from, is_in_use, is_without_port, stream_for,
};

/// Source ports that an experiment has: so few that they run out at once.
pub(super) const PORTS: u16 = 100;
/// Where they begin in a namespace.
const FIRST: u16 = 40_000;
/// Where servers listen in a namespace.
const SERVER: u16 = 7412;
/// Ports of servers on a host: above those that well-known services have.
const SERVERS: std::ops::Range<u16> = 10_000..65_000;
/// How often a port is drawn for a server before it is given up.
const DRAWS: usize = 1000;

/// Which of the two it is.
#[derive(Debug)]
enum Kind {
    /// Namespaces, one for each experiment.
    Own(Right),
    /// The host itself, because of this.
    Host(String),
}

/// A place for experiments.
#[derive(Debug)]
pub(super) struct Arena {
    kind: Kind,
    first: u16,
    /// On a host: the port to try first. The kernel begins elsewhere each time, too.
    cursor: Cell<u16>,
}

impl Arena {
    /// The best one that there is. The process must have no other thread.
    pub(super) fn find(on_host: bool) -> Self {
        let entered = match on_host {
            true => Err("it was asked for".to_owned()),
            false => enter(),
        };
        let kind = match entered {
            Ok(right) => Kind::Own(right),
            Err(why) => Kind::Host(why),
        };
        Self {
            kind,
            first: FIRST,
            cursor: Cell::new(0),
        }
    }

    /// Makes it ready for the next experiment, which finds nothing of the last one.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn renew(&mut self) -> anyhow::Result<()> {
        match self.kind {
            Kind::Own(_) => {
                namespace::renew().context("can't make a network namespace")?;
                prepare().context("can't set a sysctl in a network namespace of our own")?;
            }
            Kind::Host(_) => self.first = free_window()?,
        }
        self.cursor.set(0);
        Ok(())
    }

    /// Whether it is a namespace, in which everything may be changed.
    pub(super) fn is_own(&self) -> bool {
        matches!(self.kind, Kind::Own(_))
    }

    /// For scripts: which it is.
    pub(super) fn word(&self) -> &'static str {
        match self.kind {
            Kind::Own(Right::Own) => "namespace",
            Kind::Own(Right::UserNamespace) => "user_namespace",
            Kind::Host(_) => "host",
        }
    }

    /// For people: which it is, and what follows from it.
    pub(super) fn description(&self) -> String {
        match &self.kind {
            Kind::Own(right) => {
                let how = match right {
                    Right::Own => "",
                    Right::UserNamespace => " inside a user namespace",
                };
                format!(
                    "Each experiment runs in a network namespace of its own{how}: a loopback, {PORTS} \
                     source ports ({FIRST}-{}), net.ipv4.tcp_tw_reuse=0 (many hosts have 2, which hides \
                     the failures on a loopback, and only there). Nothing of this host is touched.",
                    FIRST + PORTS - 1
                )
            }
            Kind::Host(why) => format!(
                "The experiments run on the loopback as it is, with {PORTS} of its free ports each as source \
                 ports (no network namespace of their own: {why}). What needs other sysctls, or packets that no \
                 socket sends, is left out. Some sockets stay in TIME_WAIT for 60 s."
            ),
        }
    }

    /// The source ports.
    pub(super) fn range(&self) -> PortRange {
        PortRange {
            first: self.first,
            last: self.first + (PORTS - 1),
        }
    }

    /// Sets a parameter of this namespace.
    ///
    /// # Errors
    /// On a host always: its parameters are not ours.
    pub(super) fn set(&self, name: &str, value: &str) -> anyhow::Result<()> {
        if !self.is_own() {
            bail!("{name} is left as it is: this host's parameters are not touched");
        }
        write_sysctl(name, value).with_context(|| format!("can't set {name} to {value}"))
    }

    /// A parameter's value, or a word for its absence.
    pub(super) fn get(&self, name: &str) -> String {
        sysctl::read(name).unwrap_or_else(|| "not in this kernel".to_owned())
    }

    /// An address on 127.0.0.1 on which nobody listens, and on which nobody has since the arena was
    /// renewed; `nth` tells several of one experiment apart.
    ///
    /// # Errors
    /// On a host: if there is none, or the kernel does not list its sockets.
    pub(super) fn server(&self, nth: u16) -> anyhow::Result<SocketAddr> {
        let port = if self.is_own() {
            SERVER + nth
        } else {
            // Also no client may have it, of whom something could be left that looks like ours.
            let sockets = listed(&Filter::default())?;
            let ends = |socket: &Socket| [socket.local.port(), socket.remote.port()];
            let taken: HashSet<u16> = sockets.iter().flat_map(ends).collect();
            let ports = (0..DRAWS).map(|_| fastrand::u16(SERVERS));
            let mut free =
                ports.filter(|port| !taken.contains(port) && !self.range().contains(*port));
            free.next().context("there is no free port for a server")?
        };
        Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())
    }

    /// Connects from any of the source ports, as a client does that does not bind.
    ///
    /// # Errors
    /// What the kernel says when it has none left.
    pub(super) fn connect(&self, destination: SocketAddr) -> Result<TcpStream, CallError> {
        self.connect_by(None, destination)
    }

    /// Connects from any of the source ports of `source`, of which a port is taken only while it
    /// connects (IP_BIND_ADDRESS_NO_PORT, Linux 4.2).
    ///
    /// # Errors
    /// What the kernel says when it has none left.
    pub(super) fn connect_by(
        &self,
        source: Option<Ipv4Addr>,
        destination: SocketAddr,
    ) -> Result<TcpStream, CallError> {
        let failed = |source| CallError::new("socket", source);
        let socket = stream_for(destination).map_err(failed)?;
        if !self.is_own() && !narrow(&socket, self.range(), local_port_range().ok()) {
            return self.connect_by_trying(source.unwrap_or(Ipv4Addr::LOCALHOST), destination);
        }
        let Some(source) = source else {
            return match socket.connect(&destination.into()) {
                Ok(()) => Ok(socket.into()),
                Err(error) => Err(CallError::new("connect", error)),
            };
        };
        setsockopt(&socket, IpBindAddressNoPort, &true).map_err(|errno| failed(errno.into()))?;
        connect_bound(&socket, SocketAddrV4::new(source, 0).into(), destination)?;
        Ok(socket.into())
    }

    /// Looks for a port as the kernel does, for one that can't be told a range (before Linux 6.3):
    /// one after the other, until one can be used. It is bind(2) that fails then.
    fn connect_by_trying(
        &self,
        source: Ipv4Addr,
        destination: SocketAddr,
    ) -> Result<TcpStream, CallError> {
        let mut last = Errno::EADDRINUSE;
        for step in 0..PORTS {
            let at = (self.cursor.get() + step) % PORTS;
            let source = SocketAddrV4::new(source, self.first + at);
            match connect_from(source.into(), destination, Reuse::Off) {
                Err(error) if error.is("bind", Errno::EADDRINUSE) => last = error.errno(),
                other => {
                    self.cursor.set((at + 1) % PORTS);
                    return other;
                }
            }
        }
        Err(CallError::new("bind", last.into()))
    }

    /// Whether an error says that no source port is left: 99 from connect where the kernel looks for
    /// one, 98 from bind where they were tried one by one.
    pub(super) fn is_exhaustion(&self, error: Option<&CallError>) -> bool {
        is_without_port(error) || (!self.is_own() && is_in_use(error))
    }

    /// The sockets in TIME_WAIT that `is_meant` finds.
    ///
    /// # Errors
    /// If the kernel does not list its sockets.
    pub(super) fn time_wait(
        &self,
        is_meant: impl Fn(&Socket) -> bool,
    ) -> anyhow::Result<Vec<Socket>> {
        let mut found = listed(&Filter {
            states: States::of(&[TcpState::TimeWait]),
            ..Filter::default()
        })?;
        found.retain(is_meant);
        Ok(found)
    }
}

/// Enters a first namespace, and tries what each experiment needs.
fn enter() -> Result<Right, String> {
    let right = namespace::enter().map_err(|error| error.to_string())?;
    prepare().map_err(|error| format!("its sysctls can't be set: {error}"))?;
    Ok(right)
}

fn prepare() -> io::Result<()> {
    let last = FIRST + PORTS - 1;
    write_sysctl("net.ipv4.ip_local_port_range", &format!("{FIRST} {last}"))?;
    write_sysctl("net.ipv4.tcp_tw_reuse", "0")?;
    write_sysctl("net.ipv4.tcp_timestamps", "1")
}

fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    fs::write(
        PathBuf::from("/proc/sys").join(name.replace('.', "/")),
        value,
    )
}

fn listed(filter: &Filter) -> anyhow::Result<Vec<Socket>> {
    sockets::tcp(filter).context("the kernel does not list its sockets (sock_diag)")
}

/// Every port at this host's end of a socket.
fn used_ports() -> anyhow::Result<HashSet<u16>> {
    let all = listed(&Filter::default())?;
    Ok(all.iter().map(|socket| socket.local.port()).collect())
}

/// The first of so many ports in a row that the kernel would give out and no socket of this host has.
fn free_window() -> anyhow::Result<u16> {
    let ports = LocalPorts::read()?;
    let used = used_ports()?;
    let all: Vec<u16> = ports.range().ports().collect();
    let is_free = |port: &u16| ports.contains(*port) && !used.contains(port);
    let windows = all.windows(usize::from(PORTS));
    let free: Vec<_> = windows
        .filter(|window| window.iter().all(is_free))
        .collect();
    let window = fastrand::choice(free).context("there are no hundred free ports in a row")?;
    window.first().copied().context("there is no port")
}

#[cfg(test)]
mod tests {
    use super::super::sockets::{First, Pair, listen};
    use super::*;

    /// Where this thread may have a network of its own, that is the host: on the real one other tests
    /// take ports by the thousand.
    fn on_host() -> Arena {
        drop(namespace::renew());
        let mut arena = Arena::find(true);
        arena.renew().unwrap();
        arena
    }

    #[test]
    fn a_host_gives_a_hundred_free_ports_of_its_range_and_keeps_its_sysctls() {
        let arena = on_host();
        assert!(!arena.is_own());
        assert_eq!(arena.range().count(), u32::from(PORTS));
        let common = arena.range().common(local_port_range().unwrap());
        assert_eq!(common, Some(arena.range()));
        assert!(arena.set("net.ipv4.tcp_tw_reuse", "1").is_err());
        let server = arena.server(0).unwrap();
        assert!(!arena.range().contains(server.port()));
    }

    #[test]
    fn ports_that_are_tried_one_by_one_run_out_too() {
        let arena = on_host();
        let listener = listen(arena.server(0).unwrap(), Reuse::On).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || arena.connect_by_trying(Ipv4Addr::LOCALHOST, address);
        for _ in 0..PORTS {
            let pair = Pair::accepted(connect().unwrap(), &listener).unwrap();
            pair.close(First::Client).unwrap();
        }
        let error = connect().unwrap_err();
        assert!(arena.is_exhaustion(Some(&error)), "{error}");
        assert!(error.is("bind", Errno::EADDRINUSE), "{error}");
    }
}
