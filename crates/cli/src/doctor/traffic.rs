//! The host's sockets, summed up: by state, by destination, by listener and by who has them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use rollcall_os::diag::owner::{Holder, holders};
use rollcall_os::diag::ports::LocalPorts;
use rollcall_os::diag::sockets::{self, Filter, Socket, TcpState};

/// What the sockets of a host come to.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic {
    /// How many are in which state.
    pub(super) states: BTreeMap<TcpState, usize>,
    /// Where connections go from here, those that use most ports first.
    pub(super) destinations: Vec<Destination>,
    /// Who listens, by port.
    pub(super) listeners: Vec<Listener>,
    /// Who has most sockets first.
    pub(super) users: Vec<User>,
}

/// Connections from one address of this host to one address and port: what ports run out for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) remote: SocketAddr,
    pub(super) source: IpAddr,
    pub(super) established: usize,
    pub(super) time_wait: usize,
    /// FIN_WAIT1, FIN_WAIT2 and CLOSING: closed here, and not yet by the peer.
    pub(super) fin_wait: usize,
    pub(super) close_wait: usize,
    /// All other states.
    pub(super) other: usize,
    /// Ports that connections could have if none had one.
    pub(super) usable: usize,
    /// Those that have none.
    pub(super) left: usize,
    /// How many of the ports in TIME_WAIT a client may use again now.
    pub(super) reusable: usize,
    /// Who has connections to it, with how many, most first.
    pub(super) owners: Vec<(String, usize)>,
}

impl Destination {
    /// The ports that the next connection may have.
    pub(super) fn available(&self) -> usize {
        self.left + self.reusable
    }
}

/// A listener and the connections that wait to be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) queue: u32,
    pub(super) limit: u32,
    pub(super) owner: String,
}

/// A process that has TCP sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) owner: String,
    pub(super) pid: Option<u32>,
    pub(super) unit: Option<String>,
    pub(super) sockets: usize,
    pub(super) close_wait: usize,
}

/// When a port in TIME_WAIT may be had again by a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReuseRule {
    /// For destinations on this host.
    pub(super) on_loopback: bool,
    /// For all others.
    pub(super) elsewhere: bool,
    /// After so long in TIME_WAIT.
    pub(super) delay_ms: u32,
}

/// Connections from so many peers on one port are those of a server: few programs bind their source
/// port, and have so many destinations.
const SERVER_LIKE: usize = 8;

/// TIME_WAIT, a constant in the kernel (TCP_TIMEWAIT_LEN).
pub(super) const TIME_WAIT_MS: u32 = 60_000;

impl ReuseRule {
    fn allows(self, socket: &Socket) -> bool {
        let is_on = match socket.remote.ip().is_loopback() {
            true => self.on_loopback,
            false => self.elsewhere,
        };
        let left = socket.expires_ms.unwrap_or(TIME_WAIT_MS);
        is_on && left.saturating_add(self.delay_ms) <= TIME_WAIT_MS
    }
}

impl Traffic {
    /// The sockets of this network namespace as they are now.
    ///
    /// # Errors
    /// Those of [`sockets::tcp`].
    pub(super) fn read(ports: &LocalPorts, reuse: ReuseRule) -> io::Result<Self> {
        let (remnants, open): (Vec<_>, Vec<_>) = sockets::tcp(&Filter::default())?
            .into_iter()
            .partition(|socket| socket.inode == 0);
        Ok(Self::new(&remnants, &holders(&open), ports, reuse))
    }

