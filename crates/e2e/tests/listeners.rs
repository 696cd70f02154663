//! Where the master listens and whom it lets in, with the real program.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;

use rollcall_e2e::peer::Identity;
use rollcall_e2e::ports::Reservation;
use rollcall_e2e::skip::require_root_or_skip_loudly;
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{LogLine, Master, Namespace, Peer, Slave, wait_until};
use rollcall_protocol::wire::ErrorCode;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

/// Source ports that take a privilege, as bindresvport(3) picks them.
const PRIVILEGED: RangeInclusive<u16> = 512..=1023;

fn set_addresses(master: &mut Master, addresses: &[SocketAddr]) {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    master.config.set("listen.addresses", addresses);
}

/// SIGHUP, and the `count`th line of `event` then.
fn reload(master: &mut Master, event: &str, count: usize) -> LogLine {
    master.config.write(&master.config_file());
    master.signal(Signal::HUP);
    master.wait_for_events(event, count).remove(count - 1)
}

fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

fn listener_metric(master: &Master, name: &str, address: SocketAddr, reason: &str) -> f64 {
    let labels = match reason {
        "" => format!("{{listener=\"{address}\"}}"),
        reason => format!("{{listener=\"{address}\",reason=\"{reason}\"}}"),
    };
    let metric = format!("rollcall_listener_{name}{labels}");
    master.api().metric(&metric).expect("the metric")
}

/// Listeners come and go; a slave and a peer of a removed listener do not notice, and one that can't
/// be had is named with its holder and stops nothing.
#[test]
fn sighup_adds_and_removes_listeners_and_disturbs_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    let (stays, reservations) = (master.address(), [(); 3].map(|()| Reservation::new()));
    let [goes, comes, held] = reservations.each_ref().map(Reservation::address);
    set_addresses(&mut master, &[stays, goes]);
    // "up" for as long as the test takes, whatever the machine is busy with.
    master
        .config
        .set("presence.late_after", 60.0)
        .set("presence.missing_after", 120.0);
    master.start();
    let mut slave = Slave::new(folder.path(), "web-1", &[stays], "100ms");
    slave.start();
    let before = master.wait_for_row("web-1", "up", |row| row.sequence >= 2);
    let mut identity = Identity::new("remains", 1000);
    let (mut peer, _) = Peer::open(goes, &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");

    let holder = TcpListener::bind(held).expect("a reserved port is free to listen on");
    set_addresses(&mut master, &[stays, comes, held]);
    let removed = reload(&mut master, "listener_removed", 1);
    assert_eq!(removed.text("address"), goes.to_string());
    let failed = master.wait_for_event("listen_failed");
    assert_eq!(failed.text("address"), held.to_string());
    let pid = std::process::id().to_string();
    assert!(failed.text("error").contains(&pid), "{failed:?}");
    assert_eq!(master.wait_for_event("reloaded").text("keys"), "");
    assert!(TcpStream::connect(goes).is_err(), "nobody listens there");
    let mut second = Identity::new("comes", 1000);
    let (mut other, _) = Peer::open(comes, &second).expect("a session");
    other.report(&mut second).expect("an ack");
    peer.report(&mut identity)
        .expect("an ack on the old connection");
    assert_eq!(listener_metric(&master, "up", goes, ""), 0.0);
    assert_eq!(listener_metric(&master, "up", held, ""), 0.0);
    assert_eq!(listener_metric(&master, "up", comes, ""), 1.0);
    assert_eq!(listener_metric(&master, "accepted_total", comes, ""), 1.0);

    // Its holder gone, SIGHUP gets it, and what was removed comes back.
    drop(holder);
    set_addresses(&mut master, &[stays, comes, held, goes]);
    reload(&mut master, "reloaded", 2);
    // Two at the start, one new at the first reload, two at the second.
    master.wait_for_events("listening", 5);
    for address in [held, goes] {
        Peer::connect(address).expect("a listener");
    }
    peer.report(&mut identity).expect("an ack");
    let row = master.wait_for_row("web-1", "reporting", |row| {
        row.sequence > before.sequence + 3
    });
    assert_eq!(row.connected_since_ms, before.connected_since_ms);
    assert_eq!((row.reconnects, row.gaps, row.duplicates), (0, 0, 0));
    assert_eq!(master.api().presences("web-1").expect("events"), ["up"]);
}

