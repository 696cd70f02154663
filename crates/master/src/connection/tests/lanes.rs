//! Live reports beside slaves that replay their backlog.

use super::*;

/// Slave `id` comes with a backlog of reports 1 to `count`, whose newest it shows first.
fn backlog(id: u8, count: u64) -> Vec<to_master::Kind> {
    let Some(mut first) = hello_of(id, count + 1) else {
        panic!("no Hello");
    };
    first.backlog = count;
    let preview = Report {
        preview: true,
        ..report_of(id, count, true)
    };
    let mut messages = vec![
        to_master::Kind::Hello(first),
        to_master::Kind::Report(preview),
    ];
    messages.extend(
        (1..=count).map(|sequence| to_master::Kind::Report(report_of(id, sequence, false))),
    );
    messages
}

fn hello_of(id: u8, next_sequence: u64) -> Option<Hello> {
    let to_master::Kind::Hello(hello) = hello(Mode::Pooled, 0) else {
        return None;
    };
    Some(Hello {
        slave_id: vec![id; 16],
        name: format!("web-{id}"),
        stream: id.into(),
        next_sequence,
        pending: vec![Pending {
            stream: id.into(),
            first: 1,
        }],
        ..hello
    })
}

fn report_of(id: u8, sequence: u64, live: bool) -> Report {
    Report {
        stream: id.into(),
        sequence,
        live,
        ..Report::default()
    }
}

#[test]
fn a_live_report_waits_for_two_groups_at_most_while_others_replay() {
    const REPLAYING: u8 = 100;
    const BACKLOG: u64 = 100;
    const LIVE: u64 = 10;
    let round = SHARES_MAX as u64 * u64::from(SHARE_FRAMES);
    let all = u64::from(REPLAYING) * BACKLOG + LIVE;
    let mut fixture = Fixture::new();
    let reactor = Rc::clone(&fixture.reactor);
    let stop = CancellationToken::new();
    let replaying: Vec<_> = (1..=REPLAYING).map(|_| Memory::default()).collect();
    let live = Memory::default();
    run(async {
        for (memory, id) in replaying.iter().zip(1..) {
            tokio::task::spawn_local(fixture.serve(memory, &stop));
            memory.arrive(&backlog(id, BACKLOG));
        }
        tokio::task::spawn_local(fixture.serve(&live, &stop));
        let first = hello_of(200, 1).map(to_master::Kind::Hello);
        live.arrive(&Vec::from_iter(first));
        let (stats, commits) = (reactor.stats(), || reactor.stats().commits.get());
        let reporting = async {
            until(|| !live.answers().is_empty()).await;
            for sequence in 1..=LIVE {
                let (before, answers) = (commits(), live.answers().len());
                live.arrive(&[to_master::Kind::Report(report_of(200, sequence, true))]);
                until(|| live.answers().len() > answers).await;
                // The group that was being committed, and its own.
                assert!(commits() - before <= 2, "{} groups", commits() - before);
            }
            assert!(stats.applied.get() < all, "nobody replays any more");
            until(|| stats.applied.get() == all).await;
            until(|| {
                replaying
                    .iter()
                    .all(|memory| memory.0.input.borrow().is_empty())
            })
            .await;
        };
        let watching = async {
            let (mut groups, mut applied) = (commits(), 0);
            loop {
                tokio::task::yield_now().await;
                if commits() > groups {
                    let fresh = stats.applied.get() - applied;
                    assert!(fresh <= round + 1, "{fresh} reports in a group");
                    (groups, applied) = (commits(), stats.applied.get());
                }
            }
        };
        tokio::select! {
            failure = reactor.commit_groups(&fixture.store, &mut fixture.outcomes) => panic!("{failure}"),
            () = reactor.share_out() => unreachable!("it never ends"),
            () = watching => unreachable!("it never ends"),
            () = reporting => {}
        }
    });
    assert_eq!(reactor.stats().duplicates.get(), 0);
    for (memory, id) in replaying.iter().zip(1..) {
        let last = memory.answers().into_iter().last();
        match last {
            Some(Kind::Ack(ack)) => assert_eq!((ack.stream, ack.sequence), (id, BACKLOG)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_slave_with_a_backlog_gets_a_smaller_window() {
    let fixture = Fixture::new();
    let window = |backlog| fixture.reactor.welcome(Vec::new(), backlog).window;
    assert_eq!(window(0), RULES.window);
    assert_eq!(window(SHARE_FRAMES.into()), RULES.window);
    assert_eq!(window(8640), SHARE_FRAMES);
}