    /// Sums up the sockets that no process has (`remnants`) and those that one has.
    pub(super) fn new(
        remnants: &[Socket],
        open: &[Holder],
        ports: &LocalPorts,
        reuse: ReuseRule,
    ) -> Self {
        let all = || {
            remnants
                .iter()
                .chain(open.iter().map(|holder| &holder.socket))
        };
        let mut states = BTreeMap::new();
        for socket in all() {
            *states.entry(socket.state).or_default() += 1;
        }
        let is_bound =
            |socket: &&Socket| matches!(socket.state, TcpState::Listen | TcpState::Bound);
        let bound: HashSet<u16> = all()
            .filter(is_bound)
            .map(|socket| socket.local.port())
            .collect();
        let ends = Ends::count(all(), &bound);
        let is_outgoing = |socket: &Socket| ends.is_outgoing(socket);
        let mut destinations = Destinations::new(ports, &bound, reuse);
        for socket in remnants.iter().filter(|socket| is_outgoing(socket)) {
            destinations.add(socket, None);
        }
        for holder in open.iter().filter(|holder| is_outgoing(&holder.socket)) {
            destinations.add(&holder.socket, Some(holder));
        }
        Self {
            states,
            destinations: destinations.finish(),
            listeners: listeners(open),
            users: users(open),
        }
    }

    /// The ports on which somebody listens.
    pub(super) fn listening(&self) -> BTreeSet<u16> {
        self.listeners
            .iter()
            .map(|listener| listener.address.port())
            .collect()
    }
}

/// How often each end of a connection occurs: the one that occurs more often is the server's.
struct Ends<'a> {
    bound: &'a HashSet<u16>,
    local: HashMap<SocketAddr, usize>,
    remote: HashMap<SocketAddr, usize>,
}

impl<'a> Ends<'a> {
    fn count<'s>(sockets: impl Iterator<Item = &'s Socket>, bound: &'a HashSet<u16>) -> Self {
        let (mut local, mut remote) = (HashMap::new(), HashMap::new());
        for socket in sockets {
            *local.entry(socket.local).or_default() += 1;
            *remote.entry(socket.remote).or_default() += 1;
        }
        Self {
            bound,
            local,
            remote,
        }
    }

    /// Whether a connection was made from here. Those that a listener accepted have its port; so do
    /// those that are left of one that has ended, which many clients had then.
    fn is_outgoing(&self, socket: &Socket) -> bool {
        let here = self.local.get(&socket.local).copied().unwrap_or(0);
        let there = self.remote.get(&socket.remote).copied().unwrap_or(0);
        let is_of_a_server = here >= SERVER_LIKE && here > there;
        !self.bound.contains(&socket.local.port()) && !is_of_a_server
    }
}

/// Destinations while they are counted.
struct Destinations<'a> {
    ports: &'a LocalPorts,
    bound: &'a HashSet<u16>,
    reuse: ReuseRule,
    usable: usize,
    found: HashMap<(IpAddr, SocketAddr), Counted>,
}

struct Counted {
    sum: Destination,
    ports: HashSet<u16>,
    owners: HashMap<String, usize>,
}

impl<'a> Destinations<'a> {
    fn new(ports: &'a LocalPorts, bound: &'a HashSet<u16>, reuse: ReuseRule) -> Self {
        // connect(2) passes over a port that somebody has bound, whatever the destination is.
        let blocked = bound.iter().filter(|port| ports.contains(**port)).count();
        let usable = usize::try_from(ports.usable()).unwrap_or(usize::MAX);
        Self {
            ports,
            bound,
            reuse,
            usable: usable.saturating_sub(blocked),
            found: HashMap::new(),
        }
    }

    fn add(&mut self, socket: &Socket, holder: Option<&Holder>) {
        let key = (socket.local.ip(), socket.remote);
        let usable = self.usable;
        let counted = self.found.entry(key).or_insert_with(|| Counted {
            sum: empty(socket.remote, socket.local.ip(), usable),
            ports: HashSet::new(),
            owners: HashMap::new(),
        });
        let sum = &mut counted.sum;
        match socket.state {
            TcpState::Established => sum.established += 1,
            TcpState::TimeWait => sum.time_wait += 1,
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing => sum.fin_wait += 1,
            TcpState::CloseWait => sum.close_wait += 1,
            _ => sum.other += 1,
        }
        let port = socket.local.port();
        if self.ports.contains(port) && !self.bound.contains(&port) {
            let is_first = counted.ports.insert(port);
            if is_first && socket.state == TcpState::TimeWait && self.reuse.allows(socket) {
                sum.reusable += 1;
            }
        }
        if let Some(holder) = holder {
            *counted.owners.entry(name(holder)).or_default() += 1;
        }
    }

