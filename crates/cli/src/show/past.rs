//! `rollcall show NAME --history`: one slave's past, as a timeline with gaps in their place.

use rollcall_protocol::api::{CheckRow, EventKind, EventRow, Health, ReportRow, SlaveHistory};

use super::ShowArgs;
use crate::client::{Client, ClientError};
use crate::events;
use crate::terminal::escape::escape;
use crate::terminal::output::{Look, Output};
use crate::terminal::style::Tone;
use crate::terminal::table::{self, Column, Field};
use crate::terminal::{json, metric, time, words};

const REPORTS: [Column; 3] = [
    Column::text("TIME", 0),
    Column::text("HEALTH", 0),
    Column::text("CHECKS", 0),
];

const CHECKS: [Column; 5] = [
    Column::text("TIME", 0),
    Column::text("CHECK", 0),
    Column::text("STATE", 0),
    Column::text("METRICS", 0),
    Column::text("TEXT", 1),
];

/// Shows the past of one slave, `back_ms` from now on backwards.
pub(crate) fn run(
    client: &Client,
    args: &ShowArgs,
    back_ms: i64,
    out: &mut Output,
) -> anyhow::Result<()> {
    let since_ms = client.now_ms().saturating_sub(back_ms);
    let history = client
        .history(&args.name, since_ms)
        .map_err(ClientError::with_exit)?;
    if args.json {
        out.line(&json::pretty(&history)?)?;
        return Ok(());
    }
    for line in lines(&history, args.metrics, out.look()) {
        out.line(&line)?;
    }
    Ok(())
}

fn lines(history: &SlaveHistory, with_metrics: bool, look: Look) -> Vec<String> {
    let name = look.paint(escape(&history.name), Tone::Strong);
    let mut lines = vec![format!("{name}, since {}", time::local(history.since_ms))];
    lines.push(String::new());
    if history.events_cut {
        let note = "older events are left out: ask for a shorter time";
        lines.push(look.paint(note, Tone::Faint));
    }
    if history.events.is_empty() {
        lines.push("nothing changed".to_owned());
    }
    let told = history.events.iter();
    lines.extend(told.map(|event| events::line_of_one_slave(event, look)));
    lines.push(String::new());
    if history.reports.is_empty() {
        lines.push("no reports of that time are remembered".to_owned());
    } else {
        lines.extend(reports(history, with_metrics, look));
    }
    lines
}

/// The reports oldest first, and between them the gaps.
fn reports(history: &SlaveHistory, with_metrics: bool, look: Look) -> Vec<String> {
    let is_gap = |event: &&EventRow| event.kind == EventKind::Gap;
    let mut gaps = history.events.iter().filter(is_gap).peekable();
    let columns: &[Column] = if with_metrics { &CHECKS } else { &REPORTS };
    let mut rows = Vec::new();
    for report in &history.reports {
        while let Some(gap) = gaps.next_if(|gap| gap.time_ms <= report.time_ms) {
            rows.push(gap_row(gap, columns.len()));
        }
        if with_metrics {
            rows.extend(report.checks.iter().map(|check| check_row(report, check)));
        } else {
            rows.push(report_row(report));
        }
    }
    rows.extend(gaps.map(|gap| gap_row(gap, columns.len())));
    table::lines(columns, &rows, look)
}

fn gap_row(gap: &EventRow, width: usize) -> Vec<Field> {
    let mut row = vec![Field::plain(time::local(gap.time_ms))];
    row.resize(width - 1, Field::new("-", Tone::Faint));
    row.push(Field::new(events::text(gap), Tone::Warning));
    row
}

fn report_row(report: &ReportRow) -> Vec<Field> {
    let health = report.health.as_str();
    vec![
        Field::plain(time::local(report.time_ms)),
        Field::new(health, words::tone(health)),
        Field::plain(in_trouble(&report.checks)),
    ]
}

