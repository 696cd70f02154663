//! `rollcall events`: what has changed, and what changes.

pub(crate) mod follow;

use std::sync::Arc;

use clap::Args;
use clap::builder::{NonEmptyStringValueParser, TypedValueParser};
use rollcall_protocol::api::{EventKind, EventRow};

use self::follow::{Follower, Step};
use crate::client::{Client, ClientError, EventFilter};
use crate::terminal::escape::escape;
use crate::terminal::output::{self, Look, Output};
use crate::terminal::style::Tone;
use crate::terminal::words::one_of;
use crate::terminal::{json, table, time, words};

/// After the options in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  rollcall events --slave web-1 --since 2d
  rollcall events --kind presence --since '2026-06-01 08:00' --until '2026-06-01 09:00'
  rollcall events --follow --json | jq -r .text

TIME is a length of time before now (90s, 1h 30m, 2d), a time of today (10:30), a local
date and time (2026-06-01 10:30) or a full time stamp (2026-06-01T10:30:00Z).
With --follow the newest events come first, then each new one as it happens; when the
master restarts, the stream is taken up where it ended, and no event is shown twice.";

/// `rollcall events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with each new event as it happens
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// At most this many: the newest ones [default: 100, with --follow 10, with --since all]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: Option<u32>,

    /// Only events since then
    #[arg(long, value_name = "TIME", value_parser = time::parse_moment)]
    pub(crate) since: Option<i64>,

    /// Only events before then
    #[arg(long, value_name = "TIME", value_parser = time::parse_moment, conflicts_with = "follow")]
    pub(crate) until: Option<i64>,

    /// Only events of this slave
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) slave: Option<String>,

    /// Only events of this kind
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    pub(crate) kind: Option<EventKind>,

    /// As JSON, one event a line
    #[arg(long)]
    pub(crate) json: bool,
}

fn kinds() -> impl TypedValueParser<Value = EventKind> {
    one_of(&EventKind::ALL, EventKind::as_str)
}

/// Events that `--follow` begins with.
const FOLLOW_LIMIT: u32 = 10;
/// Events of one answer when all since a moment are asked for.
const PAGE: u32 = 1000;

/// Lists events, and follows them if asked to.
pub(crate) fn run(client: Arc<Client>, args: &EventsArgs, out: &mut Output) -> anyhow::Result<()> {
    let filter = EventFilter {
        after: None,
        since_ms: args.since,
        until_ms: args.until,
        slave: args.slave.clone(),
        kind: args.kind,
        limit: args.limit.or_else(|| default_limit(args)),
    };
    let mut events = fetch(&client, &filter).map_err(ClientError::with_exit)?;
    let newest_id = events.iter().map(|event| event.id).max();
    if let Some(surplus) = filter
        .limit
        .and_then(|limit| events.len().checked_sub(usize::try_from(limit).ok()?))
    {
        events.drain(..surplus);
    }
    for event in &events {
        print(event, args.json, out)?;
    }
    if !args.follow {
        if events.is_empty() && !args.json {
            output::complain("no such events");
        }
        return Ok(());
    }
    let filter = EventFilter {
        after: newest_id,
        ..filter
    };
    follow(client, filter, args.json, out)
}

/// One event as a line: when, who, what, from which state to which, and its text. Cut to the
/// terminal.
pub(crate) fn line(event: &EventRow, look: Look) -> String {
    let who = escape(event.slave.as_deref().unwrap_or("(master)"));
    let mut parts = vec![
        (time::local(event.time_ms), Tone::Faint),
        (format!("  {who:<16}"), Tone::Strong),
    ];
    parts.extend(what(event));
    join(parts, look)
}

/// The same without who, where that is known.
pub(crate) fn line_of_one_slave(event: &EventRow, look: Look) -> String {
    let mut parts = vec![(time::local(event.time_ms), Tone::Faint)];
    parts.extend(what(event));
    join(parts, look)
}

/// The text for people, by the local clock where it tells of a stretch of time.
pub(crate) fn text(event: &EventRow) -> String {
    let text = escape(&event.text).into_owned();
    let range = || {
        let from_ms = time::parse_rfc3339(event.from.as_deref()?)?;
        let to_ms = time::parse_rfc3339(event.to.as_deref()?)?;
        let utc = time::clock_range_utc(from_ms, to_ms)?;
        Some((utc, time::clock_range(from_ms, to_ms)?))
    };
    match range() {
        Some((utc, local)) if lasted(event) => text.replacen(&utc, &local, 1),
        _ => text,
    }
}

/// Whether its `from` and `to` are times.
fn lasted(event: &EventRow) -> bool {
    matches!(event.kind, EventKind::Gap | EventKind::Degraded)
}

