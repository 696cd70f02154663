//! `rollcall ls`: the roll.

use std::fmt::Write as _;

use clap::Args;
use clap::builder::TypedValueParser;
use rollcall_protocol::api::{Health, Presence, SlaveRow};

use crate::client::{Client, ClientError};
use crate::terminal::escape::escape;
use crate::terminal::output::{self, Look, Output};
use crate::terminal::style::Tone;
use crate::terminal::table::{self, Column, Field};
use crate::terminal::words::one_of;
use crate::terminal::{json, time, words};

/// After the options in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  rollcall ls --health critical,warning
  rollcall ls --json | jq -r '.slaves[] | select(.presence == \"missing\") | .name'

PRESENCE is what the master sees: up, late, missing, left (it said goodbye) or expected
(never seen). HEALTH is what the slave said last: a missing slave keeps it. Columns that
do not fit the terminal are left out, the least important first; a pipe gets them all.";

/// `rollcall ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only slaves of these presences
    #[arg(long, value_name = "PRESENCE", value_delimiter = ',', value_parser = presences())]
    pub(crate) presence: Vec<Presence>,

    /// Only slaves of these healths
    #[arg(long, value_name = "HEALTH", value_delimiter = ',', value_parser = healths())]
    pub(crate) health: Vec<Health>,

    /// As JSON: {"slaves": [...]}, one slave a line
    #[arg(long)]
    pub(crate) json: bool,
}

fn presences() -> impl TypedValueParser<Value = Presence> {
    one_of(&Presence::ALL, Presence::as_str)
}

fn healths() -> impl TypedValueParser<Value = Health> {
    one_of(&Health::ALL, Health::as_str)
}

const COLUMNS: [Column; 10] = [
    Column::text("NAME", 0),
    Column::text("PRESENCE", 0),
    Column::text("HEALTH", 0),
    Column::text("SINCE", 2),
    Column::text("LAST SEEN", 1),
    Column::text("INTERVAL", 4),
    Column::number("SEQUENCE", 3),
    Column::text("MODE", 6),
    Column::text("PEER", 5),
    Column::text("LABELS", 7),
];

/// Lists the slaves.
pub(crate) fn run(client: &Client, args: &LsArgs, out: &mut Output) -> anyhow::Result<()> {
    let mut rows = client.slaves().map_err(ClientError::with_exit)?.slaves;
    let known = rows.len();
    rows.retain(|row| is_asked_for(row, &args.presence, &args.health));
    if args.json {
        out.write(&as_json(&rows)?)?;
        return Ok(());
    }
    warn_if_degraded(client);
    if rows.is_empty() {
        output::complain(&match known {
            0 => "no slave has reported to this master yet".to_owned(),
            _ => format!("none of the {known} slaves is like that"),
        });
        return Ok(());
    }
    for line in lines(&rows, client.now_ms(), out.look()) {
        out.line(&line)?;
    }
    if out.is_terminal() {
        out.line(
            &out.look()
                .paint(format!("\n{}", summary(&rows)), Tone::Faint),
        )?;
    }
    Ok(())
}

/// The roll as a table.
pub(crate) fn lines(rows: &[SlaveRow], now_ms: i64, look: Look) -> Vec<String> {
    let rows: Vec<_> = rows.iter().map(|row| fields(row, now_ms)).collect();
    table::lines(&COLUMNS, &rows, look)
}

/// How many slaves there are, and how many in what trouble.
pub(crate) fn summary(rows: &[SlaveRow]) -> String {
    let mut text = match rows.len() {
        1 => "1 slave".to_owned(),
        number => format!("{number} slaves"),
    };
    let presences = Presence::ALL.iter().map(|presence| {
        let number = rows.iter().filter(|row| row.presence == *presence).count();
        (number, presence.as_str())
    });
    let troubles = Health::ALL.iter().filter(|health| **health != Health::Ok);
    let healths = troubles.map(|health| {
        let number = rows
            .iter()
            .filter(|row| row.health == Some(*health))
            .count();
        (number, health.as_str())
    });
    let mut separator = ": ";
    for (number, word) in presences.chain(healths).filter(|(number, _)| *number > 0) {
        // Writing into a String can't fail.
        let _ = write!(text, "{separator}{number} {word}");
        separator = ", ";
    }
    text
}

/// A colour for the health of a slave: what it said before it went away counts less.
pub(crate) fn health_tone(row: &SlaveRow) -> Tone {
    match (row.presence, row.health) {
        (Presence::Missing | Presence::Left | Presence::Expected, _) | (_, None) => Tone::Faint,
        (Presence::Up | Presence::Late, Some(health)) => words::tone(health.as_str()),
    }
}

fn is_asked_for(row: &SlaveRow, presences: &[Presence], healths: &[Health]) -> bool {
    (presences.is_empty() || presences.contains(&row.presence))
        && (healths.is_empty() || row.health.is_some_and(|health| healths.contains(&health)))
}

