//! Binds that fail for real, on loopback.

use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};

use socket2::{Domain, Type};

use super::super::testing::{connect, eventually, lists_bound_sockets, own_address, own_listener};
use super::*;
use crate::socket::{ListenOptions, listen_with};

fn own(port: u16) -> SocketAddr {
    SocketAddr::from((own_address(), port))
}

/// Why `address` can't be listened on; as the daemons do it, with SO_REUSEADDR.
fn why(address: SocketAddr) -> Explanation {
    let error = match listen_with(address, &ListenOptions::new(16)) {
        Ok(_) => panic!("{address} is free"),
        Err(error) => error.explained(),
    };
    error.explanation().unwrap().clone()
}

/// Looks again until the kernel's tables have settled.
fn why_in_the_end(address: SocketAddr, name: &str) -> Explanation {
    eventually(name, || {
        Some(why(address)).filter(|found| found.name() == name)
    })
}

#[track_caller]
fn assert_says(found: &Explanation, parts: &[&str]) {
    let line = found.to_string();
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert!(!line.contains('\n'), "{line}");
}

/// A listener that did not set SO_REUSEADDR; std's does.
fn plain_listener() -> TcpListener {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&own(0).into()).unwrap();
    socket.listen(16).unwrap();
    socket.into()
}

fn own_pid() -> String {
    format!("pid {} \"", std::process::id())
}

#[test]
fn another_listener_is_named() {
    let (_holder, address) = own_listener();
    let found = why(address);
    assert_eq!(found.name(), "listener");
    let on = format!("listens on {address} already: ");
    assert_says(&found, &[&own_pid(), "since 20", &on, "configured twice"]);
    let owner = found.owner().unwrap();
    assert_eq!((owner.pid, owner.others), (std::process::id(), 0));
}

#[test]
fn a_wildcard_listener_is_in_the_way_of_each_address() {
    let holder = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let found = why(own(port));
    assert_says(
        &found,
        &[&format!(
            "listens on 0.0.0.0:{port}, which is every address"
        )],
    );
    // And the other way round.
    let (_holder, address) = own_listener();
    let found = why(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())));
    let on = format!("listens on {address}, which every address would include");
    assert_says(&found, &[&on]);
}

#[test]
fn a_dual_stack_listener_is_in_the_way_of_ipv4() {
    let any: SocketAddr = "[::]:0".parse().unwrap();
    let both = ListenOptions {
        ipv6_only: false,
        ..ListenOptions::new(16)
    };
    let Ok(holder) = listen_with(any, &both) else {
        eprintln!("SKIPPED: this host has no IPv6");
        return;
    };
    let port = holder.local_addr().unwrap().port();
    let found = why(own(port));
    assert_says(
        &found,
        &[&format!("listens on [::]:{port}, which takes IPv4 as well")],
    );
    drop(holder);
    // The other way round: IPv4 is in the way of both.
    let (_holder, address) = own_listener();
    let any = SocketAddr::new(any.ip(), address.port());
    let error = listen_with(any, &both).unwrap_err().explained();
    let found = error.explanation().unwrap();
    assert_eq!(found.holder().unwrap().socket.local, address);
}

#[test]
fn an_outgoing_connection_that_took_the_port_is_named() {
    let (service, remote) = own_listener();
    let client = connect(own_address(), remote);
    let local = client.local_addr().unwrap();
    let found = why(local);
    assert_eq!(found.name(), "outgoing_connection");
    let what = format!(
        "port {} is the source port of the connection {local} -> {remote} (ESTABLISHED), of {}",
        local.port(),
        own_pid()
    );
    let range = format!("({})", local_port_range());
    assert_says(
        &found,
        &[
            &what,
            "end that connection",
            "net.ipv4.ip_local_reserved_ports=",
            &local.port().to_string(),
            &range,
        ],
    );
    // Closed from here: the port stays taken for a minute.
    drop(client);
    drop(service.accept().unwrap());
    let found = eventually("TIME_WAIT", || {
        Some(why(local)).filter(|found| found.time_wait_ends_ms().is_some())
    });
    assert_eq!(found.name(), "outgoing_connection");
    assert_says(&found, &["(TIME_WAIT for ", " s more)", "wait for its end"]);
    assert_eq!(found.owner(), None);
}

fn local_port_range() -> String {
    crate::diag::ports::local_port_range().unwrap().to_string()
}

