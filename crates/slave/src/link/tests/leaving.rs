//! When a connection is left, who closes it, and where the next one goes.

use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::wire::{self, Mode};

use super::per_message;
use crate::link::Close;
use crate::link::exchange::CLOSE_WAIT;
use crate::link::fake::{FakeMaster, Rig, config, linked, soon};

#[tokio::test]
async fn an_idle_connection_is_closed_until_there_is_something_to_send() {
    let (master, rig) = linked(1, |config| {
        config.idle_timeout = Some(Duration::from_millis(300));
    })
    .await;
    let (mut session, hello) = master.welcome().await;
    session.shown(1).await;
    // What is under way is waited for.
    assert!(session.is_quiet().await);
    session.ack(hello.stream, 1).await;
    assert!(session.next().await.is_none());
    assert!(master.is_left_alone().await);
    rig.append(1).await;
    let (mut session, again) = master.welcome().await;
    assert_eq!((again.stream, again.mode()), (hello.stream, Mode::Pooled));
    assert_eq!(session.shown(1).await, ["L2"]);
}

#[tokio::test]
async fn an_idle_slave_says_goodbye_when_it_stops() {
    let (master, mut rig) = linked(0, |config| {
        config.idle_timeout = Some(Duration::from_millis(50));
    })
    .await;
    let (mut session, _) = master.welcome().await;
    assert!(session.next().await.is_none());
    rig.stop.cancel();
    let (mut session, _) = master.welcome().await;
    let goodbye = session.next().await;
    assert!(matches!(goodbye, Some(wire::to_master::Kind::Goodbye(_))));
    session.close().await;
    rig.ended().await;
}

#[tokio::test]
async fn a_connection_that_is_old_is_made_anew_and_nothing_is_lost() {
    let (master, rig) = linked(1, |config| {
        config.lifetime_max = Some(Duration::from_millis(200));
    })
    .await;
    let (mut session, first) = master.welcome().await;
    session.shown(1).await;
    // It lives on while something is under way, however old it is.
    for _ in 0..3 {
        assert!(session.is_quiet().await);
    }
    rig.append(1).await;
    assert!(session.is_quiet().await, "nothing new goes out on it");
    session.ack(first.stream, 1).await;
    assert!(session.next().await.is_none());
    let (mut session, second) = master.welcome().await;
    assert_eq!((second.stream, second.next_sequence), (first.stream, 3));
    assert_eq!(session.shown(1).await, ["L2"]);
}

#[tokio::test]
async fn a_first_master_that_is_not_there_costs_no_session() {
    let second = FakeMaster::start().await;
    let first = FakeMaster::start().await;
    let mut both = config(&[&first, &second]);
    drop(first);
    both.return_after = Duration::from_millis(20);
    let mut rig = Rig::with_config(both);
    rig.start();
    let (mut session, _) = second.welcome().await;
    // It is looked for many times meanwhile.
    for _ in 0..3 {
        assert!(session.is_quiet().await);
    }
}

#[tokio::test]
async fn the_next_message_does_not_wait_for_a_close_that_does_not_come() {
    let (master, mut rig) = linked(0, per_message).await;
    let begun = clock::boot();
    let mut open = Vec::new();
    for sequence in 1..=3 {
        rig.append(1).await;
        let (mut session, hello) = master.accept().await;
        let report = session.report().await;
        session.welcome(vec![]).await;
        session.ack(hello.stream, sequence).await;
        assert_eq!(report.sequence, sequence);
        open.push(session);
    }
    rig.settled().await;
    let took = clock::boot().saturating_since(begun);
    // The third one would have waited for two closes.
    assert!(took < 2 * CLOSE_WAIT, "{took:?}");
    // Each of them is closed by the slave in the end, and counted.
    for mut session in open {
        assert!(session.next().await.is_none());
    }
    rig.append(1).await;
    let (mut session, hello) = master.accept().await;
    session.welcome(vec![]).await;
    session.ack(hello.stream, 4).await;
    let counted = rig.port_use.wait_for(|found| {
        let time_wait = found.as_ref().map(|found| found.time_wait);
        time_wait == Some(3)
    });
    soon("three ports in TIME_WAIT", counted).await.unwrap();
}

#[tokio::test]
async fn an_abort_comes_after_the_ack_and_takes_no_port() {
    let (master, mut rig) = linked(1, |config| {
        per_message(config);
        config.close = Close::Abort;
    })
    .await;
    let (mut session, hello) = master.accept().await;
    session.report().await;
    session.welcome(vec![]).await;
    assert!(session.is_quiet().await, "not before the ack");
    session.ack(hello.stream, 1).await;
    assert!(session.is_reset().await);
    rig.settled().await;
    let published = rig.port_use.wait_for(Option::is_some);
    let found = *soon("the use of ports", published).await.unwrap();
    assert_eq!(found.map(|found| found.used), Some(0));
}