    fn finish(self) -> Vec<Destination> {
        let mut all: Vec<_> = self.found.into_values().map(Counted::finish).collect();
        all.sort_by_key(|one| (one.left, one.remote, one.source));
        all
    }
}

impl Counted {
    fn finish(self) -> Destination {
        let mut owners: Vec<_> = self.owners.into_iter().collect();
        owners.sort_by(|(a, many), (b, more)| more.cmp(many).then_with(|| a.cmp(b)));
        Destination {
            left: self.sum.usable.saturating_sub(self.ports.len()),
            owners,
            ..self.sum
        }
    }
}

/// A destination to which there is no connection.
pub(super) fn empty(remote: SocketAddr, source: IpAddr, usable: usize) -> Destination {
    Destination {
        remote,
        source,
        established: 0,
        time_wait: 0,
        fin_wait: 0,
        close_wait: 0,
        other: 0,
        usable,
        left: usable,
        reusable: 0,
        owners: Vec::new(),
    }
}

fn listeners(open: &[Holder]) -> Vec<Listener> {
    let listening = open
        .iter()
        .filter(|holder| holder.socket.state == TcpState::Listen);
    let mut all: Vec<_> = listening
        .map(|holder| Listener {
            address: holder.socket.local,
            queue: holder.socket.receive_queue,
            limit: holder.socket.send_queue,
            owner: name(holder),
        })
        .collect();
    all.sort_by_key(|listener| (listener.address.port(), listener.address));
    all
}

fn users(open: &[Holder]) -> Vec<User> {
    let mut found: HashMap<String, User> = HashMap::new();
    for holder in open {
        let owner = name(holder);
        let user = found.entry(owner.clone()).or_insert_with(|| User {
            owner,
            pid: holder.owner.as_ref().map(|owner| owner.pid),
            unit: holder.unit.clone(),
            sockets: 0,
            close_wait: 0,
        });
        user.sockets += 1;
        user.close_wait += usize::from(holder.socket.state == TcpState::CloseWait);
    }
    let mut all: Vec<_> = found.into_values().collect();
    all.sort_by(|one, other| {
        let by_count = other.sockets.cmp(&one.sockets);
        by_count.then_with(|| one.owner.cmp(&other.owner))
    });
    all
}

