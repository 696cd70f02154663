//! The master's session against any sequence of messages.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use rollcall_protocol::Moment;
use rollcall_protocol::limits::{INTERVAL_MAX, INTERVAL_MIN, PER_MESSAGE_FRAMES_MAX, STREAMS_MAX};
use rollcall_protocol::name;
use rollcall_protocol::session::MasterSession;
use rollcall_protocol::session::master::Step;
use rollcall_protocol::wire::{
    Check, ErrorCode, Gap, Hello, Mode, Pending, Report, SlaveGoodbye, Status, ToMaster,
    to_master::Kind,
};

use crate::messages;

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

fn at(ms: u64) -> Moment {
    Moment::new(Duration::from_millis(ms))
}

fn session() -> MasterSession {
    MasterSession::new(Moment::ZERO, HELLO_TIMEOUT)
}

fn message(kind: Kind) -> ToMaster {
    ToMaster { kind: Some(kind) }
}

/// What a session that was written a second time, as a list of rules, would say of the steps that
/// have come out so far.
#[derive(Default)]
struct Watcher {
    hello: Option<Hello>,
    counted: u32,
    goodbye: bool,
}

impl Watcher {
    fn is_complete(&self) -> bool {
        let announced = self
            .hello
            .as_ref()
            .filter(|hello| hello.mode() != Mode::Pooled);
        self.goodbye || announced.is_some_and(|hello| self.counted == hello.frames)
    }

    fn check(&mut self, step: &Step) -> Result<(), TestCaseError> {
        prop_assert!(!self.is_complete(), "{step:?} after the last frame");
        match step {
            Step::Opened(hello) => {
                prop_assert!(self.hello.is_none(), "opened twice");
                check_range(hello)?;
                self.hello = Some((**hello).clone());
            }
            Step::Report(report) => self.count(report.stream, report.sequence, report.sequence)?,
            Step::Gap(gap) => self.count(gap.stream, gap.first, gap.last)?,
            Step::Goodbye(_) => {
                prop_assert!(self.hello.is_some(), "a goodbye before Hello");
                self.goodbye = true;
            }
            Step::Skipped => prop_assert!(self.hello.is_some(), "skipped before Hello"),
        }
        Ok(())
    }

    fn count(&mut self, stream: u64, first: u64, last: u64) -> Result<(), TestCaseError> {
        let Some(hello) = &self.hello else {
            return Err(TestCaseError::fail("a report before Hello"));
        };
        let announced = hello.pending.iter().any(|pending| pending.stream == stream);
        prop_assert!(announced, "stream {stream} was not announced");
        prop_assert!(1 <= first && first <= last && last <= i64::MAX.unsigned_abs());
        self.counted += 1;
        Ok(())
    }
}

fn check_range(hello: &Hello) -> Result<(), TestCaseError> {
    let interval = Duration::from_millis(hello.interval_ms.into());
    prop_assert!((INTERVAL_MIN..=INTERVAL_MAX).contains(&interval));
    prop_assert!(name::is_valid(&hello.name));
    prop_assert_eq!(hello.slave_id.len(), 16);
    prop_assert!(hello.stream != 0 && hello.pending.len() <= STREAMS_MAX);
    prop_assert!(hello.frames <= PER_MESSAGE_FRAMES_MAX);
    prop_assert_eq!(
        hello.pending.last().map(|last| last.stream),
        Some(hello.stream)
    );
    Ok(())
}

proptest! {
    #[test]
    fn nothing_comes_out_of_turn(messages in vec(messages::to_master(), 0..30)) {
        follow(messages)?;
    }

    #[test]
    fn nothing_comes_out_of_turn_after_a_hello(
        hello in messages::valid_hello(),
        messages in vec(messages::to_master(), 0..30),
    ) {
        let mut all = vec![message(Kind::Hello(hello))];
        all.extend(messages);
        let watcher = follow(all)?;
        prop_assert!(watcher.hello.is_some(), "a Hello in range was refused");
    }
}

