//! The SQL of the spool. Every function works on a connection that the caller owns, so that
//! several of them make one transaction.

use prost::Message;
use rollcall_protocol::wire::{self, GapReason};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Body, Entry};

/// What an entry costs beside its body: its row and its places in two indexes, in bytes.
pub(crate) const ENTRY_BYTES: u64 = 100;

/// Number of reports, and bytes of all entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) reports: u64,
    pub(super) bytes: u64,
}

impl Totals {
    /// Without what `other` counts.
    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            reports: self.reports.saturating_sub(other.reports),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// A row without its body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) id: u64,
    pub(super) stream: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) from_ms: i64,
    pub(super) to_ms: i64,
    pub(super) size: u64,
}

const LINE: &str = "id, stream, first, last, from_ms, to_ms, size";

impl Line {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: sequence(row, 0)?,
            stream: row.get::<_, i64>(1)?.cast_unsigned(),
            first: sequence(row, 2)?,
            last: sequence(row, 3)?,
            from_ms: row.get(4)?,
            to_ms: row.get(5)?,
            size: sequence(row, 6)?,
        })
    }
}

fn sequence(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(at)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(at, value))
}

/// Sequences stay far below 2^63: a stream that gets one each nanosecond takes 292 years.
fn column(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The value under `key` of the meta table.
pub(super) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<Vec<u8>>> {
    connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| {
            row.get(0)
        })
        .optional()
}

/// Sets the value under `key` of the meta table.
pub(super) fn set_meta(connection: &Connection, key: &str, value: &[u8]) -> rusqlite::Result<()> {
    connection
        .execute(
            "INSERT OR REPLACE INTO meta VALUES (?1, ?2)",
            params![key, value],
        )
        .map(|_| ())
}

/// Counts everything.
pub(super) fn totals(connection: &Connection) -> rusqlite::Result<Totals> {
    let sql = "SELECT count(*) - count(gap), coalesce(sum(size), 0) FROM entries";
    connection.query_row(sql, [], |row| {
        Ok(Totals {
            reports: sequence(row, 0)?,
            bytes: sequence(row, 1)?,
        })
    })
}

/// Counts what ends in `stream` after `after` and up to `up_to`.
pub(super) fn totals_of(
    connection: &Connection,
    stream: u64,
    after: u64,
    up_to: u64,
) -> rusqlite::Result<Totals> {
    let sql = "SELECT count(*) - count(gap), coalesce(sum(size), 0) FROM entries
               WHERE stream = ?1 AND last > ?2 AND last <= ?3";
    let values = params![stream.cast_signed(), column(after), column(up_to)];
    connection.prepare_cached(sql)?.query_row(values, |row| {
        Ok(Totals {
            reports: sequence(row, 0)?,
            bytes: sequence(row, 1)?,
        })
    })
}

/// The highest id; 0 if there are no entries.
pub(super) fn highest_id(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT coalesce(max(id), 0) FROM entries";
    connection.query_row(sql, [], |row| sequence(row, 0))
}

/// Adds a report under `id`, whose own stream and sequence are not set; returns its size in bytes.
pub(super) fn insert_report(
    connection: &Connection,
    id: u64,
    stream: u64,
    sequence: u64,
    report: &wire::Report,
    repeat: bool,
) -> rusqlite::Result<u64> {
    let body = encode(report);
    let size = ENTRY_BYTES + u64::try_from(body.len()).unwrap_or(u64::MAX - ENTRY_BYTES);
    let sql = "INSERT INTO entries VALUES (?1, ?2, ?3, ?3, NULL, ?4, ?5, ?5, ?6, ?7)";
    connection.prepare_cached(sql)?.execute(params![
        column(id),
        stream.cast_signed(),
        column(sequence),
        repeat,
        report.time_ms,
        column(size),
        body
    ])?;
    Ok(size)
}

fn encode(report: &wire::Report) -> Vec<u8> {
    sign(report.encode_to_vec())
}

/// A body with its checksum: SQLite finds damage in its own structures, not in what a row says.
pub(super) fn sign(mut body: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&body);
    body.extend(checksum.to_le_bytes());
    body
}

/// A body without its checksum; `None` if that is not the one of what was written.
pub(super) fn unsigned(body: &[u8]) -> Option<&[u8]> {
    let (report, checksum) = body.split_last_chunk()?;
    let is_whole = crc32fast::hash(report) == u32::from_le_bytes(*checksum);
    is_whole.then_some(report)
}

/// The report of a body; `None` if it is not what was written.
fn decode(body: &[u8]) -> Option<wire::Report> {
    wire::Report::decode(unsigned(body)?).ok()
}

/// Adds a gap under `id`.
pub(super) fn insert_gap(
    connection: &Connection,
    id: u64,
    gap: &wire::Gap,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO entries VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, ?8, x'')";
    connection
        .prepare_cached(sql)?
        .execute(params![
            column(id),
            gap.stream.cast_signed(),
            column(gap.first),
            column(gap.last),
            gap.reason,
            gap.from_ms,
            gap.to_ms,
            column(ENTRY_BYTES)
        ])
        .map(|_| ())
}