/// What can't be changed without a restart is named, and the running listeners stay as they are.
#[test]
fn what_sighup_does_not_change_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::started(folder.path());
    master
        .config
        .set("listen.ipv6_only", false)
        .set("listen.freebind", true)
        .set("listen.backlog", 100);
    let partial = reload(&mut master, "reloaded_in_part", 1);
    let keys = "listen.backlog, listen.ipv6_only, listen.freebind";
    assert_eq!(partial.text("keys"), keys);
    Peer::connect(master.address()).expect("the listener");
}

#[test]
fn one_port_serves_on_several_addresses() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    let port = master.address().port();
    let mut addresses: Vec<SocketAddr> = ["127.0.0.1", "127.0.0.2"]
        .map(|ip| SocketAddr::new(ip.parse().expect("an address"), port))
        .to_vec();
    if has_ipv6() {
        let ip = "::1".parse().expect("an address");
        addresses.push(SocketAddr::new(ip, port));
    }
    set_addresses(&mut master, &addresses);
    master.start();
    for (number, address) in addresses.iter().enumerate() {
        let mut identity = Identity::new(&format!("slave-{number}"), 1000);
        let (mut peer, _) = Peer::open(*address, &identity).expect("a session");
        peer.report(&mut identity).expect("an ack");
        assert_eq!(
            listener_metric(&master, "accepted_total", *address, ""),
            1.0
        );
    }
}

/// One socket for both families shows IPv4 peers as such; by default an IPv6 address takes IPv6 only.
#[test]
fn dual_stack_is_as_configured() {
    if !has_ipv6() {
        rollcall_e2e::skip::skip_loudly("dual stack", "this host has no IPv6");
        return;
    }
    for ipv6_only in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut master = Master::new(folder.path(), "master");
        let ipv4 = master.address();
        let any = SocketAddr::new("::".parse().expect("an address"), ipv4.port());
        set_addresses(&mut master, &[any]);
        master
            .config
            .set("listen.ipv6_only", ipv6_only)
            .set("tls.mode", "off");
        master.start();
        let ipv6 = SocketAddr::new("::1".parse().expect("an address"), ipv4.port());
        let mut identity = Identity::new("six", 1000);
        let (mut six, _) = Peer::open(ipv6, &identity).expect("a session");
        six.report(&mut identity).expect("an ack");
        let mut identity = Identity::new("four", 1000);
        match Peer::open(ipv4, &identity) {
            Ok((mut four, _)) => {
                assert!(!ipv6_only, "IPv4 at an IPv6 listener");
                four.report(&mut identity).expect("an ack");
                let row = master.wait_for_row("four", "up", |row| row.sequence == 1);
                let peer = row.peer.unwrap_or_default();
                assert!(peer.starts_with("127.0.0.1:"), "{peer}");
            }
            Err(error) => assert!(ipv6_only, "{error}"),
        }
    }
}

/// Peers that find no descriptor.
const REFUSED: usize = 5;

/// No descriptor is left: who is connected is served, who comes is told to come back, the log has a
/// few lines, and all is well when there are descriptors again.
#[test]
fn accept_survives_the_want_of_descriptors() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    master.config.set("session.hello_timeout", "5m");
    master.start();
    let mut identity = Identity::new("steady", 1000);
    let (mut steady, _) = Peer::open(master.address(), &identity).expect("a session");
    let pid = i32::try_from(master.pid()).ok().and_then(Pid::from_raw);
    let open: Vec<u64> = fs::read_dir(format!("/proc/{}/fd", master.pid()))
        .expect("the descriptors of an own process")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let limit = open.iter().max().expect("a descriptor") + 1;
    // Numbers below the limit that are free, and five peers more than those.
    let fitting = usize::try_from(limit).expect("a few") - open.len();
    let count = fitting + REFUSED;
    // The hard limit stays, so that the soft one can be raised again without root.
    let limits = Rlimit {
        current: Some(limit),
        ..rustix::process::getrlimit(Resource::Nofile)
    };
    let before = prlimit(pid, Resource::Nofile, limits).expect("an own process");
    let mut peers: Vec<_> = (0..count)
        .map(|_| Peer::connect(master.address()).expect("room in the queue"))
        .collect();
    // They are accepted in the order in which they came.
    for peer in &mut peers[fitting..] {
        steady.report(&mut identity).expect("an ack meanwhile");
        let error = peer.await_refusal().expect("words");
        assert_eq!(error.code(), ErrorCode::Busy, "{error:?}");
        assert!(error.text.contains("LimitNOFILE"), "{error:?}");
        assert!(error.retry && error.retry_after_ms > 0, "{error:?}");
    }
    let told = master.wait_for_event("accept_failed");
    assert_eq!(told.number("errno"), Some(24), "EMFILE: {told:?}");
    assert!(told.text("remedy").contains("LimitNOFILE"), "{told:?}");

    prlimit(pid, Resource::Nofile, before).expect("an own process");
    let (mut peer, second) = wait_until(PATIENCE, "a session", || {
        let identity = Identity::new("late", 1000);
        let (peer, _) = Peer::open(master.address(), &identity).ok()?;
        Some((peer, identity))
    });
    let mut second = second;
    peer.report(&mut second).expect("an ack");
    steady.report(&mut identity).expect("an ack");
    let address = master.address();
    let counted = listener_metric(&master, "refused_total", address, "no_descriptor");
    assert!(counted >= 5.0, "{counted}");
    drop(peers);
    assert_eq!(master.log().events("accept_failed").len(), 1);
    assert!(master.log().events("session_refused").len() <= 3);
}

