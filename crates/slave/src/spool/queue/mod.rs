//! The spool's rules on top of the SQL: sequences and acks.

mod identity;
mod opening;
mod room;

use std::collections::BTreeMap;

use rollcall_protocol::limits::STREAMS_MAX;
use rollcall_protocol::wire::{self, GapReason};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::entries::{self, Line, Totals};
use super::states::States;
use super::{Body, Entry, Folder, SpoolError, SpoolLimits, Standing, database};
pub(crate) use identity::NewIdentity;
pub(super) use room::{GivenUp, Room};

/// An entry id that lies before all others: where a reader begins.
pub(crate) const BEFORE_ALL: u64 = 0;
/// Acked reports that may wait for the next append before they are deleted anyway.
const CLEARED_MAX: u64 = 1024;

/// What changes with a transaction; replaced as a whole once it is committed.
#[derive(Clone, Copy, Debug)]
struct State {
    stream: u64,
    next_sequence: u64,
    next_id: u64,
    /// The newest report, which is never given up; [`BEFORE_ALL`] if there is none.
    newest: u64,
    totals: Totals,
    previous: Option<States>,
}

/// The spool, without its thread.
#[derive(Debug)]
pub(super) struct Queue {
    folder: Folder,
    connection: Connection,
    limits: SpoolLimits,
    slave_id: [u8; 16],
    /// The streams that have said Hello, newest first.
    introduced: Vec<u64>,
    state: State,
    /// Acked, but not deleted yet: the highest sequence by stream.
    cleared: BTreeMap<u64, u64>,
    cleared_reports: u64,
    /// The highest id that was handed out since the reader began.
    reader: u64,
}

impl Queue {
    /// Leaves the files as they are after a sync that failed.
    pub(super) fn abandon(self, error: &rusqlite::Error) -> SpoolError {
        let kept = database::keep_log_at_close(&self.connection, true);
        if let Err(error) = kept {
            tracing::debug!(event = "spool_close_failed", error = %error, "the log of the spool is folded in at its close");
        }
        SpoolError::Sync {
            path: self.folder.database(),
            error: error.to_string(),
        }
    }

    /// The state folder.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Reports not acked, and bytes of all entries.
    pub(super) fn totals(&self) -> Totals {
        self.state.totals
    }

    /// The id of the newest report that was ever appended.
    pub(super) fn newest_id(&self) -> u64 {
        self.state.newest
    }

    /// Whether acks wait for the next append.
    pub(super) fn has_cleared(&self) -> bool {
        !self.cleared.is_empty()
    }

    /// Changes the bounds; the next append keeps them.
    pub(super) fn set_limits(&mut self, limits: SpoolLimits) {
        self.limits = limits;
    }

    /// Commits the reports under the next sequences of the stream, and what was acked before, and
    /// makes room.
    ///
    /// # Errors
    /// Nothing was stored then.
    pub(super) fn append(
        &mut self,
        reports: &[wire::Report],
        room: Room,
    ) -> rusqlite::Result<GivenUp> {
        let mut state = self.state;
        let transaction = self.begin()?;
        self.delete_cleared(&transaction)?;
        for report in reports {
            state.insert(&transaction, report)?;
        }
        let given_up = self.make_room(&transaction, &mut state, room)?;
        transaction.commit()?;
        let shrunk = given_up != GivenUp::default() || self.has_cleared();
        self.state = state;
        self.forget_cleared();
        if shrunk {
            self.give_back();
        }
        Ok(given_up)
    }