/// Removes all of `stream` up to `mark`.
pub(super) fn delete_up_to(
    connection: &Connection,
    stream: u64,
    mark: u64,
) -> rusqlite::Result<()> {
    let values = params![stream.cast_signed(), column(mark)];
    connection
        .prepare_cached("DELETE FROM entries WHERE stream = ?1 AND last <= ?2")?
        .execute(values)?;
    // A gap that the mark lies in: only its rest is still to be told.
    let rest = "UPDATE entries SET first = ?2 + 1
                WHERE stream = ?1 AND last > ?2 AND first <= ?2";
    connection.prepare_cached(rest)?.execute(values).map(|_| ())
}

/// Up to `max` entries after `after`, in order. An entry whose body can't be decoded is `Err`.
pub(super) fn read_after(
    connection: &Connection,
    after: u64,
    max: usize,
) -> rusqlite::Result<Vec<Result<Entry, Line>>> {
    let sql = format!("SELECT {LINE}, gap, body FROM entries WHERE id > ?1 ORDER BY id LIMIT ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    let max = i64::try_from(max).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![column(after), max], read_entry)?;
    rows.collect()
}

/// The report with the highest id.
pub(super) fn newest(connection: &Connection) -> rusqlite::Result<Option<Result<Entry, Line>>> {
    let sql =
        format!("SELECT {LINE}, gap, body FROM entries WHERE gap IS NULL ORDER BY id DESC LIMIT 1");
    let mut statement = connection.prepare_cached(&sql)?;
    statement.query_row([], read_entry).optional()
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<Result<Entry, Line>> {
    let line = Line::read(row)?;
    let gap: Option<i32> = row.get(7)?;
    let body = match gap {
        Some(reason) => Body::Gap(wire::Gap {
            stream: line.stream,
            first: line.first,
            last: line.last,
            reason,
            from_ms: line.from_ms,
            to_ms: line.to_ms,
        }),
        None => match decode(row.get_ref(8)?.as_blob()?) {
            None => return Ok(Err(line)),
            Some(report) => Body::Report(wire::Report {
                stream: line.stream,
                sequence: line.last,
                ..report
            }),
        },
    };
    let id = line.id;
    Ok(Ok(Entry { id, body }))
}

/// The streams that have entries, oldest first, each with its first sequence.
///
/// One step of the recursion finds the next stream in the index: what it costs goes with the number
/// of streams and not with that of entries.
pub(super) fn streams(connection: &Connection) -> rusqlite::Result<Vec<wire::Pending>> {
    let sql = "
        WITH RECURSIVE known(stream) AS (
            SELECT min(stream) FROM entries
            UNION ALL
            SELECT (SELECT min(stream) FROM entries WHERE stream > known.stream)
            FROM known WHERE known.stream IS NOT NULL
        )
        SELECT oldest.stream, oldest.first FROM known JOIN entries AS oldest ON oldest.id = (
            SELECT id FROM entries WHERE stream = known.stream ORDER BY last LIMIT 1
        )
        ORDER BY oldest.id";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| {
        Ok(wire::Pending {
            stream: row.get::<_, i64>(0)?.cast_unsigned(),
            first: sequence(row, 1)?,
        })
    })?;
    rows.collect()
}

/// The first sequence of `stream` after `mark` that there is an entry for.
pub(super) fn first_of(
    connection: &Connection,
    stream: u64,
    mark: u64,
) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT first FROM entries WHERE stream = ?1 AND last > ?2 ORDER BY last LIMIT 1";
    let first = connection
        .prepare_cached(sql)?
        .query_row(params![stream.cast_signed(), column(mark)], |row| {
            sequence(row, 0)
        })
        .optional()?;
    Ok(first.map(|first| first.max(mark + 1)))
}

/// The report under `id`; `None` if there is no entry or it is a gap.
pub(super) fn report(connection: &Connection, id: u64) -> rusqlite::Result<Option<Line>> {
    let sql = format!("SELECT {LINE} FROM entries WHERE id = ?1 AND gap IS NULL");
    connection
        .query_row(&sql, [column(id)], Line::read)
        .optional()
}

/// The next sequence of `stream` after the entries it has; 1 if it has none.
pub(super) fn next_sequence(connection: &Connection, stream: u64) -> rusqlite::Result<u64> {
    let sql = "SELECT coalesce(max(last), 0) + 1 FROM entries WHERE stream = ?1";
    connection.query_row(sql, [stream.cast_signed()], |row| sequence(row, 0))
}

/// Moves everything of `old` to `new`, whose sequences begin at 1. A stream's entries follow each
/// other without a hole, so one subtraction renumbers them all.
pub(super) fn move_stream(connection: &Connection, old: u64, new: u64) -> rusqlite::Result<()> {
    let sql = "WITH base(less) AS (SELECT min(first) - 1 FROM entries WHERE stream = ?1)
               UPDATE entries
               SET stream = ?2, first = first - (SELECT less FROM base), last = last - (SELECT less FROM base)
               WHERE stream = ?1";
    connection
        .execute(sql, params![old.cast_signed(), new.cast_signed()])
        .map(|_| ())
}