/// The checks that are not well with what they say, or that all are.
fn in_trouble(checks: &[CheckRow]) -> String {
    let troubled: Vec<String> = checks
        .iter()
        .filter(|check| check.state != Health::Ok)
        .map(|check| {
            let state = check.state.as_str();
            format!("{} {state}: {}", escape(&check.name), escape(&check.text))
        })
        .collect();
    if troubled.is_empty() {
        return format!("{} ok", checks.len());
    }
    troubled.join("; ")
}

fn check_row(report: &ReportRow, check: &CheckRow) -> Vec<Field> {
    let state = check.state.as_str();
    vec![
        Field::plain(time::local(report.time_ms)),
        Field::plain(escape(&check.name)),
        Field::new(state, words::tone(state)),
        Field::plain(metric::in_one_line(&check.metrics)),
        Field::plain(escape(&check.text)),
    ]
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::api::MetricRow;

    use super::*;
    use crate::testing;

    const PLAIN: Look = Look {
        colored: false,
        width: None,
    };

    fn check(state: Health) -> CheckRow {
        CheckRow {
            name: "disk".to_owned(),
            state,
            text: "92 % full\u{1b}".to_owned(),
            duration_ms: 3,
            time_ms: 1,
            metrics: vec![MetricRow {
                name: "/".to_owned(),
                value: Some(92.0),
                unit: "%".to_owned(),
            }],
        }
    }

    fn report(time_ms: i64, health: Health) -> ReportRow {
        ReportRow {
            time_ms,
            stream: "0".to_owned(),
            sequence: 1,
            health,
            checks: vec![check(health)],
        }
    }

    fn history() -> SlaveHistory {
        let gap = EventRow {
            kind: EventKind::Gap,
            subject: None,
            time_ms: 120_000,
            from: Some("1970-01-01T00:02:00.000Z".to_owned()),
            to: Some("1970-01-01T00:42:00.000Z".to_owned()),
            text: "gap: 12 reports, 00:02-00:42, spool full".to_owned(),
            ..testing::event(3, "web-1")
        };
        SlaveHistory {
            name: "web-1".to_owned(),
            since_ms: 0,
            until_ms: 10_000_000,
            events: vec![testing::event(1, "web-1"), gap],
            events_cut: true,
            reports: vec![
                report(60_000, Health::Critical),
                report(180_000, Health::Ok),
            ],
        }
    }

    #[test]
    fn gaps_stand_where_reports_are_missing() {
        let lines = lines(&history(), false, PLAIN);
        let local = time::local;
        let gap = format!(
            "gap: 12 reports, {}, spool full",
            time::clock_range(120_000, 2_520_000).unwrap()
        );
        assert_eq!(
            lines,
            [
                format!("web-1, since {}", local(0)),
                String::new(),
                "older events are left out: ask for a shorter time".to_owned(),
                format!(
                    "{}  check         disk  ok -> critical  92 % full",
                    local(50_000)
                ),
                format!("{}  gap           {gap}", local(120_000)),
                String::new(),
                "TIME                 HEALTH    CHECKS".to_owned(),
                format!(
                    "{}  critical  disk critical: 92 % full\\u{{1b}}",
                    local(60_000)
                ),
                format!("{}  -         {gap}", local(120_000)),
                format!("{}  ok        1 ok", local(180_000)),
            ]
        );
    }

    #[test]
    fn metrics_are_told_when_asked_for() {
        let lines = lines(&history(), true, PLAIN);
        let last = lines.last().unwrap();
        assert!(last.contains("disk   ok        /=92%"), "{last}");
    }

    #[test]
    fn no_past_is_said_so() {
        let empty = SlaveHistory {
            events: Vec::new(),
            events_cut: false,
            reports: Vec::new(),
            ..history()
        };
        let lines = lines(&empty, false, PLAIN);
        assert_eq!(lines[2], "nothing changed");
        assert_eq!(lines[4], "no reports of that time are remembered");
    }
}
