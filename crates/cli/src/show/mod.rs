//! `rollcall show`: one slave and its checks.

mod past;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use rollcall_os::units;
use rollcall_protocol::api::{CheckRow, Health, MetricRow, SlaveDetail, SlaveRow};

use crate::client::{Client, ClientError};
use crate::ls;
use crate::terminal::escape::escape;
use crate::terminal::output::{Look, Output};
use crate::terminal::style::Tone;
use crate::terminal::table::{self, Column, Field};
use crate::terminal::{json, metric, time, words};

/// After the options in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  rollcall show web-1
  rollcall show web-1 --metrics
  rollcall show web-1 --history
  rollcall show web-1 --history 2h --metrics
  rollcall show web-1 --json | jq '.checks[] | select(.state != \"ok\")'

The history is what changed, by the time at which it happened, and the newest reports, of
which the master remembers some ([history] reports); gaps stand in their place.";

/// `rollcall show`.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The slave's name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: String,

    /// Every metric of every check, not just the first few
    #[arg(long)]
    pub(crate) metrics: bool,

    /// What it went through instead of how it is, for so long back [without a value: 24h]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "24h", value_parser = time::parse_length)]
    pub(crate) history: Option<units::Duration>,

    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Metrics of a check that are shown unless all are asked for.
const MAIN_METRICS: usize = 4;

const CHECKS: [Column; 6] = [
    Column::text("CHECK", 0),
    Column::text("STATE", 0),
    Column::text("TAKEN", 2),
    Column::text("TOOK", 3),
    Column::text("METRICS", 1),
    Column::text("TEXT", 0),
];

const METRICS: [Column; 3] = [
    Column::text("CHECK", 0),
    Column::text("METRIC", 0),
    Column::text("VALUE", 0),
];

/// Shows one slave.
pub(crate) fn run(client: &Client, args: &ShowArgs, out: &mut Output) -> anyhow::Result<()> {
    if let Some(back) = args.history {
        let back_ms = i64::try_from(back.get().as_millis()).unwrap_or(i64::MAX);
        return past::run(client, args, back_ms, out);
    }
    let slave = client.slave(&args.name).map_err(ClientError::with_exit)?;
    if args.json {
        out.line(&json::pretty(&slave)?)?;
        return Ok(());
    }
    let mut lines = about(&slave, client.now_ms(), out.look());
    lines.push(String::new());
    lines.extend(checks(&slave, client.now_ms(), out.look()));
    if args.metrics {
        lines.push(String::new());
        lines.extend(metrics(&slave.checks, out.look()));
    }
    for line in lines {
        out.line(&line)?;
    }
    Ok(())
}

fn about(slave: &SlaveDetail, now_ms: i64, look: Look) -> Vec<String> {
    let row = &slave.row;
    let at = |ms: i64| format!("{} ({})", time::relative(now_ms, ms), time::local(ms));
    let presence = row.presence.as_str();
    let health = row.health.map_or("none yet", Health::as_str);
    let facts = [
        ("presence", look.paint(presence, words::tone(presence))),
        ("health", look.paint(health, ls::health_tone(row))),
        ("since", at(row.since_ms)),
        (
            "last seen",
            row.last_seen_ms.map_or_else(|| "never".to_owned(), at),
        ),
        ("interval", time::length(row.interval_ms.into())),
        ("reports", reports(row)),
        ("connection", connection(row, now_ms)),
        ("clock", clock(row)),
        ("labels", ls::labels(row)),
        ("agent", escape(&slave.agent_version).into_owned()),
        ("id", escape(&row.id).into_owned()),
        ("stream", escape(&row.stream).into_owned()),
    ];
    let mut lines = vec![look.paint(escape(&row.name), Tone::Strong)];
    let known = facts.iter().filter(|(_, value)| !value.is_empty());
    lines.extend(known.map(|(key, value)| {
        format!(
            "  {} {value}",
            look.paint(format!("{key:<10}"), Tone::Faint)
        )
    }));
    lines
}

fn reports(row: &SlaveRow) -> String {
    let counts = [
        (row.duplicates, "came again"),
        (row.gaps, "were dropped by the slave"),
    ];
    let mut text = format!(
        "{} applied, the newest with sequence {}",
        row.applied, row.sequence
    );
    for (number, what) in counts.iter().filter(|(number, _)| *number > 0) {
        text.push_str(&format!(", {number} {what}"));
    }
    text
}

fn connection(row: &SlaveRow, now_ms: i64) -> String {
    let mut text = row.mode.as_str().to_owned();
    if let Some(peer) = &row.peer {
        text.push_str(&format!(", from {}", escape(peer)));
    }
    if let Some(since) = row.connected_since_ms {
        text.push_str(&format!(", since {}", time::relative(now_ms, since)));
    }
    match row.reconnects {
        0 => {}
        1 => text.push_str(", 1 reconnect"),
        number => text.push_str(&format!(", {number} reconnects")),
    }
    text
}