fn what(event: &EventRow) -> Vec<(String, Tone)> {
    let kind = event.kind.as_str();
    let mut parts = vec![(format!("  {kind:<12}"), Tone::Plain)];
    if let Some(subject) = &event.subject {
        parts.push((format!("  {}", escape(subject)), Tone::Plain));
    }
    let (from, to) = match lasted(event) {
        true => (None, None),
        false => (event.from.as_deref(), event.to.as_deref()),
    };
    if let Some(from) = from {
        parts.push((format!("  {}", escape(from)), words::tone(from)));
    }
    if let Some(to) = to {
        let arrow = if from.is_some() { " -> " } else { "  " };
        parts.push((arrow.to_owned(), Tone::Plain));
        parts.push((escape(to).into_owned(), words::tone(to)));
    }
    if !event.text.is_empty() {
        parts.push((format!("  {}", text(event)), Tone::Plain));
    }
    if event.replayed {
        parts.push(("  (told later)".to_owned(), Tone::Faint));
    }
    parts
}

/// What stderr is told when the master goes away or comes back.
pub(crate) fn notice(step: &Step) -> Option<String> {
    match step {
        Step::Event(_) => None,
        Step::Lost(error) => Some(format!(
            "{}; trying again until it answers",
            error.to_string().lines().next().unwrap_or_default()
        )),
        Step::Back => Some("the master is back; going on where it ended".to_owned()),
    }
}

fn print(event: &EventRow, is_json: bool, out: &mut Output) -> anyhow::Result<()> {
    let text = if is_json {
        json::line(event)?
    } else {
        line(event, out.look())
    };
    out.line(&text)?;
    Ok(())
}

fn default_limit(args: &EventsArgs) -> Option<u32> {
    (args.follow && args.since.is_none()).then_some(FOLLOW_LIMIT)
}

/// The newest events that `filter` lets through; all of them, in pages, if it has a beginning.
fn fetch(client: &Client, filter: &EventFilter) -> Result<Vec<EventRow>, ClientError> {
    if filter.since_ms.is_none() {
        return Ok(client.events(filter)?.events);
    }
    let mut events: Vec<EventRow> = Vec::new();
    loop {
        let page = EventFilter {
            after: Some(events.last().map_or(0, |event| event.id)),
            limit: Some(PAGE),
            ..filter.clone()
        };
        let more = client.events(&page)?.events;
        if more.is_empty() {
            break;
        }
        events.extend(more);
    }
    // Pages go by id, and what was told from a backlog happened before its neighbours.
    events.sort_by_key(|event| (event.time_ms, event.id));
    Ok(events)
}

fn follow(
    client: Arc<Client>,
    filter: EventFilter,
    is_json: bool,
    out: &mut Output,
) -> anyhow::Result<()> {
    let mut follower = Follower::new(client, filter);
    loop {
        let step = follower.next().map_err(ClientError::with_exit)?;
        if let Some(notice) = notice(&step) {
            output::complain(&notice);
        }
        if let Step::Event(event) = step {
            print(&event, is_json, out)?;
        }
    }
}

/// The parts, painted, and cut where the terminal ends.
fn join(parts: Vec<(String, Tone)>, look: Look) -> String {
    let mut left = look.width.unwrap_or(usize::MAX);
    let mut line = String::new();
    for (text, tone) in parts {
        let shown = table::cut(&text, left);
        let is_cut = shown != text.as_str();
        left -= unicode_width::UnicodeWidthStr::width(&*shown);
        line.push_str(&look.paint(shown, tone));
        if is_cut || left == 0 {
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::event;

    const PLAIN: Look = Look {
        colored: false,
        width: None,
    };

    #[test]
    fn an_event_is_one_line() {
        let mut event = event(1, "web-1");
        let when = time::local(event.time_ms);
        assert_eq!(
            line(&event, PLAIN),
            format!("{when}  web-1             check         disk  ok -> critical  92 % full")
        );
        event.text = "a\nb\u{1b}[0m".to_owned();
        event.replayed = true;
        let text = line(&event, PLAIN);
        assert!(text.ends_with("  a\\nb\\u{1b}[0m  (told later)"), "{text}");
    }

    #[test]
    fn a_master_s_event_has_no_slave() {
        let mut event = event(1, "");
        event.slave = None;
        event.from = None;
        event.to = None;
        assert!(line(&event, PLAIN).contains("  (master)          check         disk  92 % full"));
    }

    #[test]
    fn a_line_fits_the_terminal() {
        let event = event(1, "web-1");
        for width in 1..90 {
            let look = Look {
                colored: false,
                width: Some(width),
            };
            let text = line(&event, look);
            assert!(
                unicode_width::UnicodeWidthStr::width(&*text) <= width,
                "{text}"
            );
        }
    }
}
