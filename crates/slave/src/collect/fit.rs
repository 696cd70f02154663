//! A status that fits into one frame, whatever the checks said.
//!
//! Metrics go first, from the checks that have most of them; then texts are cut. What was left out
//! is told in a check of its own, [`AGENT_CHECK`].

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use rollcall_os::clock;
use rollcall_protocol::limits;
use rollcall_protocol::wire::{Check, Health, Status};

use super::AGENT_CHECK;
use crate::check::finding::{Finding, severity};
use crate::check::text;

/// What a frame holds around the status: stream, sequence, times and tags.
const FRAME_OVERHEAD_BYTES: usize = 256;
/// Room for the check that says what was left out.
const AGENT_CHECK_BYTES: usize = 1024;
/// Most bytes of an encoded status.
const STATUS_BYTES_MAX: usize = limits::FRAME_PAYLOAD_BYTES_MAX - FRAME_OVERHEAD_BYTES;
/// Most bytes of the checks, the agent's own left aside.
const CHECKS_BYTES_MAX: usize = STATUS_BYTES_MAX - AGENT_CHECK_BYTES;
/// Where all texts have to be cut, they are cut to this.
const SHORT_TEXT_BYTES: usize = 64;
/// State, times and tags of a check: an upper bound.
const CHECK_OVERHEAD_BYTES: usize = 48;

// Without metrics and with short texts, any number of checks that the protocol allows fits.
const _: () = assert!(
    limits::CHECKS_MAX * (limits::CHECK_NAME_BYTES_MAX + SHORT_TEXT_BYTES + CHECK_OVERHEAD_BYTES)
        <= CHECKS_BYTES_MAX
);