/// Goes on after a refusal, which the daemon does not: even then nothing wrong may come out.
fn follow(messages: Vec<ToMaster>) -> Result<Watcher, TestCaseError> {
    let (mut session, mut watcher) = (session(), Watcher::default());
    for message in messages {
        match session.handle_message(message) {
            Ok(step) => watcher.check(&step)?,
            Err(refusal) => {
                prop_assert!(!refusal.text.is_empty());
                prop_assert!(refusal.retry_after.is_none());
                prop_assert!(refusal.to_message().kind.is_some());
            }
        }
        prop_assert_eq!(session.is_open(), watcher.hello.is_some());
        prop_assert_eq!(session.is_complete(), watcher.is_complete());
        let announced = watcher
            .hello
            .as_ref()
            .is_some_and(|hello| hello.mode() != Mode::Pooled);
        let waits = !session.is_complete() && (!session.is_open() || announced);
        prop_assert_eq!(session.deadline().is_some(), waits);
    }
    Ok(watcher)
}

fn hello(mode: Mode, frames: u32) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        slave_id: vec![1; 16],
        name: "web-1".into(),
        stream: 7,
        next_sequence: 1,
        interval_ms: 1_000,
        mode: mode.into(),
        pending: vec![Pending {
            stream: 7,
            first: 1,
        }],
        frames,
        ..Hello::default()
    }
}

fn refused(hello: Hello) -> ErrorCode {
    let refusal = session().handle_message(message(Kind::Hello(hello)));
    refusal.expect_err("out of range").code
}

/// Puts something out of range.
type Change<M> = fn(&mut M);

#[test]
fn each_field_of_hello_has_its_range() {
    let good = || hello(Mode::Pooled, 0);
    let changes: [(&str, Change<Hello>); 14] = [
        ("id", |hello| hello.slave_id.truncate(15)),
        ("name", |hello| hello.name.push('-')),
        ("interval", |hello| hello.interval_ms = 9),
        ("interval", |hello| hello.interval_ms = 86_400_001),
        ("mode", |hello| hello.mode = 3),
        ("frames", |hello| hello.frames = 17),
        ("agent version", |hello| {
            hello.agent_version = "x".repeat(65);
        }),
        ("stream 0", |hello| {
            hello.stream = 0;
            hello.pending[0].stream = 0;
        }),
        ("stream not last", |hello| hello.stream = 8),
        ("no pending", |hello| hello.pending.clear()),
        ("next sequence", |hello| hello.next_sequence = 0),
        ("first", |hello| hello.pending[0].first = 1 << 63),
        ("streams", |hello| {
            hello.pending = vec![hello.pending[0]; 33];
        }),
        ("labels", |hello| {
            hello.labels = (0..33).map(|n| (n.to_string(), String::new())).collect();
        }),
    ];
    session()
        .handle_message(message(Kind::Hello(good())))
        .expect("in range");
    for (what, change) in changes {
        let mut hello = good();
        change(&mut hello);
        assert_eq!(refused(hello), ErrorCode::Invalid, "{what}");
    }
    let mut long_label = good();
    long_label.labels.insert("k".into(), "v".repeat(129));
    assert_eq!(refused(long_label), ErrorCode::Invalid);
    for (min, max) in [(2, 3), (0, 0), (2, 1)] {
        let mut hello = good();
        (hello.version_min, hello.version_max) = (min, max);
        assert_eq!(refused(hello), ErrorCode::Version, "{min} to {max}");
    }
    let mut newer = good();
    newer.version_max = 9;
    assert!(
        session()
            .handle_message(message(Kind::Hello(newer)))
            .is_ok()
    );
}

/// What an open session of stream 7 says to `kind`.
fn answer(kind: Kind) -> Option<ErrorCode> {
    let mut session = session();
    session
        .handle_message(message(Kind::Hello(hello(Mode::Pooled, 0))))
        .expect("in range");
    let answer = session.handle_message(message(kind));
    answer.err().map(|refusal| refusal.code)
}