fn clock(row: &SlaveRow) -> String {
    match row.clock_offset_ms {
        None => String::new(),
        Some(0) => "agrees with the master's".to_owned(),
        Some(offset) => {
            let distance = time::length(offset.unsigned_abs());
            // The offset is the master's clock minus the slave's.
            let side = if offset > 0 { "behind" } else { "ahead of" };
            format!("{distance} {side} the master's")
        }
    }
}

fn checks(slave: &SlaveDetail, now_ms: i64, look: Look) -> Vec<String> {
    if slave.checks.is_empty() {
        return vec!["no checks reported yet".to_owned()];
    }
    let offset_ms = slave.row.clock_offset_ms.unwrap_or(0);
    let mut checks: Vec<_> = slave.checks.iter().collect();
    checks.sort_by_key(|check| badness(check.state));
    let rows: Vec<_> = checks
        .into_iter()
        .map(|check| {
            let state = check.state.as_str();
            let taken_ms = check.time_ms.saturating_add(offset_ms);
            vec![
                Field::plain(escape(&check.name)),
                Field::new(state, words::tone(state)),
                Field::plain(time::relative(now_ms, taken_ms)),
                Field::plain(time::length(check.duration_ms.into())),
                Field::plain(main_metrics(&check.metrics)),
                Field::plain(escape(&check.text)),
            ]
        })
        .collect();
    table::lines(&CHECKS, &rows, look)
}

/// What needs a person comes first.
fn badness(state: Health) -> u8 {
    match state {
        Health::Critical => 0,
        Health::Warning => 1,
        Health::Unknown => 2,
        Health::Ok => 3,
    }
}

fn main_metrics(metrics: &[MetricRow]) -> String {
    let shown = metrics.len().min(MAIN_METRICS);
    let mut text = metric::in_one_line(&metrics[..shown]);
    if metrics.len() > MAIN_METRICS {
        text.push_str(&format!(" +{}", metrics.len() - MAIN_METRICS));
    }
    text
}

fn metrics(checks: &[CheckRow], look: Look) -> Vec<String> {
    let rows: Vec<_> = checks
        .iter()
        .flat_map(|check| check.metrics.iter().map(move |row| (check, row)))
        .map(|(check, row)| {
            vec![
                Field::plain(escape(&check.name)),
                Field::plain(escape(&row.name)),
                Field::plain(metric::value(row)),
            ]
        })
        .collect();
    table::lines(&METRICS, &rows, look)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const PLAIN: Look = Look {
        colored: false,
        width: None,
    };

    fn check(name: &str, state: Health, text: &str, metrics: usize) -> CheckRow {
        let metric = |number| MetricRow {
            name: format!("m{number}"),
            value: Some(1536.0),
            unit: "B".to_owned(),
        };
        CheckRow {
            name: name.to_owned(),
            state,
            text: text.to_owned(),
            duration_ms: 7,
            time_ms: 58_012,
            metrics: (0..metrics).map(metric).collect(),
        }
    }

    fn slave() -> SlaveDetail {
        SlaveDetail {
            row: testing::row("web-1"),
            agent_version: "0.1.0".to_owned(),
            report_time_ms: Some(58_012),
            checks: vec![
                check("load", Health::Ok, "0.1", 1),
                check("disk", Health::Critical, "full\u{1b}[2J", 6),
            ],
        }
    }

    #[test]
    fn checks_in_trouble_come_first_and_are_harmless() {
        assert_eq!(
            checks(&slave(), 61_000, PLAIN),
            [
                "CHECK  STATE     TAKEN   TOOK  METRICS                                         TEXT",
                "disk   critical  3s ago  7ms   m0=1.5 KiB m1=1.5 KiB m2=1.5 KiB m3=1.5 KiB +2  full\\u{1b}[2J",
                "load   ok        3s ago  7ms   m0=1.5 KiB                                      0.1",
            ]
        );
    }

    #[test]
    fn the_row_is_told_in_words() {
        let lines = about(&slave(), 61_000, PLAIN);
        let has = |text: &str| assert!(lines.iter().any(|line| line.contains(text)), "{lines:#?}");
        assert_eq!(lines[0], "web-1");
        has("presence   up");
        has("last seen  1s ago (");
        has("1042 applied, the newest with sequence 42, 3 came again");
        has("pooled, from 127.0.0.1:4711, since 31s ago, 2 reconnects");
        has("12ms ahead of the master's");
        has("role=web site=a");
    }

    #[test]
    fn all_metrics_are_listed_when_asked_for() {
        assert_eq!(metrics(&slave().checks, PLAIN).len(), 1 + 7);
    }
}