/// Who it is, as far as that can be seen: process, unit or user.
fn name(holder: &Holder) -> String {
    let user = holder.user.as_deref().unwrap_or("unknown");
    match (&holder.owner, &holder.unit) {
        (Some(owner), _) => {
            let program = owner.command.split(' ').next().unwrap_or_default();
            let program = program.rsplit('/').next().unwrap_or(program);
            format!("{program} (pid {})", owner.pid)
        }
        (None, Some(unit)) => unit.clone(),
        (None, None) if holder.is_hidden => format!("user {user} (root sees more)"),
        (None, None) => "nobody that is seen".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::{held, socket};

    const REUSE: ReuseRule = ReuseRule {
        on_loopback: true,
        elsewhere: false,
        delay_ms: 1000,
    };

    fn ports() -> LocalPorts {
        LocalPorts::new("40000-40099".parse().unwrap(), Vec::new())
    }

    #[test]
    fn sockets_are_summed_up_by_destination_and_source() {
        let remnants = [
            socket(TcpState::TimeWait, "10.0.0.1:40000", "10.0.0.9:80"),
            socket(TcpState::TimeWait, "10.0.0.1:40001", "10.0.0.9:80"),
            socket(TcpState::TimeWait, "10.0.0.2:40000", "10.0.0.9:80"),
            // Accepted by the listener below: takes no port of the range.
            socket(TcpState::TimeWait, "10.0.0.1:22", "10.0.0.7:40000"),
        ];
        let open = [
            held(
                TcpState::Established,
                "10.0.0.1:40002",
                "10.0.0.9:80",
                "/usr/bin/curl -s x",
            ),
            held(
                TcpState::CloseWait,
                "10.0.0.1:39999",
                "10.0.0.9:80",
                "/usr/bin/curl -s x",
            ),
            held(TcpState::Listen, "0.0.0.0:22", "0.0.0.0:0", "sshd"),
            // In the range: lost for all destinations.
            held(TcpState::Listen, "0.0.0.0:40050", "0.0.0.0:0", "app"),
        ];
        let traffic = Traffic::new(&remnants, &open, &ports(), REUSE);
        assert_eq!(traffic.states[&TcpState::TimeWait], 4);
        assert_eq!(traffic.listening(), BTreeSet::from([22, 40_050]));
        let [first, second] = traffic.destinations.as_slice() else {
            panic!("{:#?}", traffic.destinations);
        };
        assert_eq!(first.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(
            (first.established, first.time_wait, first.close_wait),
            (1, 2, 1)
        );
        // 39999 is none of the range's.
        assert_eq!((first.usable, first.left, first.reusable), (99, 96, 0));
        assert_eq!(first.owners, [("curl (pid 812)".to_owned(), 2)]);
        assert_eq!((second.time_wait, second.left), (1, 98));
        assert_eq!(traffic.users[0].sockets, 2);
        assert_eq!(traffic.users[0].close_wait, 1);
    }

    #[test]
    fn what_a_listener_that_has_ended_left_is_no_destination() {
        let left = |client: u16| {
            let remote = format!("10.0.0.7:{client}");
            socket(TcpState::TimeWait, "10.0.0.1:40010", &remote)
        };
        let mut remnants: Vec<_> = (50_000..50_020).map(left).collect();
        remnants.push(socket(TcpState::TimeWait, "10.0.0.1:40000", "10.0.0.9:80"));
        let traffic = Traffic::new(&remnants, &[], &ports(), REUSE);
        assert_eq!(traffic.destinations.len(), 1, "{:#?}", traffic.destinations);
        // Source ports that many destinations share are no server's: each of these has more of them.
        let made = |at: u16| {
            let local = format!("10.0.0.1:{}", 40_000 + at % 30);
            let remote = format!("10.0.0.9:{}", 80 + at / 30);
            socket(TcpState::TimeWait, &local, &remote)
        };
        let remnants: Vec<_> = (0..300).map(made).collect();
        let traffic = Traffic::new(&remnants, &[], &ports(), REUSE);
        assert_eq!(
            traffic.destinations.len(),
            10,
            "{:#?}",
            traffic.destinations
        );
    }

    #[test]
    fn what_may_be_used_again_depends_on_age_and_place() {
        let young = Socket {
            expires_ms: Some(59_500),
            ..socket(TcpState::TimeWait, "127.0.0.1:40001", "127.0.0.1:80")
        };
        let remnants = [
            socket(TcpState::TimeWait, "127.0.0.1:40000", "127.0.0.1:80"),
            young,
            socket(TcpState::TimeWait, "10.0.0.1:40000", "10.0.0.9:80"),
        ];
        let traffic = Traffic::new(&remnants, &[], &ports(), REUSE);
        let reusable: Vec<_> = traffic
            .destinations
            .iter()
            .map(|one| (one.remote.ip().is_loopback(), one.reusable, one.available()))
            .collect();
        assert_eq!(reusable, [(true, 1, 99), (false, 0, 99)]);
    }

    #[test]
    fn somebody_who_is_not_seen_is_called_by_unit_or_user() {
        let mut holder = held(TcpState::Listen, "0.0.0.0:22", "0.0.0.0:0", "sshd");
        holder.owner = None;
        assert_eq!(name(&holder), "web.service");
        holder.unit = None;
        assert_eq!(name(&holder), "nobody that is seen");
        holder.is_hidden = true;
        assert_eq!(name(&holder), "user web (root sees more)");
    }
}
