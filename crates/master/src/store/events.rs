//! The history of events: written with the groups, read by the HTTP thread, swept by age.

use std::path::Path;

use rollcall_protocol::api::{EventKind, EventRow};
use rusqlite::types::{ToSql, Type};
use rusqlite::{Connection, Row, Transaction, TransactionBehavior, named_params};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::schema;

/// Most events removed by one sweep, so that no commit is held up by a large history.
const SWEEP_EVENTS_MAX: i64 = 200;

/// The word by which an event's kind goes in the database and the API.
pub(crate) const fn kind_word(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Enrolled => "enrolled",
        EventKind::Presence => "presence",
        EventKind::Health => "health",
        EventKind::Check => "check",
        EventKind::Gap => "gap",
        EventKind::Conflict => "conflict",
        EventKind::Resync => "resync",
        EventKind::Restart => "restart",
        EventKind::Renamed => "renamed",
        EventKind::MasterStart => "master_start",
    }
}

/// The kind that goes by that word; the error lists the words that there are.
pub(crate) fn kind_of(word: &str) -> Result<EventKind, ValueError> {
    let deserializer: StrDeserializer<'_, ValueError> = word.into_deserializer();
    EventKind::deserialize(deserializer)
}

/// Adds events and returns the highest id among them, 0 for none.
pub(super) fn insert(transaction: &Transaction<'_>, events: &[EventRow]) -> rusqlite::Result<i64> {
    let mut newest = 0;
    for event in events {
        transaction
            .prepare_cached(
                "INSERT INTO events (id, time_ms, recorded_ms, kind, slave, subject, from_state, to_state, text, replayed)
                 VALUES (:id, :time_ms, :recorded_ms, :kind, :slave, :subject, :from, :to, :text, :replayed)",
            )?
            .execute(named_params! {
                ":id": event.id,
                ":time_ms": event.time_ms,
                ":recorded_ms": event.recorded_ms,
                ":kind": kind_word(event.kind),
                ":slave": event.slave,
                ":subject": event.subject,
                ":from": event.from,
                ":to": event.to,
                ":text": event.text,
                ":replayed": event.replayed,
            })?;
        newest = newest.max(event.id);
    }
    Ok(newest)
}

/// Removes some of the oldest events that were recorded before the given moment. True: there may be
/// more. By the master's clock and in the order of recording, so that a slave's wrong clock neither
/// keeps an event for ever nor loses it at once.
pub(super) fn sweep(transaction: &Transaction<'_>, before_ms: i64) -> rusqlite::Result<bool> {
    let removed = transaction
        .prepare_cached(
            "DELETE FROM events WHERE recorded_ms < ?1
             AND id IN (SELECT id FROM events ORDER BY id LIMIT ?2)",
        )?
        .execute([before_ms, SWEEP_EVENTS_MAX])?;
    Ok(i64::try_from(removed).unwrap_or(i64::MAX) >= SWEEP_EVENTS_MAX)
}

/// Which events to read. Bounds that are absent do not bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventFilter {
    /// Not before this time of origin, in ms since 1970.
    pub(crate) since_ms: Option<i64>,
    /// Before this time of origin, in ms since 1970.
    pub(crate) until_ms: Option<i64>,
    /// Of this slave only.
    pub(crate) slave: Option<String>,
    /// Of this kind only.
    pub(crate) kind: Option<EventKind>,
}

impl EventFilter {
    /// Whether an event passes.
    pub(crate) fn matches(&self, event: &EventRow) -> bool {
        self.since_ms.is_none_or(|since| event.time_ms >= since)
            && self.until_ms.is_none_or(|until| event.time_ms < until)
            && self
                .slave
                .as_ref()
                .is_none_or(|slave| event.slave.as_ref() == Some(slave))
            && self.kind.is_none_or(|kind| event.kind == kind)
    }

    const fn is_bounded_in_time(&self) -> bool {
        self.since_ms.is_some() || self.until_ms.is_some()
    }

    fn condition(&self, after: bool) -> String {
        let parts = [
            (after, "id > :after"),
            (self.since_ms.is_some(), "time_ms >= :since"),
            (self.until_ms.is_some(), "time_ms < :until"),
            (self.slave.is_some(), "slave = :slave"),
            (self.kind.is_some(), "kind = :kind"),
        ];
        let wanted: Vec<&str> = parts
            .iter()
            .filter_map(|(wanted, part)| wanted.then_some(*part))
            .collect();
        match wanted.is_empty() {
            true => "true".to_owned(),
            false => wanted.join(" AND "),
        }
    }
}

