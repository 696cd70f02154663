//! A connection for each message.

use rollcall_protocol::wire::{self, ErrorCode, Mark, Mode, to_slave};

use super::per_message;
use crate::link::fake::{FakeMaster, Rig, config, linked};

#[tokio::test]
async fn a_message_of_its_own_connection_ends_with_the_masters_close() {
    let (master, rig) = linked(0, per_message).await;
    for sequence in 1..=2 {
        rig.append(1).await;
        // Hello and the report come before any answer.
        let (mut session, hello) = master.accept().await;
        assert_eq!((hello.frames, hello.mode()), (1, Mode::PerMessage));
        let report = session.report().await;
        assert_eq!((report.sequence, report.live), (sequence, true));
        session.welcome(vec![]).await;
        session.ack(report.stream, report.sequence).await;
        rig.settled().await;
        // All is said, and the slave leaves the close to the master.
        assert!(session.is_quiet().await);
        session.close().await;
    }
}

#[tokio::test]
async fn a_backlog_goes_by_several_messages() {
    let (master, rig) = linked(20, per_message).await;
    let mut received = 0;
    while received < 20 {
        let (mut session, hello) = master.accept().await;
        session.welcome(vec![]).await;
        for _ in 0..hello.frames {
            let report = session.report().await;
            if !report.preview {
                received += 1;
                assert_eq!(report.sequence, received);
                session.ack(report.stream, report.sequence).await;
            }
        }
        session.close().await;
    }
    rig.settled().await;
}

#[tokio::test]
async fn a_message_is_kept_if_its_connection_is_cut() {
    let (master, rig) = linked(1, per_message).await;
    let (mut session, _) = master.accept().await;
    session.welcome(vec![]).await;
    session.report().await;
    drop(session);
    let (mut session, _) = master.accept().await;
    let report = session.report().await;
    assert_eq!(report.sequence, 1);
    session.welcome(vec![]).await;
    session.ack(report.stream, 1).await;
    session.close().await;
    rig.settled().await;
}

#[tokio::test]
async fn a_gap_that_a_message_did_not_know_of_comes_with_the_next() {
    let master = FakeMaster::start().await;
    let mut config = config(&[&master]);
    per_message(&mut config);
    let mut rig = Rig::with_config(config);
    rig.append(3).await;
    let stream = rig.spool.standing().await.unwrap().stream;
    let acked = Mark {
        stream,
        sequence: 2,
    };
    rig.spool.acked(vec![acked]).await.unwrap();
    rig.start();
    let (mut session, _) = master.accept().await;
    let known = Mark {
        stream,
        sequence: 0,
    };
    session.welcome(vec![known]).await;
    let hole = wire::Error {
        code: ErrorCode::Hole.into(),
        ..wire::Error::default()
    };
    session.send(to_slave::Kind::Error(hole)).await;
    session.close().await;
    let (mut session, hello) = master.accept().await;
    assert_eq!(hello.frames, 2);
    assert_eq!(session.shown(2).await, ["1-2", "L3"]);
    session.welcome(vec![]).await;
    session.ack(stream, 3).await;
    session.close().await;
    rig.settled().await;
}
