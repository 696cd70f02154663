//! Per-message mode when the ports are used up.

use std::net::TcpListener;
use std::time::Duration;

use rollcall_protocol::wire::{self, ErrorCode, Mode, to_slave};

use super::per_message;
use crate::link::fake::{FakeSession, linked, soon};
use crate::link::{LinkConfig, OnExhaustion, PortUse};

/// `count` ports that nobody has, outside of the range that the kernel picks from.
fn free_ports(count: u16) -> String {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut first = 10_000 + u16::try_from(crate::random::bits() % 9000).unwrap();
    while !(first..first + count).all(is_free) {
        first += count;
    }
    format!("{first}-{}", first + count - 1)
}

fn narrow(config: &mut LinkConfig, ports: &str, on_exhaustion: OnExhaustion) {
    per_message(config);
    config.on_exhaustion = on_exhaustion;
    config.outgoing.source_addresses = vec!["127.0.0.1".parse().unwrap()];
    config.outgoing.source_ports = ports.parse().ok();
}

/// Answers a message so that the slave has to close first, at once: what follows the ack is no
/// frame.
async fn answer_badly(mut session: FakeSession, stream: u64, sequence: u64) {
    session.welcome(vec![]).await;
    session.ack(stream, sequence).await;
    session.send_bytes(&[0, 0, 0, 0]).await;
    while session.next().await.is_some() {}
}

#[tokio::test]
async fn it_falls_back_to_one_connection_within_its_budget() {
    // 8 ports are the budget, 2 the reserve.
    let ports = free_ports(10);
    let (master, rig) = linked(0, |config| narrow(config, &ports, OnExhaustion::Pool)).await;
    let mut sequence = 0;
    let (mut session, hello) = loop {
        sequence += 1;
        assert!(sequence < 20, "it goes on per message");
        rig.append(1).await;
        let (session, hello) = master.accept().await;
        if hello.mode() == Mode::Pooled {
            break (session, hello);
        }
        answer_badly(session, hello.stream, sequence).await;
    };
    assert_eq!(sequence, 9);
    session.welcome(vec![]).await;
    assert_eq!(session.shown(1).await, ["L9"]);
    session.ack(hello.stream, 9).await;
    rig.settled().await;
    rig.append(1).await;
    assert_eq!(session.shown(1).await, ["L10"]);
    let found = (*rig.port_use.borrow()).unwrap();
    let PortUse {
        budget,
        time_wait,
        exhaustions,
        is_exhausted,
        ..
    } = found;
    assert_eq!((budget, time_wait), (Some(8), 8));
    assert_eq!((exhaustions, is_exhausted), (1, true));
}

#[tokio::test]
async fn it_waits_if_it_is_told_to_and_stops_all_the_same() {
    let ports = free_ports(4);
    let (master, mut rig) = linked(0, |config| narrow(config, &ports, OnExhaustion::Wait)).await;
    for sequence in 1..=2 {
        rig.append(1).await;
        let (session, hello) = master.accept().await;
        assert_eq!(hello.mode(), Mode::PerMessage);
        answer_badly(session, hello.stream, sequence).await;
    }
    rig.append(1).await;
    let used_up = rig
        .port_use
        .wait_for(|found| found.is_some_and(|found| found.is_exhausted));
    soon("the end of the budget", used_up).await.unwrap();
    assert!(master.is_left_alone().await);
    // The reserve is good for the goodbye.
    rig.stop.cancel();
    let (mut session, hello) = master.accept().await;
    assert_eq!((hello.mode(), hello.frames), (Mode::PerMessage, 2));
    session.welcome(vec![]).await;
    session.ack(hello.stream, 3).await;
    session.shown(1).await;
    session.next().await;
    session.close().await;
    rig.ended().await;
    rig.settled().await;
}

#[tokio::test]
async fn no_port_at_all_is_tried_again_and_loses_nothing() {
    let ports = free_ports(3);
    let (first, last) = ports.split_once('-').unwrap();
    let (first, last): (u16, u16) = (first.parse().unwrap(), last.parse().unwrap());
    // Somebody else has them all.
    let taken = (first..=last).map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
    let taken: Vec<_> = taken.collect();
    let change = |config: &mut LinkConfig| {
        narrow(config, &ports, OnExhaustion::Pool);
        config.backoff.cap = Duration::from_millis(50);
    };
    let (master, mut rig) = linked(2, change).await;
    let exhausted = rig
        .port_use
        .wait_for(|found| found.is_some_and(|found| found.exhaustions == 1));
    soon("the end of the ports", exhausted).await.unwrap();
    drop(taken);
    let (mut session, hello) = master.welcome().await;
    assert_eq!(hello.backlog, 2);
    let refused = wire::Error {
        code: ErrorCode::Busy.into(),
        retry: true,
        ..wire::Error::default()
    };
    assert_eq!(session.shown(3).await, ["P2", "1", "2"]);
    session.send(to_slave::Kind::Error(refused)).await;
    session.close().await;
    let (mut session, hello) = master.welcome().await;
    session.shown(3).await;
    session.ack(hello.stream, 2).await;
    rig.settled().await;
}
