//! The checks: what was read of a host, and what it means. None of them reads anything itself.

mod advice;
mod destinations;
mod memory;
mod ports;
mod queues;
mod time_wait;

use super::finding::{self, Finding};
use super::settings::{Counters, Settings};
use super::traffic::Traffic;

/// What is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case<'a> {
    pub(super) settings: &'a Settings,
    pub(super) traffic: &'a Traffic,
    /// The counters as they were at the last look, if there was one.
    pub(super) before: Option<Counters>,
    /// Whether the destinations were asked for, and are to be told even if all is well.
    pub(super) is_asked: bool,
}

/// All findings, the worst first.
pub(super) fn all(case: Case<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in [
        destinations::check,
        ports::check,
        time_wait::check,
        advice::check,
        queues::check,
        memory::check,
    ] {
        findings.extend(check(case));
    }
    finding::sort(&mut findings);
    findings
}

/// What a counter has reached, and whether it has grown since the last look.
fn grown(now: u64, before: Option<u64>) -> Option<u64> {
    before
        .map(|before| now.saturating_sub(before))
        .filter(|grown| *grown > 0)
}

#[cfg(test)]
mod testing {
    //! Findings of a host by name.

    use super::*;
    use crate::doctor::finding::Severity;
    use crate::doctor::testing::{Fixture, HOST};

    /// The findings with this id on a host that differs from a good one in these files.
    pub(super) fn find(id: &str, files: &[(&str, &str)], traffic: &Traffic) -> Vec<Finding> {
        let fixture = Fixture::new(HOST);
        let fixture = files
            .iter()
            .fold(fixture, |fixture, (path, text)| fixture.with(path, text));
        let settings = fixture.settings();
        let case = Case {
            settings: &settings,
            traffic,
            before: None,
            is_asked: false,
        };
        let mut findings = all(case);
        findings.retain(|finding| finding.id == id);
        findings
    }

    /// How bad the one with this id is.
    #[track_caller]
    pub(super) fn severity(id: &str, files: &[(&str, &str)]) -> Severity {
        let found = find(id, files, &Traffic::default());
        match found.as_slice() {
            [finding] => finding.severity,
            other => panic!("{other:#?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{Severity, worst};
    use crate::doctor::testing::{Fixture, HOST};

    #[test]
    fn a_good_host_has_nothing_but_good_findings() {
        let settings = Fixture::new(HOST).settings();
        let findings = all(Case {
            settings: &settings,
            traffic: &Traffic::default(),
            before: Some(settings.counters),
            is_asked: false,
        });
        assert_eq!(worst(&findings), Severity::Ok, "{findings:#?}");
        assert!(findings.len() >= 10, "{findings:#?}");
    }

    #[test]
    fn a_host_that_tells_next_to_nothing_is_no_reason_to_fail() {
        let settings =
            Fixture::new(&[("proc/sys/net/ipv4/ip_local_port_range", "32768 60999")]).settings();
        let findings = all(Case {
            settings: &settings,
            traffic: &Traffic::default(),
            before: None,
            is_asked: false,
        });
        assert_eq!(worst(&findings), Severity::Ok, "{findings:#?}");
    }

    #[test]
    fn the_worst_comes_first() {
        let settings = Fixture::new(HOST)
            .with("proc/sys/net/ipv4/tcp_timestamps", "0")
            .with("proc/sys/fs/file-nr", "99 0 100")
            .settings();
        let findings = all(Case {
            settings: &settings,
            traffic: &Traffic::default(),
            before: None,
            is_asked: false,
        });
        let severities: Vec<_> = findings.iter().map(|finding| finding.severity).collect();
        assert!(
            severities.is_sorted_by(|one, next| one >= next),
            "{severities:?}"
        );
        assert_eq!(severities[0], Severity::Critical);
    }

    #[test]
    fn a_counter_grows_only_between_two_looks() {
        assert_eq!(grown(5, None), None);
        assert_eq!(grown(5, Some(5)), None);
        assert_eq!(grown(7, Some(5)), Some(2));
    }
}
