//! The link against a master that follows a script.

mod damage;
mod leaving;
mod per_message;
mod ports;
mod stopping;

use std::sync::Arc;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::limits::STREAMS_MAX;
use rollcall_protocol::session::slave::SlaveTimeouts;
use rollcall_protocol::wire::to_master::Kind;
use rollcall_protocol::wire::{self, ErrorCode, Mark, Mode, to_slave};

use super::LinkConfig;
use super::fake::{FakeMaster, Rig, config, linked, open, soon};

fn per_message(config: &mut LinkConfig) {
    config.mode = Mode::PerMessage;
}

#[tokio::test]
async fn the_newest_goes_first_and_acks_move_the_cursor() {
    let (master, rig) = linked(3, |_| {}).await;
    let (mut session, hello) = master.welcome().await;
    assert_eq!((hello.name.as_str(), hello.interval_ms), ("test", 10_000));
    assert_eq!(
        (hello.next_sequence, hello.backlog, hello.frames),
        (4, 3, 0)
    );
    assert_eq!(hello.labels["site"], "north");
    let shown = session.shown(4).await;
    assert_eq!(shown[..3], ["P3", "1", "2"]);
    session.ack(hello.stream, 2).await;
    session.ack(hello.stream, 3).await;
    rig.settled().await;
    // What comes now is live in its place.
    rig.append(1).await;
    assert_eq!(session.shown(1).await, ["L4"]);
}

#[tokio::test]
async fn what_was_not_acked_is_sent_again_under_its_old_sequence() {
    let (master, rig) = linked(3, |_| {}).await;
    let (mut session, first) = master.welcome().await;
    session.shown(4).await;
    session.ack(first.stream, 1).await;
    drop(session);
    // The first ack may or may not have been read before the cut; the mark of Welcome tells it.
    let (mut session, second) = master.accept().await;
    assert_eq!(second.stream, first.stream);
    session
        .welcome(vec![Mark {
            stream: first.stream,
            sequence: 1,
        }])
        .await;
    let shown = session.shown(3).await;
    assert_eq!(shown[..2], ["P3", "2"]);
    session.ack(first.stream, 3).await;
    // Acked twice: harmless.
    session.ack(first.stream, 3).await;
    rig.settled().await;
}

#[tokio::test]
async fn no_more_than_the_window_is_under_way() {
    let (master, _rig) = linked(5, |_| {}).await;
    let (mut session, hello) = master.accept().await;
    session
        .welcome_with(wire::Welcome {
            window: 2,
            ..wire::Welcome::default()
        })
        .await;
    assert_eq!(session.shown(3).await, ["P5", "1", "2"]);
    assert!(session.is_quiet().await);
    session.ack(hello.stream, 1).await;
    assert_eq!(session.shown(1).await, ["3"]);
    assert!(session.is_quiet().await);
}

#[tokio::test]
async fn what_no_frame_holds_is_given_up_and_told() {
    let master = FakeMaster::start().await;
    for mode in [Mode::Pooled, Mode::PerMessage] {
        let mut rig = Rig::with_config(LinkConfig {
            mode,
            ..config(&[&master])
        });
        rig.append(1).await;
        let too_large = wire::Report {
            status: Some(wire::Status {
                checks: vec![wire::Check {
                    text: "x".repeat(1000),
                    ..wire::Check::default()
                }],
            }),
            ..wire::Report::default()
        };
        assert!(rig.spool.append(too_large).await.unwrap());
        rig.start();
        let (mut session, hello) = master.welcome().await;
        if mode == Mode::PerMessage {
            // Only Welcome tells how much this master takes.
            let refused = wire::Error {
                code: ErrorCode::FrameLength.into(),
                ..wire::Error::default()
            };
            session.send(to_slave::Kind::Error(refused)).await;
            session.close().await;
            session = master.welcome().await.0;
        }
        assert_eq!(session.shown(2).await, ["1", "2-2"], "{mode:?}");
        session.ack(hello.stream, 2).await;
        rig.settled().await;
    }
}

