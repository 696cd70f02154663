//! The result of a run, from counters and samples.

use std::time::Duration;

use super::*;
use crate::load::Tally;

fn outcome(made: u64, acked: u64) -> Outcome {
    let mut tally = Tally::new();
    tally.made = made;
    for _ in 0..acked {
        tally.count_ack(Duration::from_millis(2));
    }
    Outcome {
        tally,
        elapsed: Duration::from_secs(2),
        backlog_done: None,
        slaves: Vec::new(),
    }
}

fn ports() -> PortsReport {
    PortsReport::default()
}

fn usage(cpu_ms: u64, rss_kib: u64) -> Option<Usage> {
    Some(Usage {
        cpu: Duration::from_millis(cpu_ms),
        rss_kib,
    })
}

#[test]
fn figures_are_per_acked_report_and_per_connection() {
    let samples = Samples {
        before: usage(100, 4000),
        opened: usage(110, 4150),
        finished: usage(210, 5000),
    };
    let report = RunReport::new(
        &outcome(10_000, 10_000),
        ports(),
        &samples,
        &samples,
        100,
        false,
    );
    assert_eq!(report.rate_per_s, 5000.0);
    assert_eq!(report.master.cpu_us_per_report, Some(10.0));
    assert_eq!(report.master.kib_per_connection, Some(1.5));
    let idle = RunReport::new(
        &outcome(10_000, 10_000),
        ports(),
        &samples,
        &samples,
        100,
        true,
    );
    assert_eq!(idle.master.kib_per_connection, Some(10.0));
    let few = RunReport::new(
        &outcome(10_000, 10_000),
        ports(),
        &samples,
        &samples,
        99,
        true,
    );
    assert_eq!(few.master.kib_per_connection, None);
    let ratio = report.ratio_of(&report);
    assert_eq!(
        (ratio.rate, ratio.cpu_us_per_report),
        (Some(1.0), Some(1.0))
    );
    assert_eq!(report.fault(false), None);
}

#[test]
fn a_master_that_died_has_no_figures_and_that_is_no_error() {
    let samples = Samples {
        finished: None,
        before: usage(1, 1),
        opened: usage(1, 1),
    };
    let report = RunReport::new(&outcome(5, 5), ports(), &samples, &samples, 100, true);
    assert_eq!(report.master.cpu_us_per_report, None);
    assert_eq!(report.master.kib_per_connection, None);
}

#[test]
fn losses_and_refusals_are_faults_and_broken_connections_are_not() {
    let none = Samples::default();
    let report = |outcome: &Outcome| RunReport::new(outcome, ports(), &none, &none, 1, false);
    assert!(report(&outcome(5, 4)).fault(true).is_some());
    let mut broken = outcome(5, 5);
    broken.tally.count_error(ErrorKind::Reset);
    assert_eq!(report(&broken).fault(false), None);
    broken.tally.count_error(ErrorKind::RefusedByMaster);
    assert!(report(&broken).fault(false).is_some());
    assert_eq!(report(&broken).fault(true), None);
    broken.tally.count_error(ErrorKind::Forgotten);
    assert!(report(&broken).fault(true).is_some());
}