    /// All of `stream` up to `mark` is durable in the master: it will not be handed out again. It
    /// is deleted with the next append.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub(super) fn acked(&mut self, stream: u64, mark: u64) -> rusqlite::Result<()> {
        // An ack for what was never sent must not swallow what comes under that sequence later.
        let mark = if stream == self.state.stream {
            mark.min(self.state.next_sequence - 1)
        } else {
            mark
        };
        let before = self.mark(stream);
        if mark <= before {
            return Ok(());
        }
        let done = entries::totals_of(&self.connection, stream, before, mark)?;
        self.state.totals = self.state.totals.minus(done);
        self.cleared.insert(stream, mark);
        self.cleared_reports += done.reports;
        if self.cleared_reports >= CLEARED_MAX {
            self.flush()?;
        }
        Ok(())
    }

    /// Deletes what was acked.
    ///
    /// # Errors
    /// Nothing was deleted then; it is tried again with the next append.
    pub(super) fn flush(&mut self) -> rusqlite::Result<()> {
        if self.has_cleared() {
            let transaction = self.begin()?;
            self.delete_cleared(&transaction)?;
            transaction.commit()?;
            self.forget_cleared();
            self.give_back();
        }
        Ok(())
    }

    /// Up to `max` entries after `after`, in order; fewer only if there are no more.
    ///
    /// # Errors
    /// Those of SQLite. A single body that can't be read is no error but a gap.
    pub(super) fn read_after(&mut self, after: u64, max: usize) -> rusqlite::Result<Vec<Entry>> {
        let mut found = Vec::new();
        let mut from = after;
        while found.len() < max {
            let wanted = max - found.len();
            let rows = entries::read_after(&self.connection, from, wanted)?;
            let is_end = rows.len() < wanted;
            from = rows.last().map_or(from, |row| match row {
                Ok(entry) => entry.id,
                Err(line) => line.id,
            });
            found.extend(rows.into_iter().filter_map(|row| self.readable(row)));
            if is_end {
                break;
            }
        }
        self.reader = found.last().map_or(after, |entry| entry.id);
        Ok(found)
    }

    /// The newest report, if it is not acked.
    ///
    /// # Errors
    /// Those of SQLite.
    pub(super) fn newest(&mut self) -> rusqlite::Result<Option<Entry>> {
        let row = entries::newest(&self.connection)?;
        let entry = row.and_then(|row| self.readable(row));
        Ok(entry.filter(|entry| matches!(entry.body, Body::Report(_))))
    }

    /// How the spool stands. Of more streams than a Hello may name, the oldest come first.
    ///
    /// # Errors
    /// Those of SQLite.
    pub(super) fn standing(&self) -> rusqlite::Result<Standing> {
        let own = self.state.stream;
        let mut own_first = self.state.next_sequence;
        let mut pending = Vec::new();
        for found in entries::streams(&self.connection)? {
            let mark = self.mark(found.stream);
            let Some(first) = entries::first_of(&self.connection, found.stream, mark)? else {
                continue;
            };
            if found.stream == own {
                own_first = first;
            } else {
                pending.push(wire::Pending { first, ..found });
            }
        }
        pending.truncate(STREAMS_MAX - 1);
        pending.push(wire::Pending {
            stream: own,
            first: own_first,
        });
        Ok(Standing {
            slave_id: self.slave_id,
            stream: own,
            next_sequence: self.state.next_sequence,
            backlog: self.state.totals.reports,
            pending,
            previous: self.previous(),
        })
    }

    /// Gives up one report that can't be sent.
    ///
    /// # Errors
    /// Those of SQLite.
    pub(super) fn give_up(&mut self, id: u64, reason: GapReason) -> rusqlite::Result<()> {
        if let Some(line) = entries::report(&self.connection, id)? {
            let transaction = self.begin()?;
            let bytes = entries::give_up(&transaction, line, reason, self.reader)?;
            transaction.commit()?;
            let acked = line.last <= self.mark(line.stream);
            let reports = u64::from(!acked);
            self.state.totals = self.state.totals.minus(Totals { reports, bytes });
        }
        Ok(())
    }

    /// Moves what is not acked of `old` to a new stream with sequences from 1; returns the new one.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub(super) fn restream(&mut self, old: u64) -> Result<u64, RestreamError> {
        let new = random_stream()?;
        let mut state = self.state;
        let transaction = self.begin()?;
        self.delete_cleared(&transaction)?;
        entries::move_stream(&transaction, old, new)?;
        if old == state.stream {
            state.stream = new;
            state.next_sequence = entries::next_sequence(&transaction, new)?;
        }
        transaction.commit()?;
        self.state = state;
        self.forget_cleared();
        Ok(new)
    }

    /// Whether the file may not grow any more.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, full: bool) {
        let limit = if full { 1 } else { u32::MAX - 1 };
        let pragma = format!("PRAGMA max_page_count = {limit}");
        self.connection.query_row(&pragma, [], |_| Ok(())).unwrap();
    }

    fn begin(&self) -> rusqlite::Result<Transaction<'_>> {
        Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)
    }

    fn mark(&self, stream: u64) -> u64 {
        self.cleared.get(&stream).copied().unwrap_or(0)
    }

    fn delete_cleared(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        self.cleared
            .iter()
            .try_for_each(|(&stream, &mark)| entries::delete_up_to(transaction, stream, mark))
    }

    fn forget_cleared(&mut self) {
        self.cleared.clear();
        self.cleared_reports = 0;
    }

    /// Takes out what was acked; what can't be decoded becomes a gap.
    fn readable(&self, row: Result<Entry, Line>) -> Option<Entry> {
        let Entry { id, body } = row.unwrap_or_else(|line| self.damaged(line));
        let body = match body {
            Body::Report(report) => {
                (report.sequence > self.mark(report.stream)).then_some(Body::Report(report))
            }
            Body::Gap(gap) => {
                let mark = self.mark(gap.stream);
                let first = gap.first.max(mark + 1);
                (gap.last > mark).then_some(Body::Gap(wire::Gap { first, ..gap }))
            }
        };
        body.map(|body| Entry { id, body })
    }

    fn damaged(&self, line: Line) -> Entry {
        let reason = GapReason::Damaged;
        let given_up = entries::give_up(&self.connection, line, reason, self.reader);
        tracing::error!(
            event = "spool_entry_damaged",
            stream = %format_args!("{:016x}", line.stream),
            sequence = line.last,
            error = ?given_up.err(),
            "a report of the spool can't be decoded and becomes a gap"
        );
        let gap = wire::Gap {
            stream: line.stream,
            first: line.first,
            last: line.last,
            reason: reason.into(),
            from_ms: line.from_ms,
            to_ms: line.to_ms,
        };
        Entry {
            id: line.id,
            body: Body::Gap(gap),
        }
    }

    /// Not being able to shrink the file takes nothing from what is in it.
    fn give_back(&self) {
        if let Err(error) = database::give_back(&self.connection) {
            tracing::debug!(event = "spool_not_shrunk", error = %error, "can't shrink the spool");
        }
    }
}