#[test]
fn each_field_of_a_report_has_its_range() {
    let good = || Report {
        stream: 7,
        sequence: 1,
        status: Some(Status {
            checks: vec![Check {
                name: "n".repeat(128),
                text: "t".repeat(1024),
                ..Check::default()
            }],
        }),
        ..Report::default()
    };
    fn check(report: &mut Report) -> &mut Vec<Check> {
        &mut report.status.as_mut().expect("it has one").checks
    }
    let changes: [(&str, Change<Report>); 6] = [
        ("sequence", |report| report.sequence = 0),
        ("sequence", |report| report.sequence = 1 << 63),
        ("checks", |report| {
            let one = check(report)[0].clone();
            *check(report) = vec![one; 257];
        }),
        ("no name", |report| check(report)[0].name.clear()),
        ("name", |report| check(report)[0].name.push('n')),
        ("text", |report| check(report)[0].text.push('t')),
    ];
    assert_eq!(answer(Kind::Report(good())), None);
    for (what, change) in changes {
        let mut report = good();
        change(&mut report);
        let code = answer(Kind::Report(report));
        assert_eq!(code, Some(ErrorCode::Invalid), "{what}");
    }
    let mut strange = good();
    strange.stream = 8;
    assert_eq!(answer(Kind::Report(strange)), Some(ErrorCode::Protocol));
}

#[test]
fn each_field_of_a_gap_has_its_range() {
    let gap = |stream, first, last| {
        answer(Kind::Gap(Gap {
            stream,
            first,
            last,
            ..Gap::default()
        }))
    };
    assert_eq!(gap(7, 1, i64::MAX.unsigned_abs()), None);
    for (first, last) in [(0, 1), (2, 1), (1, 1 << 63), (1 << 63, 1 << 63)] {
        let code = gap(7, first, last);
        assert_eq!(code, Some(ErrorCode::Invalid), "{first} to {last}");
    }
    assert_eq!(gap(8, 1, 1), Some(ErrorCode::Protocol));
}

#[test]
fn a_per_message_session_is_over_with_its_last_frame() {
    let report = |sequence| {
        message(Kind::Report(Report {
            stream: 7,
            sequence,
            ..Report::default()
        }))
    };
    let mut session = session();
    session
        .handle_message(message(Kind::Hello(hello(Mode::PerMessage, 2))))
        .unwrap();
    session.handle_message(report(1)).unwrap();
    assert!(!session.is_complete());
    session.handle_message(report(2)).unwrap();
    assert!(session.is_complete());
    let after = session.handle_message(report(3)).unwrap_err();
    assert_eq!(after.code, ErrorCode::Protocol);
}

#[test]
fn a_goodbye_may_be_the_last_of_the_frames() {
    let mut session = session();
    session
        .handle_message(message(Kind::Hello(hello(Mode::PerMessage, 1))))
        .unwrap();
    let goodbye = message(Kind::Goodbye(SlaveGoodbye::default()));
    assert!(matches!(
        session.handle_message(goodbye),
        Ok(Step::Goodbye(_))
    ));
    assert!(session.is_complete());
}

#[test]
fn silence_is_refused_at_the_deadline_and_not_before() {
    let mut session = session();
    assert_eq!(session.deadline(), Some(at(5_000)));
    assert_eq!(session.handle_timeout(at(4_999)), Ok(()));
    let refusal = session.handle_timeout(at(5_000)).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Timeout);
    session
        .handle_message(message(Kind::Hello(hello(Mode::Pooled, 0))))
        .unwrap();
    assert_eq!(session.handle_timeout(at(50_000)), Ok(()));
}

#[test]
fn per_message_all_that_was_announced_has_to_come_in_time() {
    let mut session = session();
    session
        .handle_message(message(Kind::Hello(hello(Mode::PerMessage, 1))))
        .unwrap();
    assert_eq!(session.deadline(), Some(at(5_000)));
    let refusal = session.handle_timeout(at(5_000)).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Timeout);
    assert!(
        refusal.retry_after.is_some(),
        "a slow network is no reason to stay away"
    );
}
