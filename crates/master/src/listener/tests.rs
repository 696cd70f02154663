//! Listeners that come and go, on real sockets and without slaves.

use std::io::{ErrorKind, Read};
use std::net::TcpStream as StdStream;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::*;
use crate::reactor::SessionRules;
use crate::roll::Durable;
use crate::testing::{RULES, publication, roll, run};

const SOCKETS: Sockets = Sockets {
    options: ListenOptions::new(16),
    liveness: Liveness {
        keepalive_idle: Duration::from_secs(30),
        keepalive_interval: Duration::from_secs(10),
        user_timeout: Duration::from_secs(30),
    },
};

/// A master that has just started, without its listeners.
pub(crate) fn accepting() -> Accepting {
    let rules = SessionRules {
        hello_timeout: Duration::from_secs(20),
        ..RULES
    };
    let roll = roll(Durable::default());
    Accepting {
        reactor: Rc::new(Reactor::new(
            roll,
            Vec::new(),
            rules,
            [7; 16],
            publication(),
        )),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        shut: CancellationToken::new(),
        admission: Admission::new(wanted(&[]).limits),
    }
}

fn wanted(addresses: &[SocketAddr]) -> Rules {
    let addresses = addresses.iter();
    Rules {
        listeners: addresses
            .map(|address| Listener {
                address: *address,
                privileged: false,
            })
            .collect(),
        limits: Limits {
            connections_max: 100,
            connections_per_address_max: 0,
        },
    }
}

/// A port on 127.0.0.1 that nobody else gets while the socket lives, and that can be listened on.
fn reserve() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

fn is_listened_on(address: SocketAddr) -> bool {
    StdStream::connect(address).is_ok()
}

#[test]
fn who_is_queued_at_a_removed_listener_is_served() {
    run(async {
        let accepting = accepting();
        let (_reservation, address) = reserve();
        let rules = wanted(&[address]);
        let mut listeners =
            Listeners::start(accepting.clone(), SOCKETS, &rules, Inherited::default())
                .await
                .unwrap();
        // The kernel has them; the accept loop has not had a turn yet.
        let clients: Vec<_> = (0..5)
            .map(|_| StdStream::connect(address).unwrap())
            .collect();
        assert_eq!(accepting.reactor.stats().accepted.get(), 0);
        let (_other_reservation, other) = reserve();
        assert!(listeners.follow(&wanted(&[other])).await);
        assert_eq!(accepting.reactor.stats().accepted.get(), 5);
        assert_eq!(accepting.reactor.stats().connections.get(), 5);
        for mut client in clients {
            client.set_nonblocking(true).unwrap();
            let nothing = client.read(&mut [0; 1]).unwrap_err();
            assert_eq!(nothing.kind(), ErrorKind::WouldBlock, "{nothing}");
        }
        assert!(!is_listened_on(address) && is_listened_on(other));
    });
}

#[test]
fn what_is_in_both_is_left_alone_and_one_that_fails_stops_no_other() {
    run(async {
        let accepting = accepting();
        let reservations = [(); 4].map(|()| reserve());
        let [stays, goes, comes, taken] = reservations.each_ref().map(|(_, address)| *address);
        let _holder = socket::listen(taken, 1).unwrap();
        let mut listeners = Listeners::start(
            accepting.clone(),
            SOCKETS,
            &wanted(&[stays, goes]),
            Inherited::default(),
        )
        .await
        .unwrap();
        let (held, _) = listeners.running.first_key_value().unwrap();
        assert!([stays, goes].contains(held));
        let stop = listeners.running[&stays].stop.clone();
        assert!(listeners.follow(&wanted(&[stays, comes, taken])).await);
        assert!(!stop.is_cancelled(), "the same loop goes on");
        let running: Vec<_> = listeners.running.keys().copied().collect();
        assert!(running.contains(&stays) && running.contains(&comes));
        assert_eq!(running.len(), 2);
        assert!(is_listened_on(stays) && is_listened_on(comes) && !is_listened_on(goes));
        let up = |address| accepting.reactor.stats().listeners.of(address).is_up.get();
        assert_eq!([stays, goes, comes, taken].map(up), [1, 0, 1, 0]);
        // Once its holder is gone, the next SIGHUP gets it.
        drop(_holder);
        assert!(listeners.follow(&wanted(&[stays, comes, taken])).await);
        assert_eq!(up(taken), 1);
    });
}

#[test]
fn the_old_listeners_stay_if_none_of_the_new_can_be_had() {
    run(async {
        let accepting = accepting();
        let (_reservation, old) = reserve();
        let (_second, taken) = reserve();
        let _holder = socket::listen(taken, 1).unwrap();
        let mut listeners = Listeners::start(
            accepting.clone(),
            SOCKETS,
            &wanted(&[old]),
            Inherited::default(),
        )
        .await
        .unwrap();
        assert!(listeners.follow(&wanted(&[taken])).await);
        assert!(is_listened_on(old));
        // The same where the old one is in the way: somebody else is as well.
        let other: SocketAddr = format!("127.0.0.2:{}", old.port()).parse().unwrap();
        let _in_the_way = socket::listen(other, 1).unwrap();
        let wide: SocketAddr = format!("0.0.0.0:{}", old.port()).parse().unwrap();
        assert!(listeners.follow(&wanted(&[wide])).await);
        assert!(is_listened_on(old));
        assert_eq!(listeners.running.len(), 1);
        drop(_in_the_way);
        assert!(listeners.follow(&wanted(&[wide])).await);
        assert!(is_listened_on(other));
        assert_eq!(
            listeners.running.keys().copied().collect::<Vec<_>>(),
            [wide]
        );
    });
}
