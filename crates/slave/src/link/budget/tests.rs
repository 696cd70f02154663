use rollcall_os::outgoing::ScopedAddress;

use super::*;

fn destination() -> SocketAddr {
    "10.0.0.1:7412".parse().unwrap()
}

/// 100 ports, of which 10 are kept back.
fn budget() -> Budget {
    let outgoing = Outgoing {
        source_ports: "20000-20099".parse().ok(),
        ..Outgoing::default()
    };
    let mut budget = Budget::new(Arc::new(Connector::new(outgoing)));
    budget.handle_connected(destination());
    budget
}

fn at(seconds: u64) -> Moment {
    Moment::default() + Duration::from_secs(1000 + seconds)
}

#[test]
fn ports_closed_first_are_counted_for_a_minute() {
    let mut budget = budget();
    for second in 0..89 {
        budget.handle_closed_first(destination(), at(second / 2));
    }
    assert!(budget.has_room(0, at(50)));
    assert!(!budget.has_room(1, at(50)), "an open one counts too");
    budget.handle_closed_first(destination(), at(50));
    assert!(!budget.has_room(0, at(50)));
    // The first two are free again.
    assert!(budget.has_room(0, at(60)));
    let found = budget.port_use(3, at(60)).unwrap();
    assert_eq!((found.time_wait, found.used), (88, 91));
    assert_eq!(budget.port_use(0, at(110)).unwrap().time_wait, 0);
}

#[test]
fn what_is_over_is_forgotten_whether_or_not_anybody_asks() {
    let mut budget = budget();
    for second in 0..1000 {
        budget.handle_closed_first(destination(), at(second));
    }
    let held: usize = budget.closed.values().map(VecDeque::len).sum();
    assert_eq!(held, 60);
}

#[test]
fn another_destination_has_its_own_ports() {
    let mut budget = budget();
    for _ in 0..90 {
        budget.handle_closed_first(destination(), at(0));
    }
    assert!(!budget.has_room(0, at(1)));
    budget.handle_connected("10.0.0.2:7412".parse().unwrap());
    assert!(budget.has_room(0, at(1)));
    budget.handle_connected(destination());
    assert!(!budget.has_room(0, at(1)));
}

#[test]
fn it_is_exhausted_until_a_quarter_is_free() {
    let mut budget = budget();
    for second in 0..90 {
        budget.handle_closed_first(destination(), at(second / 3));
    }
    budget.handle_exhausted(at(30));
    budget.handle_exhausted(at(31));
    // Not all of it would be over, if it had been somebody else's.
    assert!(!budget.handle_unknown(0, at(89)));
    assert!(budget.is_exhausted());
    assert!(budget.handle_unknown(0, at(90)));
    assert!(!budget.is_exhausted());
    assert_eq!(budget.port_use(0, at(90)).unwrap().exhaustions, 1);
    for second in 0..90 {
        budget.handle_closed_first(destination(), at(100 + second / 3));
    }
    budget.handle_exhausted(at(100));
    // 21 of 90 are free, and 22 are needed.
    assert!(!budget.handle_unknown(0, at(166)));
    assert!(budget.handle_unknown(0, at(167)));
    assert_eq!(budget.port_use(0, at(167)).unwrap().exhaustions, 2);
}

#[test]
fn the_kernel_knows_better() {
    let mut budget = budget();
    for _ in 0..90 {
        budget.handle_closed_first(destination(), at(0));
    }
    // They were taken again early.
    assert!(budget.handle_in_use(12, 2, at(1)));
    assert_eq!(budget.port_use(0, at(1)).unwrap().time_wait, 10);
    // Somebody else has the rest.
    assert!(!budget.handle_in_use(95, 0, at(1)));
    budget.handle_exhausted(at(1));
    assert!(!budget.handle_in_use(70, 0, at(2)));
    assert!(budget.handle_in_use(60, 0, at(3)));
}

#[test]
fn each_source_address_has_the_ports_again() {
    let source = |text: &str| text.parse::<ScopedAddress>().unwrap();
    let outgoing = Outgoing {
        source_addresses: vec![
            source("10.0.0.5"),
            source("10.0.0.6"),
            source("fe80::5%eth0"),
        ],
        source_ports: "20000-20099".parse().ok(),
        ..Outgoing::default()
    };
    let text = describe_budget(&outgoing);
    assert!(text.contains("2 IPv4 source addresses"), "{text}");
    assert!(text.contains("at most 180"), "{text}");
    assert!(text.contains("1 IPv6 source address"), "{text}");
    let connector = Connector::new(outgoing);
    assert_eq!(usable(&connector, destination().ip()), Some(200));
}

#[tokio::test]
async fn the_kernel_counts_what_is_really_open() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let destination = listener.local_addr().unwrap();
    let mut budget = Budget::new(Arc::new(Connector::new(Outgoing::default())));
    assert_eq!(budget.ask_kernel().await, None);
    budget.handle_connected(destination);
    let before = budget.ask_kernel().await.unwrap();
    let _stream = std::net::TcpStream::connect(destination).unwrap();
    let _accepted = listener.accept().unwrap();
    // Other tests take ports of their own meanwhile, and give them back.
    let after = budget.ask_kernel().await.unwrap();
    assert!(after > 0, "{before} {after}");
}