#[tokio::test]
async fn a_master_that_lost_what_it_had_acked_is_told_of_the_gap() {
    let master = FakeMaster::start().await;
    let mut rig = Rig::new(&[&master]);
    rig.append(4).await;
    let stream = rig.spool.standing().await.unwrap().stream;
    let acked = Mark {
        stream,
        sequence: 3,
    };
    rig.spool.acked(vec![acked]).await.unwrap();
    rig.start();
    let (mut session, _) = master.accept().await;
    let known = Mark {
        stream,
        sequence: 1,
    };
    session.welcome(vec![known]).await;
    assert_eq!(session.shown(2).await, ["2-3", "L4"]);
}

#[tokio::test]
async fn masters_are_taken_in_order_and_the_first_is_tried_again() {
    let [first, second] = [FakeMaster::start().await, FakeMaster::start().await];
    let mut rig = Rig::with_config(LinkConfig {
        return_after: Duration::from_millis(50),
        ..config(&[&first, &second])
    });
    rig.start();
    let (mut refused, _) = first.accept().await;
    let busy = wire::Error {
        code: ErrorCode::Busy.into(),
        retry: true,
        ..wire::Error::default()
    };
    refused.send(to_slave::Kind::Error(busy)).await;
    assert!(refused.is_quiet().await, "the master closes first");
    refused.close().await;
    let (mut fallback, hello) = second.welcome().await;
    rig.append(1).await;
    assert_eq!(fallback.shown(1).await, ["L1"]);
    // It does not leave while something is under way.
    assert!(fallback.is_quiet().await);
    fallback.ack(hello.stream, 1).await;
    let (_session, _) = first.welcome().await;
    assert!(fallback.next().await.is_none());
}

#[tokio::test]
async fn the_first_master_being_down_is_no_reason_to_wait() {
    let second = FakeMaster::start().await;
    let down = FakeMaster::start().await;
    let mut both = config(&[&down, &second]);
    drop(down);
    both.backoff.base = Duration::from_secs(3600);
    both.backoff.cap = Duration::from_secs(3600);
    let mut rig = Rig::with_config(both);
    rig.start();
    second.welcome().await;
}

#[tokio::test]
async fn a_resync_moves_what_is_left_to_a_new_stream() {
    let (master, rig) = linked(2, |_| {}).await;
    let (mut session, old) = master.accept().await;
    let resync = wire::Resync {
        stream: old.stream,
        sequence: 9,
    };
    session.send(to_slave::Kind::Resync(resync)).await;
    session.close().await;
    let (mut session, new) = master.welcome().await;
    assert_ne!(new.stream, old.stream);
    assert_eq!((new.next_sequence, new.backlog), (3, 2));
    session.shown(3).await;
    session.ack(new.stream, 2).await;
    rig.settled().await;
}

/// The process and its memory were restored, and it has spooled as many reports again as the master
/// had got of the run that is lost: by its Hello alone the master can't tell.
#[tokio::test]
async fn a_mark_beyond_what_was_ever_sent_makes_a_new_stream() {
    for mode in [Mode::Pooled, Mode::PerMessage] {
        let (master, rig) = linked(3, |config| config.mode = mode).await;
        let (mut session, old) = master.accept().await;
        let mark = Mark {
            stream: old.stream,
            sequence: 2,
        };
        session.welcome(vec![mark]).await;
        while session.next().await.is_some() {}
        let (mut session, new) = master.welcome().await;
        assert_ne!(new.stream, old.stream);
        assert_eq!((new.next_sequence, new.backlog), (4, 3));
        assert_eq!(new.previous, [old.stream]);
        assert_eq!(session.shown(4).await[..3], ["P3", "1", "2"]);
        session.ack(new.stream, 3).await;
        session.close().await;
        rig.settled().await;
    }
}