/// The oldest report that is, or is not, a repeat; never `newest`.
pub(super) fn oldest(
    connection: &Connection,
    repeat: bool,
    newest: u64,
) -> rusqlite::Result<Option<Line>> {
    let sql = format!(
        "SELECT {LINE} FROM entries WHERE gap IS NULL AND repeat = ?1 AND id < ?2
         ORDER BY id LIMIT 1"
    );
    connection
        .prepare_cached(&sql)?
        .query_row(params![repeat, column(newest)], Line::read)
        .optional()
}

/// Turns a report into a gap, together with the gaps on both sides of it that have the same reason and
/// lie on the same side of `reader` as it does: what was handed out already must not come back as a
/// part of something new. Returns the bytes that were freed.
pub(super) fn give_up(
    connection: &Connection,
    lost: Line,
    reason: GapReason,
    reader: u64,
) -> rusqlite::Result<u64> {
    let same_side = |gap: &Line| (gap.id <= reader) == (lost.id <= reader);
    let before = neighbour(
        connection,
        lost.stream,
        lost.first.saturating_sub(1),
        reason,
        |gap| gap.last,
    )?
    .filter(same_side);
    let after = neighbour(
        connection,
        lost.stream,
        lost.last.saturating_add(1),
        reason,
        |gap| gap.first,
    )?
    .filter(same_side);
    let merged = wire::Gap {
        stream: lost.stream,
        first: before.map_or(lost.first, |gap| gap.first),
        last: after.map_or(lost.last, |gap| gap.last),
        reason: reason.into(),
        from_ms: before.map_or(lost.from_ms, |gap| gap.from_ms),
        to_ms: after.map_or(lost.to_ms, |gap| gap.to_ms),
    };
    let mut freed = 0;
    let mut delete = connection.prepare_cached("DELETE FROM entries WHERE id = ?1")?;
    for line in [before, Some(lost), after].into_iter().flatten() {
        delete.execute([column(line.id)])?;
        freed += line.size;
    }
    insert_gap(connection, lost.id, &merged)?;
    Ok(freed.saturating_sub(ENTRY_BYTES))
}

/// The gap of `stream` that has this reason and whose `edge` is `at`.
fn neighbour(
    connection: &Connection,
    stream: u64,
    at: u64,
    reason: GapReason,
    edge: fn(&Line) -> u64,
) -> rusqlite::Result<Option<Line>> {
    // The index is by `last`: a gap that begins at `at` is the first entry that ends there or later.
    let sql = format!(
        "SELECT {LINE}, gap FROM entries WHERE stream = ?1 AND last >= ?2
         ORDER BY last LIMIT 1"
    );
    let found = connection
        .prepare_cached(&sql)?
        .query_row(params![stream.cast_signed(), column(at)], |row| {
            Ok((Line::read(row)?, row.get::<_, Option<i32>>(7)?))
        })
        .optional()?;
    let is_alike = |found: Option<i32>| found == Some(reason.into());
    Ok(found.and_then(|(line, found)| (is_alike(found) && edge(&line) == at).then_some(line)))
}

/// What a damaged database still tells of its streams, as gaps, oldest first.
///
/// It is read from both ends, from each as far as it goes: what lies between is known to have been
/// there, as a stream has no holes.
pub(super) fn remains(connection: &Connection) -> Vec<wire::Gap> {
    let mut gaps = Vec::new();
    for order in ["ASC", "DESC"] {
        let sql = format!("SELECT {LINE} FROM entries NOT INDEXED ORDER BY id {order}");
        let Ok(mut statement) = connection.prepare(&sql) else {
            continue;
        };
        let Ok(rows) = statement.query_map([], Line::read) else {
            continue;
        };
        for line in rows.map_while(Result::ok) {
            widen(&mut gaps, line);
        }
    }
    gaps.sort_by_key(|(id, _)| *id);
    gaps.into_iter().map(|(_, gap)| gap).collect()
}

fn widen(gaps: &mut Vec<(u64, wire::Gap)>, line: Line) {
    let same_stream = |(_, gap): &&mut (u64, wire::Gap)| gap.stream == line.stream;
    match gaps.iter_mut().find(same_stream) {
        Some((id, gap)) => {
            *id = line.id.min(*id);
            if line.first < gap.first {
                (gap.first, gap.from_ms) = (line.first, line.from_ms);
            }
            if line.last > gap.last {
                (gap.last, gap.to_ms) = (line.last, line.to_ms);
            }
        }
        None => {
            let gap = wire::Gap {
                stream: line.stream,
                first: line.first,
                last: line.last,
                reason: GapReason::Damaged.into(),
                from_ms: line.from_ms,
                to_ms: line.to_ms,
            };
            gaps.push((line.id, gap));
        }
    }
}