/// A question to the history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EventQuery {
    /// Only events with a higher id.
    pub(crate) after: Option<i64>,
    /// Only such events.
    pub(crate) filter: EventFilter,
    /// At most so many.
    pub(crate) limit: u32,
}

impl EventQuery {
    /// By id where the caller goes on from an id or asks for the newest records; by time of origin
    /// where the caller asks for a stretch of time. Each order has an index that yields it.
    fn statement(&self) -> String {
        let by_time = self.after.is_none() && self.filter.is_bounded_in_time();
        let way = if self.starts_with_the_oldest() {
            ""
        } else {
            " DESC"
        };
        let order = match by_time {
            true => format!("time_ms{way}, id{way}"),
            false => format!("id{way}"),
        };
        let condition = self.filter.condition(self.after.is_some());
        format!("SELECT * FROM events WHERE {condition} ORDER BY {order} LIMIT :limit")
    }

    /// The oldest that match if there is a point to start from, else the newest.
    const fn starts_with_the_oldest(&self) -> bool {
        self.after.is_some() || self.filter.since_ms.is_some()
    }
}

/// An answer from the history.
#[derive(Debug)]
pub(crate) struct EventPage {
    /// The events, oldest first: by time of origin if the query bounds it and has no `after`, else
    /// by id.
    pub(crate) events: Vec<EventRow>,
    /// Every matching event with an id up to this one is in `events` or was before `after`.
    /// Meaningful when the query had an `after`.
    pub(crate) complete_to: i64,
    /// Whether the limit cut the page off.
    pub(crate) more: bool,
}

/// A read-only connection of one reader.
#[derive(Debug)]
pub(crate) struct EventReader {
    connection: Connection,
}

impl EventReader {
    /// Opens the database that the store has made.
    pub(crate) fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = schema::open_read_only(path)?;
        Ok(Self { connection })
    }

    /// Reads what matches, as of one moment.
    pub(crate) fn query(&mut self, query: &EventQuery) -> rusqlite::Result<EventPage> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Deferred)?;
        let newest = newest_id(&transaction)?;
        let after = query.after.unwrap_or(i64::MIN);
        let limit = i64::from(query.limit);
        let kind = query.filter.kind.map(kind_word);
        let all: [(&str, &dyn ToSql); 6] = [
            (":after", &after),
            (":since", &query.filter.since_ms),
            (":until", &query.filter.until_ms),
            (":slave", &query.filter.slave),
            (":kind", &kind),
            (":limit", &limit),
        ];
        let mut statement = transaction.prepare_cached(&query.statement())?;
        for (name, value) in all {
            if let Some(index) = statement.parameter_index(name)? {
                statement.raw_bind_parameter(index, value)?;
            }
        }
        let mut events = Vec::new();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            events.push(event_of(row)?);
        }
        if !query.starts_with_the_oldest() {
            events.reverse();
        }
        let more = u32::try_from(events.len()).is_ok_and(|count| count >= query.limit);
        let last = events.last().map_or(after, |event| event.id);
        Ok(EventPage {
            complete_to: if more { last } else { newest.max(last) },
            events,
            more,
        })
    }

    /// The id of the newest event that was ever recorded, 0 before the first.
    pub(crate) fn newest(&self) -> rusqlite::Result<i64> {
        newest_id(&self.connection)
    }
}

fn newest_id(connection: &Connection) -> rusqlite::Result<i64> {
    connection
        .prepare_cached("SELECT next_event - 1 FROM state")?
        .query_row([], |row| row.get(0))
}

fn event_of(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    let kind: String = row.get("kind")?;
    Ok(EventRow {
        id: row.get("id")?,
        time_ms: row.get("time_ms")?,
        recorded_ms: row.get("recorded_ms")?,
        kind: kind_of(&kind).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into())
        })?,
        slave: row.get("slave")?,
        subject: row.get("subject")?,
        from: row.get("from_state")?,
        to: row.get("to_state")?,
        text: row.get("text")?,
        replayed: row.get("replayed")?,
    })
}
