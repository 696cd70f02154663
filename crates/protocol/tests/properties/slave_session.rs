//! The slave's session against any answers, and what it sends when.

use std::time::Duration;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use rollcall_protocol::Moment;
use rollcall_protocol::session::SlaveSession;
use rollcall_protocol::session::slave::{
    Pick, Silence, SlaveTimeouts, Step, clock_offset_ms, payload_bytes_max,
};
use rollcall_protocol::wire::{
    Ack, Gap, GapReason, Mark, Pending, ToSlave, Welcome, to_slave::Kind,
};

use crate::messages;

const TIMEOUTS: SlaveTimeouts = SlaveTimeouts {
    welcome: Duration::from_secs(5),
    ack: Duration::from_secs(60),
};

fn at(ms: u64) -> Moment {
    Moment::new(Duration::from_millis(ms))
}

fn session(pending: &[(u64, u64)]) -> SlaveSession {
    let pending = pending
        .iter()
        .map(|&(stream, first)| Pending { stream, first });
    SlaveSession::new(Moment::ZERO, TIMEOUTS, pending.collect(), 0)
}

fn welcome(window: u32, marks: &[(u64, u64)]) -> ToSlave {
    let marks = marks
        .iter()
        .map(|&(stream, sequence)| Mark { stream, sequence });
    ToSlave {
        kind: Some(Kind::Welcome(Welcome {
            version: 1,
            window,
            marks: marks.collect(),
            ..Welcome::default()
        })),
    }
}

fn ack(stream: u64, sequence: u64) -> ToSlave {
    let ack = Ack {
        stream,
        sequence,
        ..Ack::default()
    };
    ToSlave {
        kind: Some(Kind::Ack(ack)),
    }
}

fn opened(pending: &[(u64, u64)], window: u32) -> SlaveSession {
    let mut session = session(pending);
    session.handle_message(welcome(window, &[]), at(1));
    session
}

/// One thing that happens to a session.
#[derive(Clone, Debug)]
enum Act {
    Message(ToSlave),
    /// The spool holds entries up to this one; whatever may be sent is sent.
    Send(u64),
    Time(u64),
    Goodbye,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    vec(
        prop_oneof![
            4 => messages::to_slave().prop_map(Act::Message),
            4 => (1_u64..40).prop_map(Act::Send),
            2 => (0_u64..30_000).prop_map(Act::Time),
            1 => Just(Act::Goodbye),
        ],
        0..60,
    )
}

proptest! {
    #[test]
    fn any_answers_leave_the_session_in_order(
        acts in acts(),
        pending in vec((1_u64..5, 1_u64..20), 0..4),
        frames in option::of(1_u32..17),
    ) {
        let mut session = session(&pending);
        // One window is granted by per-message mode, a later one by Welcome.
        let mut window = frames.unwrap_or(0);
        if let Some(frames) = frames {
            session.send_with_hello(frames);
        }
        let (mut now, mut gone) = (0, false);
        for act in acts {
            match act {
                Act::Time(ms) => now += ms,
                Act::Goodbye => {
                    session.handle_goodbye_sent(at(now));
                    gone = true;
                }
                Act::Message(message) => {
                    let was_open = session.is_open();
                    let in_flight = session.in_flight();
                    match session.handle_message(message, at(now)) {
                        Step::Opened(opened) => {
                            prop_assert!(!was_open, "opened twice");
                            window = opened.welcome.window.clamp(1, 4096);
                            for gap in &opened.gaps {
                                prop_assert!(1 <= gap.first && gap.first <= gap.last);
                            }
                        }
                        Step::Acked { round_trip, .. } => {
                            // The clock runs forwards, and what was acked here was sent here.
                            prop_assert_eq!(round_trip.is_some(), session.in_flight() < in_flight);
                        }
                        _ => prop_assert_eq!(session.in_flight(), in_flight),
                    }
                }
                Act::Send(newest) => send_all(&mut session, newest, window, gone, now)?,
            }
            check_deadline(&mut session)?;
        }
    }

    #[test]
    fn an_offset_is_right_to_half_the_path(
        offset in -1_000_000_000_i64..1_000_000_000,
        there_ms in 0_u32..1_000,
        held_ms in 0_u32..60_000,
        back_ms in 0_u32..1_000,
    ) {
        let [there, held, back] = [there_ms, held_ms, back_ms].map(i64::from);
        let sent_at = 1_800_000_000_000;
        let ack = Ack {
            received_ms: sent_at + there + offset,
            sent_ms: sent_at + there + held + offset,
            ..Ack::default()
        };
        let round_trip = Duration::from_millis((there_ms + held_ms + back_ms).into());
        let measured = clock_offset_ms(&ack, round_trip, sent_at + there + held + back);
        prop_assert!((measured - offset).abs() <= (there + back) / 2 + 1);
    }

    #[test]
    fn any_ack_gives_an_offset(
        received_ms: i64,
        sent_ms: i64,
        round_trip_ms: u64,
        wall_ms: i64,
    ) {
        let ack = Ack { received_ms, sent_ms, ..Ack::default() };
        clock_offset_ms(&ack, Duration::from_millis(round_trip_ms), wall_ms);
    }
}