#[test]
fn an_address_has_no_more_connections_than_it_may() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    master.config.set("limits.connections_per_address_max", 2);
    master.start();
    let address = master.address();
    let mut first = Peer::connect(address).expect("a connection");
    let second = Peer::connect(address).expect("a connection");
    let mut third = Peer::connect(address).expect("a connection");
    let error = third.await_refusal().expect("words");
    assert_eq!(error.code(), ErrorCode::Busy);
    assert!(
        error.text.contains("127.0.0.1 has 2 connections")
            && error.text.contains("connections_per_address_max"),
        "{error:?}"
    );
    // Another address is not concerned, and a place that was left is free again.
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], 0));
    let mut identity = Identity::new("elsewhere", 1000);
    let mut other = Peer::connect_from(elsewhere, address).expect("a connection");
    other.greet(&identity).expect("a session");
    other.report(&mut identity).expect("an ack");
    first.finish().expect("a connection");
    first.await_close().expect("the end");
    drop(first);
    wait_until(PATIENCE, "the place to be free", || {
        let mut peer = Peer::connect(address).ok()?;
        peer.greet(&Identity::new("next", 1000)).ok()
    });
    assert!(listener_metric(&master, "refused_total", address, "per_address") >= 1.0);
    drop(second);
    // SIGHUP changes it.
    master.config.set("limits.connections_per_address_max", 0);
    reload(&mut master, "reloaded", 1);
    let peers = [(); 5].map(|()| Peer::connect(address).expect("a connection"));
    for (number, mut peer) in peers.into_iter().enumerate() {
        let identity = Identity::new(&format!("slave-{number}"), 1000);
        peer.greet(&identity).expect("a session");
    }
}

/// All connections are in use: who comes is told so, and the others go on.
#[test]
fn connections_in_all_are_limited_with_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    master.config.set("limits.connections_max", 1);
    master.start();
    let mut identity = Identity::new("first", 1000);
    let (mut first, _) = Peer::open(master.address(), &identity).expect("a session");
    let mut second = Peer::connect(master.address()).expect("a connection");
    let error = second.await_refusal().expect("words");
    assert!(error.text.contains("connections_max"), "{error:?}");
    assert!(error.retry, "{error:?}");
    first.report(&mut identity).expect("an ack");
    let address = master.address();
    assert_eq!(
        listener_metric(&master, "refused_total", address, "full"),
        1.0
    );
    // SIGHUP raises it.
    master.config.set("limits.connections_max", 2);
    reload(&mut master, "reloaded", 1);
    let other = Identity::new("second", 1000);
    Peer::open(master.address(), &other).expect("a session");
}

