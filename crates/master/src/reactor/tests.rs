//! A disk that hangs, as the reactor sees it: the store's outcomes come late.

use std::rc::Rc;

use rollcall_protocol::api::EventKind;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::*;
use crate::roll::{Durable, Stamp};
use crate::store::{Opened, Retention, Store};
use crate::testing::{RULES, publication, roll};
use crate::view::ReportsAsked;

fn reactor(directory: &std::path::Path) -> (Rc<Reactor>, Opened) {
    let retention = Retention {
        keep: Duration::from_secs(3600),
        bytes_max: 1 << 30,
    };
    let opened = Store::open(directory, retention).unwrap();
    let durable = Durable {
        next_group: 1,
        next_event: 1,
        ..Durable::default()
    };
    let reactor = Reactor::new(roll(durable), Vec::new(), RULES, [0; 16], publication());
    (Rc::new(reactor), opened)
}

fn now() -> Stamp {
    Stamp {
        at: clock::boot(),
        wall_ms: clock::wall_ms(),
    }
}

#[test]
fn a_commit_that_hangs_is_told_while_reads_go_on_and_is_an_event_when_it_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let (reactor, opened) = reactor(folder.path());
    let Opened {
        handle,
        mut outcomes,
        ..
    } = opened;
    let (late, mut late_outcomes) = mpsc::channel(4);
    let mut shown = reactor.publication.roll.subscribe();
    let mut events = reactor.publication.events.subscribe();
    let (questions, questions_in) = mpsc::channel(1);
    reactor
        .roll()
        .handle_start("it is a test".to_owned(), now());

    let test = async {
        let stalled = shown.wait_for(|roll| roll.degraded.is_some()).await;
        let reason = stalled.unwrap().degraded.clone().unwrap().reason;
        assert!(reason.starts_with("stalled: "), "{reason}");
        assert!(reactor.stats().commit_age_ms(clock::boot()) > 1000);
        let (answer, answered) = oneshot::channel();
        let slave = "web-1".to_owned();
        let question = ReportsAsked { slave, answer };
        questions.send(question).await.unwrap();
        assert_eq!(answered.await.unwrap().messages().count(), 0);

        let forward = async {
            while let Some(outcome) = outcomes.recv().await {
                late.send(outcome).await.unwrap();
            }
        };
        let over = async {
            let fine = shown.wait_for(|roll| roll.degraded.is_none()).await;
            assert!(fine.is_ok());
            loop {
                let event = events.recv().await.unwrap();
                if event.kind == EventKind::Degraded {
                    break event;
                }
            }
        };
        let event = tokio::select! {
            event = over => event,
            () = forward => unreachable!("the store lives"),
        };
        assert!(
            event.text.starts_with("nothing was stored for 1."),
            "{event:?}"
        );
        assert!(event.text.contains("stalled: "), "{event:?}");
        assert!(event.from < event.to && event.from.is_some(), "{event:?}");
        assert!(event.time_ms < event.recorded_ms, "{event:?}");
        assert_eq!(reactor.stats().commit_age_ms(clock::boot()), 0);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bounded = async {
        tokio::select! {
            () = test => {}
            () = reactor.keep_time() => unreachable!("time goes on"),
            () = reactor.answer_readers(questions_in) => unreachable!("it answers for ever"),
            failure = reactor.commit_groups(&handle, &mut late_outcomes) => panic!("{failure}"),
            () = tokio::time::sleep(Duration::from_secs(20)) => panic!("the test hangs"),
        }
    };
    LocalSet::new().block_on(&runtime, bounded);
}

#[test]
fn the_window_to_come_back_in_grows_with_the_fleet_as_far_as_presence_allows() {
    let within = |slaves, rate, window_s| {
        let window = Duration::from_secs(window_s);
        come_back_within(slaves, rate, window).as_millis()
    };
    assert_eq!(within(0, 5000, 60), 200);
    assert_eq!(within(1000, 5000, 60), 200);
    assert_eq!(within(10_000, 5000, 60), 2000);
    assert_eq!(within(10_000, 250, 60), 40_000);
    assert_eq!(within(10_000_000, 5000, 60), 60_000);
    assert_eq!(within(10_000, 5000, 0), 0);
}
