//! One slave's past: what is on disk, and what the roll's owner answers.

use prost::Message;
use rollcall_protocol::api::SlaveHistory;
use rollcall_protocol::wire::{Check, Metric, Report, Status, ToMaster, to_master};

use super::*;
use crate::roll::Remembered;

fn report(time_ms: i64) -> Vec<u8> {
    let check = Check {
        name: "disk".to_owned(),
        text: "92 % full".to_owned(),
        metrics: vec![Metric {
            name: "/".to_owned(),
            value: 92.0,
            unit: "%".to_owned(),
        }],
        ..Check::default()
    };
    let report = Report {
        stream: 10,
        sequence: 4,
        time_ms,
        health: 1,
        status: Some(Status {
            checks: vec![check],
        }),
        ..Report::default()
    };
    let kind = Some(to_master::Kind::Report(report));
    ToMaster { kind }.encode_to_vec()
}

/// Answers one question as the roll's owner does.
fn answer(server: &mut Server, reports: &[Vec<u8>]) -> JoinHandle<String> {
    let mut questions = server.questions.take().unwrap();
    let reports: Vec<_> = reports.iter().map(Vec::as_slice).collect();
    let reports = Remembered::from_messages(&reports);
    std::thread::spawn(move || {
        let question: ReportsAsked = questions.blocking_recv().unwrap();
        question.answer.send(reports).unwrap();
        question.slave
    })
}

fn gap(id: i64, from_ms: i64, to: &str) -> EventRow {
    EventRow {
        time_ms: from_ms,
        kind: EventKind::Gap,
        from: Some("1970-01-01T00:00:00.001Z".to_owned()),
        to: Some(to.to_owned()),
        replayed: true,
        ..event(id)
    }
}

#[test]
fn a_slaves_past_has_its_events_its_gaps_in_place_and_its_reports() {
    let mut server = Server::start();
    let events = vec![
        gap(2, 20, "1970-01-01T00:00:00.105Z"),
        gap(4, 30, "1970-01-01T00:00:00.099Z"),
        event(101),
        event(120),
        event(200),
        gap(202, 110, "1970-01-01T00:00:00.115Z"),
    ];
    server.commit(1, events);
    publish(&server, None);
    let owner = answer(&mut server, &[report(99), report(100), report(199)]);
    let (status, body) = server.get("/v1/slaves/even/history?since=100&until=200");
    assert_eq!(status, 200, "{body}");
    assert_eq!(owner.join().unwrap(), "even");
    let history: SlaveHistory = serde_json::from_str(&body).unwrap();
    let ids: Vec<i64> = history.events.iter().map(|event| event.id).collect();
    assert_eq!(ids, [2, 202, 120]);
    assert!(!history.events_cut);
    let times: Vec<i64> = history
        .reports
        .iter()
        .map(|report| report.time_ms)
        .collect();
    assert_eq!(times, [100, 199]);
    let newest = &history.reports[1];
    assert_eq!(
        (newest.health, newest.stream.as_str(), newest.sequence),
        (Health::Warning, "000000000000000a", 4)
    );
    assert_eq!(newest.checks[0].metrics[0].value, Some(92.0));
    assert_eq!(newest.checks[0].text, "92 % full");
}

#[test]
fn the_newest_events_are_told_and_that_there_are_more() {
    let mut server = Server::start();
    server.commit(1, (1..=20).map(event).collect());
    let owner = answer(&mut server, &[]);
    let (_, body) = server.get("/v1/slaves/odd/history?since=0&limit=3");
    owner.join().unwrap();
    let history: SlaveHistory = serde_json::from_str(&body).unwrap();
    let ids: Vec<i64> = history.events.iter().map(|event| event.id).collect();
    assert_eq!((ids, history.events_cut), (vec![15, 17, 19], true));
}

#[test]
fn who_has_no_past_is_unknown_and_wrong_bounds_are_named() {
    let mut server = Server::start();
    publish(&server, None);
    assert_eq!(
        server.error("/v1/slaves/web-1/history?since=5&until=5", 400),
        "until: must be later than since"
    );
    let owner = answer(&mut server, &[]);
    let error = server.error("/v1/slaves/web-3/history", 404);
    owner.join().unwrap();
    assert!(error.contains("did you mean web-1"), "{error}");
    // Its owner is gone, and the reader is told at once.
    assert_eq!(
        server.error("/v1/slaves/web-1/history", 503),
        "the reactor has ended"
    );
}