#[tokio::test]
async fn a_goodbye_brings_marks_and_a_time_to_come_back() {
    let (master, rig) = linked(1, |_| {}).await;
    let (mut session, hello) = master.welcome().await;
    session.shown(1).await;
    let told = wire::MasterGoodbye {
        marks: vec![Mark {
            stream: hello.stream,
            sequence: 1,
        }],
        back_min_ms: 300,
        back_max_ms: 400,
    };
    session.send(to_slave::Kind::Goodbye(told)).await;
    assert!(session.is_quiet().await, "the master closes first");
    let left = clock::boot();
    session.close().await;
    rig.settled().await;
    let (_session, hello) = master.accept().await;
    let away = clock::boot().saturating_since(left);
    assert!(away >= Duration::from_millis(300), "{away:?}");
    assert_eq!(hello.backlog, 0);
}

#[tokio::test]
async fn a_master_that_does_not_ack_is_left() {
    let short = SlaveTimeouts {
        welcome: Duration::from_millis(100),
        ack: Duration::from_millis(100),
    };
    let (master, rig) = linked(1, |config| config.timeouts = short).await;
    let (mut silent, _) = master.accept().await;
    assert!(silent.next().await.is_none(), "no Welcome, no session");
    let (mut session, _) = master.welcome().await;
    session.shown(1).await;
    assert!(session.next().await.is_none());
    // The report is still there.
    let (mut session, hello) = master.welcome().await;
    session.shown(1).await;
    session.ack(hello.stream, 1).await;
    rig.settled().await;
}

#[tokio::test]
async fn garbage_from_the_master_ends_the_session() {
    let (master, _rig) = linked(0, |_| {}).await;
    let (mut session, _) = master.accept().await;
    session.send_bytes(&[0, 0, 0, 0]).await;
    assert!(session.next().await.is_none());
    master.accept().await;
}

#[tokio::test]
async fn more_streams_than_hello_may_name_go_one_hello_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..STREAMS_MAX + 3 {
        let spool = open(&directory);
        assert!(spool.append(wire::Report::default()).await.unwrap());
        drop(spool);
        // The thread lets go of the folder a moment later.
        released(&directory).await;
    }
    let master = FakeMaster::start().await;
    let mut rig = Rig::in_directory(directory, config(&[&master]));
    rig.append(1).await;
    rig.start();
    let mut received = 0;
    let mut sessions = 0;
    while received < STREAMS_MAX + 4 {
        let (mut session, hello) = master.welcome().await;
        sessions += 1;
        while let Some(kind) = session.next().await {
            let Kind::Report(report) = kind else {
                panic!("{kind:?}");
            };
            let announced = |pending: &wire::Pending| pending.stream == report.stream;
            assert!(hello.pending.iter().any(announced));
            if !report.preview {
                received += 1;
                session.ack(report.stream, report.sequence).await;
            }
            if received == STREAMS_MAX + 4 {
                break;
            }
        }
    }
    assert_eq!(sessions, 2);
    rig.settled().await;
}

async fn released(directory: &tempfile::TempDir) {
    let path = directory.path().join("lock");
    let free = async {
        while std::fs::File::open(&path).unwrap().try_lock().is_err() {
            tokio::task::yield_now().await;
        }
    };
    soon("the folder's release", free).await;
}

#[tokio::test]
async fn a_new_configuration_is_told_in_a_new_hello() {
    let (master, rig) = linked(0, |_| {}).await;
    let (mut session, _) = master.welcome().await;
    rig.config.send_modify(|config| {
        Arc::make_mut(config).interval = Duration::from_secs(5);
    });
    let (_session, hello) = master.accept().await;
    assert_eq!(hello.interval_ms, 5000);
    assert!(session.next().await.is_none());
}

#[tokio::test]
async fn the_clock_offset_is_measured_on_the_acks() {
    let (master, mut rig) = linked(1, |_| {}).await;
    let (mut session, hello) = master.welcome().await;
    session.shown(1).await;
    let ahead_ms = clock::wall_ms() + 5000;
    let ack = wire::Ack {
        stream: hello.stream,
        sequence: 1,
        received_ms: ahead_ms,
        sent_ms: ahead_ms,
    };
    session.send(to_slave::Kind::Ack(ack)).await;
    let changed = rig.clock_offset_ms.changed();
    soon("an offset", changed).await.unwrap();
    let offset_ms = rig.clock_offset_ms.borrow().unwrap();
    assert!((4000..=5000).contains(&offset_ms), "{offset_ms}");
}