/// Sends until the session says wait: never beyond the window, each entry in its place once, and a
/// preview only of the newest.
fn send_all(
    session: &mut SlaveSession,
    newest: u64,
    window: u32,
    gone: bool,
    now: u64,
) -> Result<(), TestCaseError> {
    let mut previews = 0;
    loop {
        let next = session.sent() + 1;
        let pick = session.pick((next <= newest).then_some(next), Some(newest));
        match pick {
            Pick::Wait => return Ok(()),
            Pick::Preview(entry) => {
                prop_assert_eq!(entry, newest);
                prop_assert!(entry > next, "what is next needs no preview");
                previews += 1;
                prop_assert!(previews == 1, "previewed again");
                session.handle_sent(pick, 0, 0, at(now));
            }
            Pick::InOrder { entry, live } => {
                prop_assert_eq!(entry, next);
                prop_assert!(!live || entry == newest);
                session.handle_sent(pick, 1, entry, at(now));
                prop_assert_eq!(session.sent(), entry);
                let limit = usize::try_from(window).unwrap_or(usize::MAX);
                prop_assert!(session.in_flight() <= limit);
            }
        }
        prop_assert!(!gone, "something after the goodbye");
        prop_assert!(window > 0, "something before Welcome");
    }
}

fn check_deadline(session: &mut SlaveSession) -> Result<(), TestCaseError> {
    match session.deadline() {
        None => prop_assert!(session.is_open() && session.in_flight() == 0),
        Some(deadline) => {
            let before = deadline - Duration::from_millis(1);
            prop_assert_eq!(session.handle_timeout(before), Ok(()));
            prop_assert!(session.handle_timeout(deadline).is_err());
        }
    }
    Ok(())
}

#[test]
fn the_newest_goes_first_and_the_backlog_under_the_window() {
    let mut session = opened(&[(1, 1)], 2);
    let in_order = |entry, live| Pick::InOrder { entry, live };
    // Entries 1 to 5 wait.
    let mut sent = Vec::new();
    loop {
        let pick = session.pick(Some(session.sent() + 1), Some(5));
        if pick == Pick::Wait {
            break;
        }
        let sequence = session.sent() + 1;
        session.handle_sent(pick, 1, sequence, at(10));
        sent.push(pick);
    }
    assert_eq!(
        sent,
        [Pick::Preview(5), in_order(1, false), in_order(2, false)]
    );
    // A new report goes ahead although the window is full.
    assert_eq!(session.pick(Some(3), Some(6)), Pick::Preview(6));
    session.handle_sent(Pick::Preview(6), 0, 0, at(20));
    assert_eq!(session.pick(Some(3), Some(6)), Pick::Wait);
    session.handle_message(ack(1, 1), at(30));
    assert_eq!(session.pick(Some(3), Some(6)), in_order(3, false));
}

#[test]
fn a_report_without_a_backlog_is_live_in_its_place() {
    let mut session = opened(&[(1, 1)], 64);
    assert_eq!(session.pick(None, None), Pick::Wait);
    let live = Pick::InOrder {
        entry: 1,
        live: true,
    };
    assert_eq!(session.pick(Some(1), Some(1)), live);
    session.handle_sent(live, 1, 1, at(10));
    assert_eq!(session.pick(None, Some(1)), Pick::Wait);
}

#[test]
fn a_mark_beyond_what_was_ever_sent_ends_the_session() {
    let known = Mark {
        stream: 1,
        sequence: 7,
    };
    let step = |marks: &[(u64, u64)]| {
        let mut session = session(&[(9, 1), (1, 3)]);
        session.expect_marks_up_to(known);
        let step = session.handle_message(welcome(64, marks), at(10));
        (session.is_open(), step)
    };
    for marks in [&[][..], &[(1, 0)], &[(9, 100), (1, 7)]] {
        let (is_open, step) = step(marks);
        assert!(is_open && matches!(step, Step::Opened(_)), "{step:?}");
    }
    let ahead = Mark {
        stream: 1,
        sequence: 8,
    };
    assert_eq!(step(&[(9, 100), (1, 8)]), (false, Step::Ahead(ahead)));
    // Who does not know how far it was takes any mark.
    let mut session = session(&[(1, 3)]);
    let step = session.handle_message(welcome(64, &[(1, 8)]), at(10));
    assert!(matches!(step, Step::Opened(_)), "{step:?}");
}

