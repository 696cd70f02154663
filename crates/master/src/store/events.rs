//! The history of events: written with the groups, read by the HTTP thread, swept by age and size.

use std::path::Path;

use rollcall_protocol::api::{EventKind, EventRow};
use rusqlite::types::{ToSql, Type};
use rusqlite::{Connection, Row, Rows, Transaction, TransactionBehavior, named_params};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::checksum;
use super::schema;

/// Most events removed by one sweep beyond twice those that come with the group, so that no commit is
/// held up by a large history.
const SWEEP_EVENTS_MAX: usize = 200;
/// Newest events that stay whatever the size.
const EVENTS_KEPT_MIN: i64 = 1000;

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
                "INSERT INTO events (id, time_ms, recorded_ms, kind, slave, subject, from_state, to_state, text, replayed, checksum)
                 VALUES (:id, :time_ms, :recorded_ms, :kind, :slave, :subject, :from, :to, :text, :replayed, :checksum)",
            )?
            .execute(named_params! {
                ":id": event.id,
                ":time_ms": event.time_ms,
                ":recorded_ms": event.recorded_ms,
                ":kind": event.kind.as_str(),
                ":slave": event.slave,
                ":subject": event.subject,
                ":from": event.from,
                ":to": event.to,
                ":text": event.text,
                ":replayed": event.replayed,
                ":checksum": checksum::of_event(event),
            })?;
        newest = newest.max(event.id);
    }
    Ok(newest)
}

/// What a sweep goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Events recorded before this moment go, in ms since 1970.
    pub(super) before_ms: i64,
    /// The oldest events go while more bytes are in use.
    pub(super) bytes_max: u64,
}

/// Removes some of the oldest events that are beyond the bounds, where `added` have just been added.
/// True: there may be more. By the master's clock and in the order of recording, so that a slave's
/// wrong clock neither keeps an event for ever nor loses it at once.
pub(super) fn sweep(
    transaction: &Transaction<'_>,
    bounds: Bounds,
    added: usize,
) -> rusqlite::Result<bool> {
    let slice = SWEEP_EVENTS_MAX.saturating_add(added.saturating_mul(2));
    let slice_events = i64::try_from(slice).unwrap_or(i64::MAX);
    let by_age = transaction
        .prepare_cached(
            "DELETE FROM events WHERE recorded_ms < ?1
             AND id IN (SELECT id FROM events ORDER BY id LIMIT ?2)",
        )?
        .execute([bounds.before_ms, slice_events])?;
    if by_age >= slice || bytes_in_use(transaction)? <= bounds.bytes_max {
        return Ok(by_age >= slice);
    }
    let by_size = transaction
        .prepare_cached(
            "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?2
             AND id IN (SELECT id FROM events ORDER BY id LIMIT ?1)",
        )?
        .execute([slice_events, EVENTS_KEPT_MIN])?;
    Ok(by_size >= slice)
}

/// Bytes of the database's pages that hold something. Pages that were freed are used again.
pub(super) fn bytes_in_use(connection: &Connection) -> rusqlite::Result<u64> {
    let read = |pragma: &str| {
        connection
            .prepare_cached(&format!("PRAGMA {pragma}"))?
            .query_row([], |row| row.get::<_, i64>(0))
    };
    let pages = read("page_count")?.saturating_sub(read("freelist_count")?);
    let bytes = pages.saturating_mul(read("page_size")?);
    Ok(u64::try_from(bytes).unwrap_or(0))
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

/// A question for a stretch of one slave's past.
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    /// The slave's name.
    pub(crate) slave: String,
    /// From this time of origin, in ms since 1970, and as the API writes it …
    pub(crate) since_ms: i64,
    pub(crate) since_text: String,
    /// … to before this one.
    pub(crate) until_ms: i64,
    /// At most so many.
    pub(crate) limit: u32,
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
    /// Events that are not among `events` because their rows are damaged.
    pub(crate) damaged: u64,
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
        let kind = query.filter.kind.map(EventKind::as_str);
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
        let mut read = Read::default();
        read.all(statement.raw_query())?;
        let Read {
            mut events,
            damaged,
            last,
        } = read;
        if !query.starts_with_the_oldest() {
            events.reverse();
        }
        let count = u64::try_from(events.len()).unwrap_or(u64::MAX) + damaged;
        let more = count >= u64::from(query.limit);
        let last = last.unwrap_or(after);
        Ok(EventPage {
            complete_to: if more { last } else { newest.max(last) },
            events,
            more,
            damaged,
        })
    }

    /// A slave's newest events by time of origin, at most `limit`, oldest first; with them its gaps
    /// that reach into the stretch from before.
    pub(crate) fn stretch(&mut self, stretch: &Stretch) -> rusqlite::Result<EventPage> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Deferred)?;
        let mut read = Read::default();
        // The index of the slave's events, however many others there are in that time.
        let mut newest = transaction.prepare_cached(
            "SELECT * FROM events INDEXED BY events_by_slave
             WHERE slave = ?1 AND time_ms >= ?2 AND time_ms < ?3
             ORDER BY time_ms DESC, id DESC LIMIT ?4",
        )?;
        newest.raw_bind_parameter(1, &stretch.slave)?;
        newest.raw_bind_parameter(2, stretch.since_ms)?;
        newest.raw_bind_parameter(3, stretch.until_ms)?;
        newest.raw_bind_parameter(4, stretch.limit)?;
        read.all(newest.raw_query())?;
        let count = u64::try_from(read.events.len()).unwrap_or(u64::MAX) + read.damaged;
        let more = count >= u64::from(stretch.limit);
        let mut reaching_in = transaction.prepare_cached(
            "SELECT * FROM events INDEXED BY events_by_slave
             WHERE slave = ?1 AND time_ms < ?2 AND kind = 'gap' AND to_state >= ?3
             ORDER BY time_ms DESC, id DESC LIMIT ?4",
        )?;
        reaching_in.raw_bind_parameter(1, &stretch.slave)?;
        reaching_in.raw_bind_parameter(2, stretch.since_ms)?;
        reaching_in.raw_bind_parameter(3, &stretch.since_text)?;
        reaching_in.raw_bind_parameter(4, stretch.limit)?;
        read.all(reaching_in.raw_query())?;
        let Read {
            mut events,
            damaged,
            last: _,
        } = read;
        events.reverse();
        Ok(EventPage {
            complete_to: 0,
            events,
            more,
            damaged,
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

/// Rows as they are read; damaged ones are counted and left out.
#[derive(Debug, Default)]
struct Read {
    events: Vec<EventRow>,
    damaged: u64,
    /// The id of the last one, damaged or not.
    last: Option<i64>,
}

impl Read {
    fn all(&mut self, mut rows: Rows<'_>) -> rusqlite::Result<()> {
        while let Some(row) = rows.next()? {
            self.last = Some(row.get("id")?);
            match verified(row) {
                Ok(event) => self.events.push(event),
                Err(error) => {
                    self.damaged += 1;
                    tracing::error!(
                        event = "event_damaged",
                        id = self.last,
                        error = %error,
                        "an event is damaged and is left out: check the store with rollcall-master --verify-store"
                    );
                }
            }
        }
        Ok(())
    }
}

/// The event of a row whose checksum is right. Version 1 has left none.
pub(super) fn verified(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    let event = event_of(row)?;
    if let Some(stored) = row.get("checksum")? {
        checksum::verify("event", event.id, stored, checksum::of_event(&event))?;
    }
    Ok(event)
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