/// Makes a status of `checks`: by name, each name once (the worst), no more than the protocol
/// allows (the worst), and within a frame.
pub(super) fn fit(checks: Vec<Check>) -> Status {
    let mut left_out = Vec::new();
    let checks = by_name(checks);
    let mut checks = at_most(checks, limits::CHECKS_MAX - 1, &mut left_out);
    drop_metrics(&mut checks, &mut left_out);
    cut_texts(&mut checks, &mut left_out);
    if !left_out.is_empty() {
        let finding = Finding {
            state: Health::Warning,
            text: format!("the report is too large; left out: {}", left_out.join(", ")),
            metrics: Vec::new(),
        };
        checks.push(finding.into_check(AGENT_CHECK, Duration::ZERO, clock::wall_ms()));
        checks.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Status { checks }
}

fn by_name(checks: Vec<Check>) -> Vec<Check> {
    let mut by_name: BTreeMap<String, Check> = BTreeMap::new();
    for check in checks {
        match by_name.get(&check.name) {
            Some(other) if severity(other.state()) >= severity(check.state()) => {}
            _ => {
                by_name.insert(check.name.clone(), check);
            }
        }
    }
    by_name.into_values().collect()
}

/// Keeps the worst `count` checks: no fault is left out before the last good one.
fn at_most(mut checks: Vec<Check>, count: usize, left_out: &mut Vec<String>) -> Vec<Check> {
    if checks.len() <= count {
        return checks;
    }
    left_out.push(format!("{} checks", checks.len() - count));
    checks.sort_by_key(|check| std::cmp::Reverse(severity(check.state())));
    checks.truncate(count);
    checks.sort_by(|a, b| a.name.cmp(&b.name));
    checks
}

fn drop_metrics(checks: &mut [Check], left_out: &mut Vec<String>) {
    let mut bytes = encoded_bytes(checks);
    let mut order: Vec<usize> = (0..checks.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(checks[*index].encoded_len()));
    let mut count = 0;
    for index in order {
        if bytes <= CHECKS_BYTES_MAX {
            break;
        }
        let check = &mut checks[index];
        if check.metrics.is_empty() {
            continue;
        }
        let before = encoded_bytes(std::slice::from_ref(check));
        check.metrics.clear();
        bytes -= before - encoded_bytes(std::slice::from_ref(check));
        count += 1;
    }
    if count > 0 {
        left_out.push(format!("the metrics of {count} checks"));
    }
}

fn cut_texts(checks: &mut [Check], left_out: &mut Vec<String>) {
    if encoded_bytes(checks) <= CHECKS_BYTES_MAX {
        return;
    }
    for check in checks.iter_mut() {
        check.text = text::line(&check.text, SHORT_TEXT_BYTES);
    }
    left_out.push(format!("all text beyond {SHORT_TEXT_BYTES} bytes"));
}

/// The bytes of `checks` within a status.
fn encoded_bytes(checks: &[Check]) -> usize {
    checks
        .iter()
        .map(|check| {
            let bytes = check.encoded_len();
            1 + prost::length_delimiter_len(bytes) + bytes
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rollcall_protocol::wire::{Report, ToMaster, to_master};

    use super::*;
    use crate::check::finding::{METRICS_MAX, metric};

    fn check(name: &str, state: Health, text_bytes: usize, metrics: usize) -> Check {
        let finding = Finding {
            state,
            text: "x".repeat(text_bytes),
            metrics: (0..metrics)
                .map(|i| metric(&format!("metric number {i}"), 1.5, "B"))
                .collect(),
        };
        finding.into_check(name, Duration::from_secs(u64::MAX), i64::MIN)
    }

    /// The largest frame that may carry `status`.
    fn frame_bytes(status: Status) -> usize {
        let report = Report {
            stream: u64::MAX,
            sequence: u64::MAX,
            time_ms: i64::MIN,
            live: true,
            health: Health::Unknown.into(),
            status: Some(status),
            clock_offset_ms: Some(i64::MIN),
            preview: true,
        };
        let frame = ToMaster {
            kind: Some(to_master::Kind::Report(report)),
        };
        frame.encoded_len()
    }

    fn agent_text(status: &Status) -> Option<&str> {
        let agent = status.checks.iter().find(|check| check.name == AGENT_CHECK);
        agent.map(|check| check.text.as_str())
    }

    #[test]
    fn what_fits_is_left_alone_and_ordered() {
        let (a, b) = (
            check("a", Health::Ok, 10, 3),
            check("b", Health::Critical, 1024, 3),
        );
        let status = fit(vec![b.clone(), a.clone()]);
        assert_eq!(status.checks, [a, b]);
    }

    #[test]
    fn of_two_alike_the_worse_stays() {
        let (good, bad) = (
            check("a", Health::Ok, 1, 0),
            check("a", Health::Warning, 1, 0),
        );
        assert_eq!(
            fit(vec![bad.clone(), good.clone()]).checks,
            std::slice::from_ref(&bad)
        );
        assert_eq!(fit(vec![good, bad.clone()]).checks, [bad]);
    }

    #[test]
    fn metrics_go_before_text_and_the_most_first() {
        let mut checks: Vec<_> = (0..40)
            .map(|i| check(&format!("c{i:02}"), Health::Ok, 1000, METRICS_MAX / 4))
            .collect();
        checks.push(check("many", Health::Ok, 1000, METRICS_MAX));
        let status = fit(checks);
        assert!(frame_bytes(status.clone()) <= limits::FRAME_PAYLOAD_BYTES_MAX);
        assert!(
            status
                .checks
                .iter()
                .all(|check| check.name == AGENT_CHECK || check.text.len() == 1000)
        );
        let text = agent_text(&status).unwrap();
        assert!(
            text.starts_with("the report is too large; left out: the metrics of "),
            "{text}"
        );
        let with_metrics = |name: &str| {
            status
                .checks
                .iter()
                .any(|c| c.name == name && !c.metrics.is_empty())
        };
        assert!(!with_metrics("many"));
        assert!(status.checks.iter().any(|check| !check.metrics.is_empty()));
    }

    #[test]
    fn too_many_checks_keep_the_worst() {
        let mut checks: Vec<_> = (0..400)
            .map(|i| check(&format!("{i:0128}"), Health::Ok, 1024, METRICS_MAX))
            .collect();
        checks.push(check("zzz", Health::Critical, 1024, 0));
        let status = fit(checks);
        assert_eq!(status.checks.len(), limits::CHECKS_MAX);
        assert!(status.checks.iter().any(|check| check.name == "zzz"));
        assert_eq!(
            agent_text(&status),
            Some(
                "the report is too large; left out: 146 checks, the metrics of 254 checks, all text beyond 64 bytes"
            )
        );
        assert!(frame_bytes(status) <= limits::FRAME_PAYLOAD_BYTES_MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_checks_fit(
            shapes in prop::collection::vec((0_usize..=128, 0_usize..=1024, 0_usize..=METRICS_MAX), 0..300),
        ) {
            let checks = shapes
                .iter()
                .enumerate()
                .map(|(i, (name, text, metrics))| {
                    check(&format!("{i}{}", "n".repeat(*name)), Health::Ok, *text, *metrics)
                })
                .collect();
            let status = fit(checks);
            prop_assert!(status.checks.is_sorted_by(|a, b| a.name < b.name));
            prop_assert!(status.checks.len() <= limits::CHECKS_MAX);
            prop_assert!(frame_bytes(status) <= limits::FRAME_PAYLOAD_BYTES_MAX);
        }
    }
}
