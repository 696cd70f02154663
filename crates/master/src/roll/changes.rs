//! What changed from one report to the next.

use rollcall_protocol::api::{EventKind, Health};
use rollcall_protocol::wire::{Check, Report, Status};

use super::gathering::Change;
use super::record::health;

/// What a report was preceded by.
pub(super) struct Before<'a> {
    /// The health; none before the first report.
    pub(super) health: Option<Health>,
    /// The checks.
    pub(super) status: &'a Status,
}

/// The changes that `report` brings, the slave's health first.
pub(super) fn between(
    before: &Before<'_>,
    report: &Report,
    time_ms: i64,
    replayed: bool,
) -> Vec<Change> {
    let none = Status::default();
    let status = report.status.as_ref().unwrap_or(&none);
    let mut changes = Vec::new();
    let now = health(report.health);
    if before.health != Some(now) {
        changes.push(Change {
            kind: EventKind::Health,
            subject: None,
            from: before.health.map(|health| health.as_str().to_owned()),
            to: Some(now.as_str().to_owned()),
            text: reason(status, now),
            time_ms,
            replayed,
        });
    }
    // The first report of a slave is told by its health alone.
    if before.health.is_none() || same_states(before.status, status) {
        return changes;
    }
    let check = |check: &Check, from: Option<&Check>, to: Option<&Check>| Change {
        kind: EventKind::Check,
        subject: Some(check.name.clone()),
        from: from.map(|from| health(from.state).as_str().to_owned()),
        to: to.map(|to| health(to.state).as_str().to_owned()),
        text: to.map_or_else(|| "the check is gone".to_owned(), |to| to.text.clone()),
        time_ms,
        replayed,
    };
    for after in &status.checks {
        let earlier = find(before.status, &after.name);
        if earlier.is_none_or(|earlier| earlier.state != after.state) {
            changes.push(check(after, earlier, Some(after)));
        }
    }
    for earlier in &before.status.checks {
        if find(status, &earlier.name).is_none() {
            changes.push(check(earlier, Some(earlier), None));
        }
    }
    changes
}

/// The usual case, without a search: the same checks in the same order with the same states.
fn same_states(before: &Status, after: &Status) -> bool {
    before.checks.len() == after.checks.len()
        && before
            .checks
            .iter()
            .zip(&after.checks)
            .all(|(before, after)| before.state == after.state && before.name == after.name)
}

fn find<'a>(status: &'a Status, name: &str) -> Option<&'a Check> {
    status.checks.iter().find(|check| check.name == name)
}

/// The line of the first check that is as bad as the whole.
fn reason(status: &Status, now: Health) -> String {
    let culprit = status
        .checks
        .iter()
        .find(|check| health(check.state) == now);
    match (now, culprit) {
        (Health::Ok, _) => "all checks are ok".to_owned(),
        (_, Some(check)) => format!("{}: {}", check.name, check.text),
        (_, None) => "no check says why".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(checks: &[(&str, i32)]) -> Status {
        let checks = checks.iter().map(|&(name, state)| Check {
            name: name.to_owned(),
            state,
            text: format!("{name} is {state}"),
            ..Check::default()
        });
        Status {
            checks: checks.collect(),
        }
    }

    fn told(
        before: Option<Health>,
        old: &[(&str, i32)],
        health: i32,
        new: &[(&str, i32)],
    ) -> Vec<String> {
        let report = Report {
            health,
            status: Some(status(new)),
            ..Report::default()
        };
        let before = Before {
            health: before,
            status: &status(old),
        };
        let line = |change: Change| {
            let Change {
                subject,
                from,
                to,
                text,
                ..
            } = change;
            let word = |word: Option<String>| word.unwrap_or_else(|| "-".into());
            format!("{} {} {} {text}", word(subject), word(from), word(to))
        };
        between(&before, &report, 1, false)
            .into_iter()
            .map(line)
            .collect()
    }

    #[test]
    fn the_first_report_tells_its_health_only() {
        assert_eq!(
            told(None, &[], 2, &[("disk", 2), ("load", 0)]),
            ["- - critical disk: disk is 2"]
        );
    }

    #[test]
    fn a_repeat_tells_nothing() {
        let checks = [("disk", 0), ("load", 1)];
        assert!(told(Some(Health::Warning), &checks, 1, &checks).is_empty());
    }

    #[test]
    fn changed_new_and_vanished_checks_are_told() {
        let old = [("disk", 0), ("load", 0), ("old", 1)];
        let new = [("load", 0), ("disk", 2), ("new", 0)];
        assert_eq!(
            told(Some(Health::Warning), &old, 2, &new),
            [
                "- warning critical disk: disk is 2",
                "disk ok critical disk is 2",
                "new - ok new is 0",
                "old warning - the check is gone",
            ]
        );
    }
}
