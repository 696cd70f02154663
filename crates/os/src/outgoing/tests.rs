use std::collections::HashSet;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::*;

fn connector(outgoing: Outgoing) -> Connector {
    Connector::new(outgoing)
}

fn addresses(texts: &[&str]) -> Vec<ScopedAddress> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn listener(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Waits until the connection stands.
fn finished(socket: Socket) -> TcpStream {
    let stream: TcpStream = socket.into();
    let mut fds = [rustix::event::PollFd::new(
        &stream,
        rustix::event::PollFlags::OUT,
    )];
    let limit = Duration::from_secs(10).try_into().unwrap();
    assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).unwrap(), 1);
    assert!(stream.take_error().unwrap().is_none());
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Ports outside of the kernel's range that nobody has: the way of explicit binds.
fn free_ports(count: u16) -> PortRange {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut first = 20_000 + u16::try_from(getrandom::u32().unwrap() % 8000).unwrap();
    while !(first..first + count).all(is_free) {
        first += count;
    }
    PortRange {
        first,
        last: first + count - 1,
    }
}

#[test]
fn source_addresses_take_turns() {
    let (listener, destination) = listener("127.0.0.1:0");
    let connector = connector(Outgoing {
        source_addresses: addresses(&["127.0.0.2", "::1", "127.0.0.3"]),
        ..Outgoing::default()
    });
    let mut seen = Vec::new();
    for _ in 0..4 {
        let _stream = finished(connector.connect(destination).unwrap());
        seen.push(listener.accept().unwrap().1.ip().to_string());
    }
    assert_eq!(seen, ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"]);
}

#[test]
fn a_source_that_cannot_be_used_is_passed_over() {
    let (listener, destination) = listener("127.0.0.1:0");
    let connector = connector(Outgoing {
        source_addresses: addresses(&["192.0.2.1", "127.0.0.3"]),
        ..Outgoing::default()
    });
    for _ in 0..3 {
        let _stream = finished(connector.connect(destination).unwrap());
        let from = listener.accept().unwrap().1.ip().to_string();
        assert_eq!(from, "127.0.0.3");
    }
}

#[test]
fn a_source_address_takes_no_port_before_the_destination_is_known() {
    let (_listener, destination) = listener("127.0.0.1:0");
    let connector = connector(Outgoing {
        source_addresses: addresses(&["127.0.0.2"]),
        ..Outgoing::default()
    });
    let socket = connector.socket_for(destination).unwrap();
    let bound = socket.local_addr().unwrap().as_socket().unwrap();
    assert_eq!(bound.to_string(), "127.0.0.2:0");
}

#[test]
fn a_source_address_that_is_not_here_is_named() {
    let (_listener, destination) = listener("127.0.0.1:0");
    let connector = connector(Outgoing {
        source_addresses: addresses(&["192.0.2.1"]),
        ..Outgoing::default()
    });
    let error = connector.connect(destination).unwrap_err();
    assert!(matches!(error, OutgoingError::NotHere { .. }), "{error}");
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
}

#[test]
fn a_destination_of_another_family_is_refused() {
    let connector = connector(Outgoing {
        source_addresses: addresses(&["127.0.0.2"]),
        ..Outgoing::default()
    });
    let error = connector.connect("[::1]:9".parse().unwrap()).unwrap_err();
    assert!(matches!(error, OutgoingError::Family { .. }), "{error}");
}

/// Opens connections until the ports are used up, and returns the ports that the other end saw.
fn use_up(connector: &Connector, listener: &TcpListener) -> Vec<(TcpStream, TcpStream, u16)> {
    let destination = listener.local_addr().unwrap();
    let mut open = Vec::new();
    loop {
        match connector.connect(destination) {
            Ok(socket) => {
                let stream = finished(socket);
                let (accepted, from) = listener.accept().unwrap();
                open.push((stream, accepted, from.port()));
            }
            Err(OutgoingError::Exhausted { destination: told }) => {
                assert_eq!(told, destination);
                return open;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn each_port_of_an_explicit_range_is_used_once_for_a_destination() {
    let range = free_ports(5);
    let connector = connector(Outgoing {
        source_ports: Some(range),
        ..Outgoing::default()
    });
    let (first, _) = listener("127.0.0.1:0");
    let open = use_up(&connector, &first);
    let ports: HashSet<u16> = open.iter().map(|(_, _, port)| *port).collect();
    assert_eq!(ports, range.ports().collect());
    // Another destination has all of them again.
    let (second, _) = listener("127.0.0.1:0");
    assert_eq!(use_up(&connector, &second).len(), 5);
}

#[test]
fn reserved_ports_are_left_alone() {
    let range = free_ports(5);
    let mut connector = connector(Outgoing {
        source_ports: Some(range),
        ..Outgoing::default()
    });
    let reserved = PortRange {
        first: range.first + 1,
        last: range.first + 2,
    };
    connector.reserved = vec![reserved];
    let ports = connector.local_ports().unwrap();
    assert_eq!((ports.usable(), ports.reserved()), (3, 2));
    let (listener, _) = listener("127.0.0.1:0");
    let open = use_up(&connector, &listener);
    assert_eq!(open.len(), 3);
    assert!(!open.iter().any(|(_, _, port)| reserved.contains(*port)));
}

#[test]
fn a_range_inside_the_kernels_is_left_to_the_kernel() {
    let kernel = local_port_range().unwrap();
    let first = kernel.first + u16::try_from(getrandom::u32().unwrap() % 10_000).unwrap();
    let range = PortRange {
        first,
        last: first + 3,
    };
    let connector = connector(Outgoing {
        source_addresses: addresses(&["127.0.0.9"]),
        source_ports: Some(range),
        ..Outgoing::default()
    });
    let (listener, destination) = listener("127.0.0.1:0");
    let has_option = connector.open(destination, Kind::Stream).unwrap().1 == Ports::Kernel;
    if !has_option {
        eprintln!("SKIPPED: this kernel has no IP_LOCAL_PORT_RANGE");
        return;
    }
    let open = use_up(&connector, &listener);
    assert!(open.len() <= 4, "{}", open.len());
    assert!(!open.is_empty());
    assert!(open.iter().all(|(_, _, port)| range.contains(*port)));
}

#[test]
fn a_second_source_address_has_the_ports_again() {
    let range = free_ports(3);
    let connector = connector(Outgoing {
        source_addresses: addresses(&["127.0.0.4", "127.0.0.5"]),
        source_ports: Some(range),
        ..Outgoing::default()
    });
    let (listener, _) = listener("127.0.0.1:0");
    assert_eq!(use_up(&connector, &listener).len(), 6);
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let connector = connector(Outgoing {
        interface: Some("none-such".to_owned()),
        ..Outgoing::default()
    });
    let error = connector.connect("127.0.0.1:9".parse().unwrap());
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("none-such") && text.contains("no such interface"),
        "{text}"
    );
}

#[test]
fn the_loopback_interface_can_be_asked_for() {
    let connector = connector(Outgoing {
        interface: Some("lo".to_owned()),
        ..Outgoing::default()
    });
    let (_listener, destination) = listener("127.0.0.1:0");
    let stream = finished(connector.connect(destination).unwrap());
    let device = SockRef::from(&stream).device().unwrap();
    assert_eq!(device.as_deref(), Some(&b"lo"[..]));
}

#[test]
fn a_reset_leaves_no_time_wait() {
    use crate::clock;
    use crate::diag::sockets::{Filter, TcpState, tcp};
    let (listener, destination) = listener("127.0.0.1:0");
    for (reset, left) in [(false, Some(TcpState::TimeWait)), (true, None)] {
        let stream = finished(connector(Outgoing::default()).connect(destination).unwrap());
        let local = stream.local_addr().unwrap();
        reset_on_close(&stream, reset).unwrap();
        let accepted = listener.accept().unwrap();
        drop(stream);
        drop(accepted);
        let filter = Filter {
            local_port: Some(local.port()),
            remote_port: Some(destination.port()),
            ..Filter::default()
        };
        let state = || tcp(&filter).unwrap().first().map(|socket| socket.state);
        // The last segments may take a moment.
        let deadline = clock::boot() + Duration::from_secs(10);
        while state() != left {
            assert!(clock::boot() < deadline, "{reset}: {:?}", state());
            std::thread::yield_now();
        }
    }
}

#[test]
fn scoped_addresses_are_read_as_written() {
    for text in ["10.0.0.5", "2001:db8::5", "fe80::5%eth0", "fe80::5%3"] {
        let address: ScopedAddress = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
        assert!(!address.needs_scope(), "{text}");
    }
    for bad in [
        "",
        "host",
        "10.0.0.5%eth0",
        "fe80::5%",
        "fe80::5%a/b",
        "::1%a b",
    ] {
        assert!(bad.parse::<ScopedAddress>().is_err(), "{bad}");
    }
    assert!("fe80::5".parse::<ScopedAddress>().unwrap().needs_scope());
}

#[test]
fn a_scope_is_an_interface_of_this_host() {
    let scoped = |text: &str| text.parse::<ScopedAddress>().unwrap().with_port(7);
    let SocketAddr::V6(numbered) = scoped("fe80::5%17").unwrap() else {
        panic!("not IPv6");
    };
    assert_eq!((numbered.scope_id(), numbered.port()), (17, 7));
    let SocketAddr::V6(named) = scoped("fe80::5%lo").unwrap() else {
        panic!("not IPv6");
    };
    assert!(named.scope_id() > 0);
    let error = scoped("fe80::5%none-such").unwrap_err().to_string();
    assert!(error.contains("none-such"), "{error}");
}