/// A listener for privileged source ports refuses others by name, beside one that takes all.
#[test]
fn a_privileged_listener_takes_privileged_ports_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    let (open, reservation) = (master.address(), Reservation::new());
    let privileged = reservation.address();
    set_addresses(&mut master, &[open, privileged]);
    master
        .config
        .set("listen.privileged", vec![privileged.to_string()]);
    master.start();
    let mut peer = Peer::connect(privileged).expect("a connection");
    let error = peer.await_refusal().expect("words");
    assert_eq!(error.code(), ErrorCode::SourcePort);
    assert!(!error.retry, "{error:?}");
    assert!(error.text.contains("privileged_source_port"), "{error:?}");
    let refused = listener_metric(&master, "refused_total", privileged, "source_port");
    assert_eq!(refused, 1.0);
    let line = master.wait_for_event("session_refused");
    assert_eq!(line.text("code"), "ERROR_CODE_SOURCE_PORT", "{line:?}");
    Peer::open(open, &Identity::new("ordinary", 1000)).expect("a session at the other one");
    if require_root_or_skip_loudly("a slave with a privileged source port") {
        let mut identity = Identity::new("root", 1000);
        let mut peer = from_privileged_port(privileged);
        peer.greet(&identity).expect("a session");
        peer.report(&mut identity).expect("an ack");
    }
    // SIGHUP opens it to all, and the listener stays.
    master.config.set("listen.privileged", Vec::<String>::new());
    reload(&mut master, "reloaded", 1);
    Peer::open(privileged, &Identity::new("anybody", 1000)).expect("a session");
    assert_eq!(master.log().events("listening").len(), 2);
}

fn from_privileged_port(master: SocketAddr) -> Peer {
    let connect = |port| {
        let source = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Peer::connect_from(source, master).ok()
    };
    match PRIVILEGED.rev().find_map(connect) {
        Some(peer) => peer,
        None => panic!("no privileged port is free"),
    }
}

const RESERVED: &str = "8080,40000-40010";

/// A port that outgoing connections may take is warned of with the line that mends it; another one
/// is not.
#[test]
fn a_port_of_the_ephemeral_range_is_warned_of() {
    let name = "a port inside the range of outgoing connections";
    let Some(namespace) = Namespace::new_or_skip_loudly(name) else {
        return;
    };
    namespace.set("net.ipv4.ip_local_port_range", "32768 60999");
    namespace.set("net.ipv4.ip_local_reserved_ports", RESERVED);
    // For slaves, for readers, and which of them is in danger.
    for (slaves, http, warned) in [
        (7412, 7413, None),
        (40_005, 7413, None),
        (7412, 40_020, Some(40_020)),
        (40_011, 7413, Some(40_011)),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut master = Master::new(folder.path(), "master");
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        set_addresses(&mut master, &[address(slaves)]);
        master.config.set("http.address", address(http).to_string());
        namespace.run(|| master.start());
        let lines = master.log().events("port_in_ephemeral_range");
        let Some(port) = warned else {
            assert!(lines.is_empty(), "{lines:?}");
            continue;
        };
        let [line] = &lines[..] else {
            panic!("one line is due: {lines:?}");
        };
        assert_eq!(line.text("address"), address(port).to_string());
        assert_eq!(line.text("range"), "32768-60999");
        let reserved = format!("8080,40000-40010,{port}");
        let remedy = format!("net.ipv4.ip_local_reserved_ports = {reserved}");
        assert_eq!(line.text("remedy"), remedy);
        // What it names mends it.
        namespace.set("net.ipv4.ip_local_reserved_ports", &reserved);
        assert!(master.terminate().success());
        namespace.run(|| master.start());
        assert!(master.log().events("port_in_ephemeral_range").is_empty());
        namespace.set("net.ipv4.ip_local_reserved_ports", RESERVED);
    }
}

/// With freebind the master listens on an address before the host has it.
#[test]
fn an_address_may_come_later() {
    let Some(namespace) = Namespace::new_or_skip_loudly("an address that comes later") else {
        return;
    };
    let address = SocketAddr::from(([192, 0, 2, 1], 7412));
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    set_addresses(&mut master, &[address]);
    master.config.set("tls.mode", "off");
    namespace.run(|| master.spawn());
    assert_eq!(master.wait(PATIENCE).code(), Some(69), "EX_UNAVAILABLE");

    master.config.set("listen.freebind", true);
    namespace.run(|| master.start());
    namespace.ip("address add 192.0.2.1/32 dev lo");
    let mut identity = Identity::new("web-1", 1000);
    let (mut peer, _) = namespace
        .run(|| Peer::open(address, &identity))
        .expect("a session");
    peer.report(&mut identity).expect("an ack");
}