impl State {
    fn read(connection: &Connection, stream: u64) -> rusqlite::Result<Self> {
        let newest = entries::newest(connection)?.and_then(Result::ok);
        let previous = newest.as_ref().and_then(|entry| match &entry.body {
            Body::Report(report) => Some(States::of(report)),
            Body::Gap(_) => None,
        });
        Ok(Self {
            stream,
            next_sequence: 1,
            next_id: entries::highest_id(connection)? + 1,
            newest: newest.map_or(BEFORE_ALL, |entry| entry.id),
            totals: entries::totals(connection)?,
            previous,
        })
    }

    fn insert(
        &mut self,
        transaction: &Transaction<'_>,
        report: &wire::Report,
    ) -> rusqlite::Result<()> {
        let states = States::of(report);
        let repeat = self.previous == Some(states);
        let (id, sequence) = (self.next_id, self.next_sequence);
        let size = entries::insert_report(transaction, id, self.stream, sequence, report, repeat)?;
        self.next_id += 1;
        self.next_sequence += 1;
        self.newest = id;
        self.previous = Some(states);
        self.totals.reports += 1;
        self.totals.bytes += size;
        Ok(())
    }
}

/// Why a stream could not be moved.
#[derive(Debug, thiserror::Error)]
pub(super) enum RestreamError {
    #[error(transparent)]
    Random(#[from] getrandom::Error),
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
}

fn random_stream() -> Result<u64, getrandom::Error> {
    loop {
        let stream = getrandom::u64()?;
        if stream != 0 {
            return Ok(stream);
        }
    }
}
