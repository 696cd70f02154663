//! How many ports are left to each busy destination, and what this host can sustain to one.

use rollcall_os::diag::ports::budget_of;

use super::Case;
use super::ports::widen;
use crate::doctor::capacity::Capacity;
use crate::doctor::finding::{Finding, Severity, set};
use crate::doctor::settings::Settings;
use crate::doctor::traffic::Destination;

/// Percent of the usable ports.
const FEW: usize = 5;
const SOME: usize = 20;
const HALF: usize = 50;

pub(super) fn check(case: Case<'_>) -> Vec<Finding> {
    let mut findings: Vec<_> = case
        .traffic
        .destinations
        .iter()
        .filter_map(|destination| left(destination, case))
        .collect();
    findings.push(sustained(case.settings));
    findings.push(budget(case.settings));
    findings
}

fn left(destination: &Destination, case: Case<'_>) -> Option<Finding> {
    let Destination {
        remote,
        source,
        established,
        time_wait,
        usable,
        ..
    } = destination;
    let available = destination.available();
    let severity = match available * 100 / (*usable).max(1) {
        ..FEW => Severity::Critical,
        FEW..SOME => Severity::Warning,
        SOME..HALF => Severity::Notice,
        HALF.. if case.is_asked => Severity::Ok,
        HALF.. => return None,
    };
    let owners = destination.owners.iter().take(3);
    let owners: Vec<_> = owners
        .map(|(owner, count)| format!("{owner}: {count}"))
        .collect();
    let who = match owners.is_empty() {
        true => "nobody has one open now".to_owned(),
        false => format!("open by {}", owners.join(", ")),
    };
    let what = format!(
        "{available} of {usable} source ports are left from {source} to {remote}: {time_wait} in TIME_WAIT, \
         {established} established; {who}"
    );
    let reuses = case.settings.reuses(remote.ip().is_loopback());
    let is_by_time_wait = *time_wait > *established;
    let means = match (severity, is_by_time_wait) {
        (Severity::Ok, _) => "When none is left connect() fails with error 99 (EADDRNOTAVAIL).",
        (_, true) => {
            "When none is left connect() fails with error 99 (EADDRNOTAVAIL): the programs here close first, which \
             keeps a port for 60 s each time; best the server closes first, or the connection stays open."
        }
        (_, false) => {
            "When none is left connect() fails with error 99 (EADDRNOTAVAIL): the connections are held open; fewer \
             of them, more source addresses or more ports help."
        }
    };
    let finding = Finding::new("destination", severity, what, means);
    Some(
        if is_by_time_wait && !reuses && case.settings.timestamps != Some(0) {
            finding.mend(set("net.ipv4.tcp_tw_reuse", 1))
        } else {
            finding.mend_if(widen(case))
        },
    )
}

fn sustained(settings: &Settings) -> Finding {
    let capacity = Capacity::of(settings);
    Finding::new(
        "capacity",
        Severity::Ok,
        format!(
            "to one destination, where this host closes first, it sustains {}",
            capacity.told(settings)
        ),
        "For each source address; where the server closes first, the ports set no limit.",
    )
}

/// The slave's rule, and not its configuration, which the doctor does not read.
fn budget(settings: &Settings) -> Finding {
    let usable = settings.ports.usable();
    let budget = budget_of(usable);
    Finding::new(
        "slave_budget",
        Severity::Ok,
        format!(
            "rollcall-slave with mode = \"per-message\" keeps to {budget} of {usable} source ports for each \
             master, open and in TIME_WAIT together"
        ),
        "For each of its source addresses. `rollcall-slave --check` says what its own source_ports and \
         source_addresses come to, its check `connection` on the roll what it holds of that.",
    )
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::testing::find;
    use super::*;
    use crate::doctor::testing::{Fixture, HOST};
    use crate::doctor::traffic::{self, Traffic};

    fn used(remote: &str, time_wait: usize, established: usize, reusable: usize) -> Traffic {
        let empty = traffic::empty(remote.parse().unwrap(), IpAddr::from([10, 0, 0, 1]), 1000);
        Traffic {
            destinations: vec![Destination {
                time_wait,
                established,
                left: 1000 - time_wait - established,
                reusable,
                owners: vec![("app (pid 7)".to_owned(), established)],
                ..empty
            }],
            ..Traffic::default()
        }
    }

    #[test]
    fn the_fewer_ports_are_left_the_worse() {
        let at = |used_up| {
            let found = find("destination", &[], &used("10.0.0.9:80", used_up, 0, 0));
            found.first().map(|finding| finding.severity)
        };
        assert_eq!(at(500), None);
        assert_eq!(at(501), Some(Severity::Notice));
        assert_eq!(at(801), Some(Severity::Warning));
        assert_eq!(at(951), Some(Severity::Critical));
    }

    #[test]
    fn a_destination_that_is_asked_for_is_told_when_it_is_well() {
        let settings = Fixture::new(HOST).settings();
        let case = Case {
            settings: &settings,
            traffic: &used("10.0.0.9:80", 1, 2, 0),
            before: None,
            is_asked: true,
        };
        let found = check(case).remove(0);
        assert_eq!((found.id, found.severity), ("destination", Severity::Ok));
        assert_eq!(found.mend, None);
    }

    #[test]
    fn ports_that_may_be_used_again_count_as_left() {
        let traffic = used("127.0.0.1:80", 1000, 0, 900);
        assert!(find("destination", &[], &traffic).is_empty());
    }

    #[test]
    fn the_remedy_follows_from_what_holds_the_ports() {
        let traffic = used("10.0.0.9:80", 990, 5, 0);
        let found = find("destination", &[], &traffic).remove(0);
        assert_eq!(
            found.mend.as_deref(),
            Some("sysctl -w net.ipv4.tcp_tw_reuse=1")
        );
        assert!(
            found.what.contains("5 of 1000 source ports"),
            "{}",
            found.what
        );
        assert!(found.what.contains("app (pid 7): 5"), "{}", found.what);
        let held = used("10.0.0.9:80", 5, 990, 0);
        let found = find("destination", &[], &held).remove(0);
        let command = found.mend.unwrap();
        assert!(command.contains("ip_local_port_range"), "{command}");
    }

    #[test]
    fn what_is_sustained_is_told() {
        let found = find("capacity", &[], &Traffic::default()).remove(0);
        // 28,229 ports over 60 s; to loopback each once a second.
        assert!(found.what.contains("470 connections/s"), "{}", found.what);
        assert!(found.what.contains("28229"), "{}", found.what);
    }

    #[test]
    fn the_budget_of_a_slave_is_told() {
        // One of these is reserved.
        let range = [("proc/sys/net/ipv4/ip_local_port_range", "40000 40100")];
        let found = find("slave_budget", &range, &Traffic::default()).remove(0);
        assert!(found.what.contains("90 of 100 "), "{}", found.what);
        assert_eq!(found.severity, Severity::Ok);
    }
}
