//! How the link ends.

use std::time::Duration;

use rollcall_protocol::wire::to_master::Kind;

use super::per_message;
use crate::link::fake::{FakeMaster, Rig, linked};

#[tokio::test]
async fn a_stop_drains_the_spool_and_says_goodbye() {
    let (master, mut rig) = linked(2, |_| {}).await;
    let (mut session, hello) = master.accept().await;
    rig.stop.cancel();
    session.welcome(vec![]).await;
    assert_eq!(session.shown(3).await.len(), 3);
    assert!(session.is_quiet().await, "no goodbye before the acks");
    session.ack(hello.stream, 2).await;
    assert!(matches!(session.next().await, Some(Kind::Goodbye(_))));
    assert!(session.is_quiet().await, "the master closes first");
    session.close().await;
    rig.ended().await;
    rig.settled().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let (master, mut rig) = linked(1, |config| config.drain = Duration::from_millis(100)).await;
    let (mut session, _) = master.welcome().await;
    session.shown(1).await;
    rig.stop.cancel();
    // Not acked in time: goodbye all the same, and the report stays.
    assert!(matches!(session.next().await, Some(Kind::Goodbye(_))));
    session.close().await;
    rig.ended().await;
    assert_eq!(rig.spool.standing().await.unwrap().backlog, 1);
}

#[tokio::test]
async fn a_stop_while_no_master_is_there_keeps_the_spool() {
    let down = FakeMaster::start().await;
    let mut rig = Rig::new(&[&down]);
    drop(down);
    rig.append(1).await;
    rig.start();
    rig.stop.cancel();
    rig.ended().await;
    assert_eq!(rig.spool.standing().await.unwrap().backlog, 1);
}

#[tokio::test]
async fn a_stop_in_per_message_mode_sends_the_rest_with_the_goodbye() {
    let (master, mut rig) = linked(0, per_message).await;
    rig.stop.cancel();
    let (mut session, hello) = master.accept().await;
    assert_eq!(hello.frames, 1);
    session.welcome(vec![]).await;
    assert!(matches!(session.next().await, Some(Kind::Goodbye(_))));
    session.close().await;
    rig.ended().await;
}