/// The rows as the API gives them, one a line.
fn as_json(rows: &[SlaveRow]) -> serde_json::Result<String> {
    let lines: Result<Vec<_>, _> = rows.iter().map(json::line).collect();
    Ok(match lines?.join(",\n") {
        none if none.is_empty() => "{\"slaves\":[]}\n".to_owned(),
        some => format!("{{\"slaves\":[\n{some}\n]}}\n"),
    })
}

fn warn_if_degraded(client: &Client) {
    // The roll has been served, so what is wrong with the readiness alone is no error here.
    if let Ok(readiness) = client.readiness()
        && !readiness.ready
    {
        let reason = readiness.reason.unwrap_or_default();
        output::complain(&format!(
            "the master is not storing reports, so the roll may be old: {}",
            escape(&reason)
        ));
    }
}

fn fields(row: &SlaveRow, now_ms: i64) -> Vec<Field> {
    let presence = row.presence.as_str();
    let last_seen = row
        .last_seen_ms
        .map_or_else(|| "never".to_owned(), |at| time::relative(now_ms, at));
    let last_seen_tone = match row.presence {
        Presence::Late | Presence::Missing => words::tone(presence),
        Presence::Up | Presence::Expected | Presence::Left => Tone::Plain,
    };
    vec![
        Field::plain(escape(&row.name)),
        Field::new(presence, words::tone(presence)),
        Field::new(row.health.map_or("-", Health::as_str), health_tone(row)),
        Field::plain(time::relative(now_ms, row.since_ms)),
        Field::new(last_seen, last_seen_tone),
        Field::plain(time::length(row.interval_ms.into())),
        Field::plain(row.sequence.to_string()),
        Field::plain(row.mode.as_str()),
        Field::plain(row.peer.as_deref().map_or("-".into(), escape)),
        Field::plain(labels(row)),
    ]
}

/// The labels of a slave, safe for a terminal.
pub(crate) fn labels(row: &SlaveRow) -> String {
    let pairs = row.labels.iter();
    let pairs: Vec<_> = pairs.map(|(key, value)| format!("{key}={value}")).collect();
    escape(&pairs.join(" ")).into_owned()
}

#[cfg(test)]
mod tests {
    use rollcall_protocol::api::SlaveList;

    use super::*;
    use crate::testing::row;

    fn some_rows() -> Vec<SlaveRow> {
        let mut gone = row("db-1");
        gone.presence = Presence::Missing;
        gone.health = Some(Health::Critical);
        gone.last_seen_ms = Some(1_000);
        gone.peer = None;
        let mut expected = row("web-2");
        expected.presence = Presence::Expected;
        expected.health = None;
        expected.last_seen_ms = None;
        vec![gone, row("web-1"), expected]
    }

    #[test]
    fn a_row_reads_like_a_sentence() {
        let look = Look {
            colored: false,
            width: None,
        };
        let lines = lines(&some_rows(), 61_000, look);
        assert_eq!(
            lines,
            [
                "NAME   PRESENCE  HEALTH    SINCE    LAST SEEN  INTERVAL  SEQUENCE  MODE    PEER            LABELS",
                "db-1   missing   critical  21s ago  1m ago     10s             42  pooled  -               role=web site=a",
                "web-1  up        ok        21s ago  1s ago     10s             42  pooled  127.0.0.1:4711  role=web site=a",
                "web-2  expected  -         21s ago  never      10s             42  pooled  127.0.0.1:4711  role=web site=a",
            ]
        );
    }

    #[test]
    fn a_narrow_terminal_keeps_what_matters() {
        let look = Look {
            colored: false,
            width: Some(40),
        };
        let lines = lines(&some_rows(), 61_000, look);
        assert_eq!(lines[0], "NAME   PRESENCE  HEALTH    LAST SEEN");
    }

    #[test]
    fn filters_are_combined() {
        let names = |presences: &[Presence], healths: &[Health]| {
            let mut rows = some_rows();
            rows.retain(|row| is_asked_for(row, presences, healths));
            rows.into_iter().map(|row| row.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&[], &[]).len(), 3);
        assert_eq!(
            names(&[Presence::Up, Presence::Missing], &[]),
            ["db-1", "web-1"]
        );
        assert_eq!(names(&[], &[Health::Ok]), ["web-1"]);
        assert_eq!(names(&[Presence::Up], &[Health::Critical]), [""; 0]);
    }

    #[test]
    fn json_is_what_the_api_gives_with_a_slave_a_line() {
        let rows = some_rows();
        let text = as_json(&rows).unwrap();
        assert_eq!(text.lines().count(), rows.len() + 2);
        let list: SlaveList = serde_json::from_str(&text).unwrap();
        assert_eq!(list.slaves, rows);
        assert_eq!(as_json(&[]).unwrap(), "{\"slaves\":[]}\n");
    }

    #[test]
    fn the_summary_counts_troubles() {
        assert_eq!(
            summary(&some_rows()),
            "3 slaves: 1 up, 1 expected, 1 missing, 1 critical"
        );
        assert_eq!(summary(&[row("a")]), "1 slave: 1 up");
    }
}