#[test]
fn what_the_master_has_lost_is_told_by_streams_and_only_then() {
    let mut session = session(&[(9, 40), (8, 12), (7, 1), (1, 5)]);
    // Stream 9 stands where it stood; of 8 everything is lost, 7 was never acked; 1 is ahead.
    let marks = [(9, 39), (8, 2), (7, 0), (1, 6)];
    let Step::Opened(opened) = session.handle_message(welcome(64, &marks), at(1)) else {
        panic!("not opened");
    };
    let [gap] = opened.gaps.as_slice() else {
        panic!("{:?}", opened.gaps);
    };
    assert_eq!((gap.stream, gap.first, gap.last), (8, 3, 11));
    assert_eq!(gap.reason(), GapReason::AckedBefore);
    session.handle_gap_sent(gap, at(2));
    assert_eq!(session.in_flight(), 1);
    session.handle_message(ack(8, 11), at(3));
    assert_eq!(session.in_flight(), 0);
}

#[test]
fn a_loss_that_was_told_with_hello_is_not_owed_again() {
    let mut session = session(&[(8, 12), (9, 5), (1, 5)]);
    session.send_with_hello(16);
    let told = Gap {
        stream: 8,
        first: 3,
        last: 11,
        reason: GapReason::AckedBefore.into(),
        ..Gap::default()
    };
    session.handle_gap_sent(&told, at(0));
    let marks = [(8, 2), (9, 1), (1, 4)];
    let Step::Opened(opened) = session.handle_message(welcome(64, &marks), at(1)) else {
        panic!("not opened");
    };
    let streams: Vec<_> = opened.gaps.iter().map(|gap| gap.stream).collect();
    assert_eq!(streams, [9]);
}

#[test]
fn a_mark_at_the_end_of_the_range_is_no_gap() {
    let mut session = session(&[(1, 5)]);
    let Step::Opened(opened) = session.handle_message(welcome(1, &[(1, u64::MAX)]), at(1)) else {
        panic!("not opened");
    };
    assert!(opened.gaps.is_empty());
}

#[test]
fn silence_has_two_deadlines() {
    let mut waiting = session(&[(1, 1)]);
    assert_eq!(waiting.deadline(), Some(at(5_000)));
    let silence = waiting.handle_timeout(at(5_000));
    assert_eq!(silence, Err(Silence::NoWelcome(TIMEOUTS.welcome)));

    let mut open = opened(&[(1, 1)], 64);
    assert_eq!(open.deadline(), None);
    for (entry, ms) in [(1, 100), (2, 200)] {
        open.handle_sent(Pick::InOrder { entry, live: false }, 1, entry, at(ms));
    }
    assert_eq!(open.deadline(), Some(at(60_100)));
    open.handle_message(ack(1, 1), at(300));
    assert_eq!(open.deadline(), Some(at(60_200)));
    let silence = open.handle_timeout(at(60_200));
    assert_eq!(silence, Err(Silence::NoAck(TIMEOUTS.ack)));
    open.handle_message(ack(1, 2), at(60_201));
    assert_eq!(open.deadline(), None);
    open.handle_goodbye_sent(at(70_000));
    assert_eq!(open.deadline(), Some(at(130_000)));
}

#[test]
fn a_round_trip_is_that_of_the_newest_report_it_covers() {
    let mut session = opened(&[(1, 1)], 64);
    for entry in 1..=3 {
        let pick = Pick::InOrder { entry, live: false };
        session.handle_sent(pick, 1, entry, at(100 * entry));
    }
    let round_trip = |step| match step {
        Step::Acked { round_trip, .. } => round_trip,
        other => panic!("{other:?}"),
    };
    let first_two = session.handle_message(ack(1, 2), at(250));
    assert_eq!(round_trip(first_two), Some(Duration::from_millis(50)));
    let again = session.handle_message(ack(1, 2), at(260));
    assert_eq!(round_trip(again), None);
    assert_eq!(session.in_flight(), 1);
}

#[test]
fn the_smaller_limit_of_a_frame_holds() {
    let limit = |max_frame_bytes| {
        payload_bytes_max(&Welcome {
            max_frame_bytes,
            ..Welcome::default()
        })
    };
    assert_eq!(limit(1_000), 1_000);
    assert_eq!(limit(u32::MAX), 65_532);
}