#[test]
fn what_a_listener_without_reuseaddr_left_is_told_with_its_end() {
    let listener = plain_listener();
    let address = listener.local_addr().unwrap();
    let clients: Vec<_> = (0..3)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let accepted: Vec<_> = (0..3).map(|_| listener.accept().unwrap().0).collect();
    drop(listener);
    // Still open: whose they are is known.
    let found = why_in_the_end(address, "connections_of_a_listener");
    assert_says(
        &found,
        &[
            "3 connections that an earlier listener accepted without SO_REUSEADDR keep port",
            "3 not closed on both sides",
            &own_pid(),
            "end the process",
        ],
    );
    // Closed here first: TIME_WAIT is here.
    drop(accepted);
    drop(clients);
    let found = eventually("TIME_WAIT alone", || {
        Some(why(address)).filter(|found| match &found.cause {
            Cause::Remnants(connections) => connections.time_wait == 3,
            _ => false,
        })
    });
    let left_ms = found.time_wait_ends_ms().unwrap();
    assert!((1..=60_000).contains(&left_ms), "{left_ms}");
    let wait = format!("wait these {} s", left_ms.div_ceil(1000));
    assert_says(&found, &["3 in TIME_WAIT, the last for ", &wait]);
}

#[test]
fn half_closed_remnants_are_told() {
    let listener = plain_listener();
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    let (server, _) = listener.accept().unwrap();
    drop(listener);
    client.shutdown(Shutdown::Write).unwrap();
    let found = eventually("CLOSE_WAIT", || {
        Some(why(address)).filter(|found| found.to_string().contains("CLOSE_WAIT"))
    });
    assert_eq!(found.name(), "connections_of_a_listener");
    assert_says(&found, &["1 connection that", " keeps port", &own_pid()]);
    drop(server);
}

#[test]
fn a_socket_that_is_only_bound_is_named() {
    let holder = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    holder.bind(&own(0).into()).unwrap();
    let address = holder.local_addr().unwrap().as_socket().unwrap();
    let found = why(address);
    if !lists_bound_sockets() {
        assert_says(&found, &["before Linux 6.8", "try again"]);
        return;
    }
    assert_eq!(found.name(), "bound_socket");
    let what = format!("has bound {address} and does not listen on it");
    assert_says(&found, &[&own_pid(), &what]);
}

#[test]
fn an_address_of_another_host_is_told_with_those_of_this_one() {
    let found = why("192.0.2.1:7412".parse().unwrap());
    assert_eq!(found.name(), "not_local");
    assert_says(
        &found,
        &["no address 192.0.2.1; it has 127.0.0.1", "freebind = true"],
    );
}

#[test]
fn permission_is_asked_for_where_it_is_needed() {
    // Root may bind any port, so this one error is made up.
    let denied = io::Error::from_raw_os_error(13);
    let found = explain(Transport::Tcp, own(80), &denied);
    if unprivileged_from() > 80 {
        assert_eq!(found.name(), "privileged_port");
        assert_says(
            &found,
            &[
                "net.ipv4.ip_unprivileged_port_start",
                "AmbientCapabilities=CAP_NET_BIND_SERVICE",
            ],
        );
    }
    let found = explain(Transport::Tcp, own(65_000), &denied);
    assert_eq!(found.name(), "forbidden");
    assert_says(&found, &["security module", "semanage"]);
}

#[test]
fn a_link_local_address_needs_its_interface() {
    let found = match listen_with("[fe80::1]:7412".parse().unwrap(), &ListenOptions::new(16)) {
        Err(error) => error.explained().explanation().unwrap().clone(),
        Ok(_) => panic!("it can't be bound without an interface"),
    };
    if found.cause == Cause::NoFamily {
        eprintln!("SKIPPED: this host has no IPv6");
        return;
    }
    assert_eq!(found.name(), "no_scope");
    assert_says(&found, &["[fe80::1%2]:7412"]);
}

#[test]
fn a_udp_socket_that_is_in_the_way_is_named() {
    let holder = UdpSocket::bind(own(0)).unwrap();
    let address = holder.local_addr().unwrap();
    let error = crate::udp::bind(address, &ListenOptions::new(16)).unwrap_err();
    let error = error.explained();
    assert!(error.to_string().contains(" (UDP): "), "{error}");
    let found = error.explanation().unwrap();
    assert_eq!(found.name(), "listener");
    assert_says(found, &[&own_pid(), "has a UDP socket on", "already"]);
    // TCP has ports of its own.
    let found = explain(Transport::Tcp, address, &error.source);
    assert_eq!(found.cause, Cause::Unseen);
}

#[test]
fn nobody_is_blamed_for_a_port_that_is_free_again() {
    let address = TcpListener::bind(own(0)).unwrap().local_addr().unwrap();
    let error = io::Error::from_raw_os_error(98);
    let found = explain(Transport::Tcp, address, &error);
    assert_eq!((found.name(), found.holder()), ("unknown_holder", None));
    assert_says(&found, &["has just let go of it"]);
}
