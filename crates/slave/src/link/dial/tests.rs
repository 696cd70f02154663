use std::net::TcpListener;

use rollcall_os::clock;
use rollcall_os::outgoing::Outgoing;
use socket2::{Domain, Socket, Type};

use super::*;

const TEN: Duration = Duration::from_secs(10);

fn dialer() -> Dialer {
    Dialer {
        connector: Arc::new(Connector::new(Outgoing::default())),
        connect_timeout: TEN,
        liveness: Liveness {
            keepalive_idle: TEN,
            keepalive_interval: TEN,
            user_timeout: TEN,
        },
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port that nobody listens on and nobody gets.
fn closed() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A listener whose queue is full: it answers nothing, like a host that is not there.
fn deaf() -> (Socket, Vec<std::net::TcpStream>, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let short = Duration::from_millis(300);
    let connect = || std::net::TcpStream::connect_timeout(&address, short);
    let mut queued = Vec::new();
    while let Ok(stream) = connect() {
        queued.push(stream);
    }
    (socket, queued, address)
}

#[test]
fn families_take_turns_beginning_with_the_best() {
    let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
    let given = ["[::1]:1", "[::2]:1", "[::3]:1", "1.0.0.1:1", "1.0.0.2:1"].map(address);
    let mixed = interleaved(given.to_vec());
    let wanted = ["[::1]:1", "1.0.0.1:1", "[::2]:1", "1.0.0.2:1", "[::3]:1"].map(address);
    assert_eq!(mixed, wanted);
    assert_eq!(interleaved(vec![]), []);
}

#[tokio::test]
async fn a_silent_address_costs_a_moment() {
    let (_socket, _queued, dead) = deaf();
    let (alive, address) = listener();
    let begun = clock::boot();
    let stream = dialer().race([dead, address].into()).await.unwrap();
    let took = clock::boot().saturating_since(begun);
    assert_eq!(stream.peer_addr().unwrap(), address);
    assert!((ATTEMPT_DELAY..TEN / 2).contains(&took), "{took:?}");
    drop(alive);
}

#[tokio::test]
async fn a_refusal_costs_nothing() {
    let (_socket, refusing) = closed();
    let (_alive, address) = listener();
    let mut addresses = VecDeque::from([refusing; 8]);
    addresses.push_back(address);
    let begun = clock::boot();
    dialer().race(addresses).await.unwrap();
    let took = clock::boot().saturating_since(begun);
    assert!(took < 4 * ATTEMPT_DELAY, "{took:?}");
}

#[tokio::test]
async fn the_winner_is_closed_in_order_and_the_loser_is_reset() {
    use tokio::io::AsyncReadExt;
    let (alive, address) = listener();
    alive.set_nonblocking(true).unwrap();
    let alive = tokio::net::TcpListener::from_std(alive).unwrap();
    let dialer = dialer();
    let (loser, _) = dialer.connect(address).await.unwrap();
    let (mut accepted, _) = alive.accept().await.unwrap();
    drop(loser);
    let error = accepted.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let winner = dialer.dial(&address.to_string()).await.unwrap();
    let (mut accepted, _) = alive.accept().await.unwrap();
    drop(winner);
    assert_eq!(accepted.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn no_answer_at_all_ends_in_time() {
    let (_socket, _queued, dead) = deaf();
    let short = Dialer {
        connect_timeout: Duration::from_millis(50),
        ..dialer()
    };
    let error = short.race([dead].into()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    let error = short.race(VecDeque::new()).await.unwrap_err();
    assert!(matches!(error, ConnectError::NoAddress), "{error}");
}

/// Outside of the kernel's range each port is tried, which IPv4 and IPv6 have of their own.
#[tokio::test]
async fn want_of_a_port_is_told_whatever_else_failed() {
    let (_listener, address) = listener();
    let Ok(six) = TcpListener::bind("[::1]:0") else {
        eprintln!("SKIPPED: this host has no IPv6");
        return;
    };
    let refusing = six.local_addr().unwrap();
    drop(six);
    // One port, and it is taken for IPv4.
    let mut ports = 30_000..32_000;
    let taken = ports.find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let port = taken.as_ref().unwrap().local_addr().unwrap().port();
    let dialer = Dialer {
        connector: Arc::new(Connector::new(Outgoing {
            source_ports: format!("{port}-{port}").parse().ok(),
            ..Outgoing::default()
        })),
        ..dialer()
    };
    for order in [[address, refusing], [refusing, address]] {
        let error = dialer.race(order.into()).await.unwrap_err();
        assert!(matches!(error, ConnectError::NoPort { .. }), "{error}");
    }
    let error = dialer.race([refusing].into()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
}

/// The kernel may pick as source port the very port that is connected to.
#[tokio::test]
async fn a_socket_is_not_connected_to_itself() {
    let (free, address) = closed();
    drop(free);
    let range = format!("{0}-{0}", address.port());
    let dialer = Dialer {
        connector: Arc::new(Connector::new(Outgoing {
            source_addresses: vec!["127.0.0.1".parse().unwrap()],
            source_ports: range.parse().ok(),
            ..Outgoing::default()
        })),
        ..dialer()
    };
    let error = dialer.dial(&address.to_string()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_scope_is_part_of_the_address() {
    let (address, port) = scoped("[fe80::1%lo]:7412").unwrap();
    assert_eq!((address.to_string().as_str(), port), ("fe80::1%lo", 7412));
    for other in [
        "[fe80::1]:7412",
        "fe80::1%lo:7412",
        "[fe80::1%lo]",
        "host:1",
        "[1.2.3.4%lo]:1",
    ] {
        assert_eq!(scoped(other), None, "{other}");
    }
    let found = resolve("[::1%lo]:7").await.unwrap();
    assert!(matches!(found[0], SocketAddr::V6(address) if address.scope_id() > 0));
    let error = resolve("[fe80::1%none-such]:7")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("none-such"), "{error}");
}
