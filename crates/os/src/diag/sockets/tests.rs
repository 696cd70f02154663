//! Against real sockets on loopback.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use super::super::testing::{eventually, lists_bound_sockets, own_address, own_listener};
use super::*;

fn inode(socket: &impl AsRawFd) -> u32 {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    let text = link.to_str().unwrap();
    let number = text.strip_prefix("socket:[").unwrap().strip_suffix(']');
    number.unwrap().parse().unwrap()
}

fn on_port(port: u16) -> Filter {
    Filter {
        local_port: Some(port),
        ..Filter::default()
    }
}

/// The only socket at `address`. Others may have the same port at other addresses.
#[track_caller]
fn only(address: SocketAddr, mut found: Vec<Socket>) -> Socket {
    found.retain(|socket| socket.local == address);
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

#[test]
fn a_listener_is_found_with_its_queue() {
    let (listener, address) = own_listener();
    let _waiting = TcpStream::connect(address).unwrap();
    let filter = Filter {
        states: States::of(&[TcpState::Listen]),
        ..on_port(address.port())
    };
    let socket = only(address, tcp(&filter).unwrap());
    assert_eq!(socket.state, TcpState::Listen);
    assert_eq!(socket.inode, inode(&listener));
    assert_eq!(socket.uid, rustix::process::geteuid().as_raw());
    // One waits to be accepted; std's backlog is 4096 or less.
    assert_eq!(socket.receive_queue, 1);
    assert!(socket.send_queue > 1);
    assert!(!socket.is_dual_stack() && socket.expires_ms.is_none());
}

#[test]
fn both_ends_of_a_connection_and_its_time_wait_are_found() {
    let (listener, address) = own_listener();
    let client = TcpStream::connect(address).unwrap();
    let local = client.local_addr().unwrap();
    let (server, _) = listener.accept().unwrap();
    let connected_to = Filter {
        remote_port: Some(address.port()),
        remote: Some(address.ip()),
        ..Filter::default()
    };
    let found = tcp(&connected_to).unwrap();
    let [socket] = found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (socket.state, socket.local, socket.remote, socket.inode),
        (TcpState::Established, local, address, inode(&client))
    );
    // Closed here first, then there.
    drop(client);
    drop(server);
    let socket = eventually("TIME_WAIT", || {
        let found = tcp(&connected_to).unwrap();
        found
            .into_iter()
            .find(|one| one.state == TcpState::TimeWait)
    });
    assert_eq!(socket.inode, 0);
    assert!((1..=60_000).contains(&socket.expires_ms.unwrap()));
    let others = Filter {
        states: States::of(&[TcpState::TimeWait]).others(),
        ..connected_to
    };
    assert_eq!(tcp(&others).unwrap(), []);
}

#[test]
fn a_bound_socket_is_found_on_kernels_that_tell_it() {
    use socket2::{Domain, Type};

    let bound = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any = SocketAddr::from((own_address(), 0));
    bound.bind(&any.into()).unwrap();
    let address = bound.local_addr().unwrap().as_socket().unwrap();
    let found = tcp(&on_port(address.port())).unwrap();
    if !lists_bound_sockets() {
        return;
    }
    let socket = only(address, found);
    assert_eq!(
        (socket.state, socket.inode),
        (TcpState::Bound, inode(&bound))
    );
}

#[test]
fn a_dual_stack_listener_shows_ipv4_peers_as_ipv4() {
    let Ok(listener) = TcpListener::bind("[::]:0") else {
        eprintln!("SKIPPED: this host has no IPv6");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    let client = TcpStream::connect((own_address(), port)).unwrap();
    let found = tcp(&on_port(port)).unwrap();
    let inode = Some(inode(&listener));
    let listening = found.iter().find(|one| Some(one.inode) == inode);
    let is_v6_only = std::fs::read_to_string("/proc/sys/net/ipv6/bindv6only").unwrap() == "1\n";
    assert_eq!(listening.unwrap().is_dual_stack(), !is_v6_only);
    let accepted = found
        .iter()
        .find(|one| one.local == client.peer_addr().unwrap())
        .unwrap();
    assert_eq!(accepted.remote, client.local_addr().unwrap());
    assert_eq!(accepted.state, TcpState::Established);
}

#[test]
fn udp_sockets_are_found() {
    let open = UdpSocket::bind((own_address(), 0)).unwrap();
    let connected = UdpSocket::bind((own_address(), 0)).unwrap();
    connected.connect(open.local_addr().unwrap()).unwrap();
    for (socket, state) in [
        (&open, TcpState::Bound),
        (&connected, TcpState::Established),
    ] {
        let local = socket.local_addr().unwrap();
        let one = only(local, udp(&on_port(local.port())).unwrap());
        assert_eq!((one.state, one.inode), (state, inode(socket)));
    }
}

#[test]
fn sets_of_states_are_what_they_say() {
    let some = States::of(&[TcpState::Listen, TcpState::Bound]);
    for state in TcpState::ALL {
        assert_eq!(some.contains(state), !some.others().contains(state));
        assert_eq!(TcpState::from_number(state.number()), Some(state));
    }
    assert_eq!(some.tcp_bits(), 1 << 10 | 1 << 13);
    assert_eq!(States::of(&[TcpState::Listen]).tcp_bits(), 1 << 10);
}

#[test]
fn link_local_addresses_have_their_interface() {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&[0xfe, 0x80]);
    address[15] = 1;
    let found = endpoint(AF_INET6, address, 80, 3);
    assert_eq!(found.to_string(), "[fe80::1%3]:80");
}
