//! A spool that is found damaged.

use crate::link::fake::linked;
use crate::spool::tests::damage;

#[tokio::test]
async fn a_session_that_is_idle_goes_on_with_the_spool_that_takes_the_place() {
    let (master, rig) = linked(3, |_| {}).await;
    let (mut session, before) = master.welcome().await;
    session.shown(4).await;
    session.ack(before.stream, 3).await;
    rig.settled().await;
    damage(rig.directory.path());
    rig.append(1).await;
    assert!(session.next().await.is_none(), "it needs another Hello");
    let (mut session, after) = master.welcome().await;
    assert_ne!(after.stream, before.stream);
    assert_eq!(after.previous, [before.stream]);
    assert_eq!(session.shown(3).await, ["P1", "1-3", "1"]);
    session.ack(before.stream, 3).await;
    session.ack(after.stream, 1).await;
    rig.settled().await;
    rig.append(1).await;
    assert_eq!(session.shown(1).await, ["L2"]);
}
