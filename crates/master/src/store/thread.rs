//! The store's thread: one group, one transaction, one outcome.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::Moment;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use tokio::sync::mpsc;

use super::checksum::{self, SlaveColumns};
use super::events::{self, Bounds};
use super::fault::{self, Fault};
use super::files;
use super::load;
use super::rows::State;
use super::schema::{self, Database};
use super::{Group, Outcome, Retention, StoreError};

/// The pause before the first retry of a group; it doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(250);
/// The longest pause between two tries.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How often old events are looked for, when the last look found few.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Pages in the write-ahead log from which on it is folded into the database.
const CHECKPOINT_PAGES: i64 = 1000;
/// The pause after a checkpoint that did not work out.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(1);

/// Whether the thread goes on to the next group.
enum Next {
    Group,
    End,
    /// Nothing more may be written or synced.
    Abandon,
}

/// The thread's state.
#[derive(Debug)]
pub(super) struct Writer {
    database: Database,
    retention: Retention,
    sweep_at: Moment,
    checkpoint_at: Moment,
    groups: Receiver<Group>,
    outcomes: mpsc::Sender<Outcome>,
}

impl Writer {
    pub(super) fn new(
        database: Database,
        retention: Retention,
        groups: Receiver<Group>,
        outcomes: mpsc::Sender<Outcome>,
    ) -> Self {
        Self {
            database,
            retention,
            sweep_at: Moment::ZERO,
            checkpoint_at: Moment::ZERO,
            groups,
            outcomes,
        }
    }

    /// Commits groups until the handle is dropped or the disk fails.
    pub(super) fn run(mut self) {
        while let Ok(group) = self.groups.recv() {
            // What was committed is told before the log is folded in: its ack need not wait.
            let next = match self.persist(&group) {
                Next::Group => self.checkpoint(),
                next => next,
            };
            match next {
                Next::Group => {}
                Next::End => break,
                Next::Abandon => return self.abandon(),
            }
        }
        if let Err(error) = load::set_open(&self.database.connection, false) {
            tracing::warn!(event = "store_close_failed", error = %error, "the end of the run could not be noted");
            if fault::is_sync_failure(&error) {
                return self.abandon();
            }
        }
        // The last connection to close folds the log into the database; the next start would do it, too.
        if let Err((_still_open, error)) = self.database.connection.close() {
            tracing::warn!(event = "store_close_failed", error = %error, "the database was not closed cleanly");
        }
    }

    /// Works on one group until it is on disk, or the handle is dropped, or there is no hope.
    fn persist(&mut self, group: &Group) -> Next {
        let mut degraded: Option<String> = None;
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let error = match self.attempt(group, degraded.is_some()) {
                Ok(took) => return self.committed(group, took, degraded.is_some()),
                Err(error) => error,
            };
            match fault::classify(&error, &self.database.path) {
                Fault::Passing { reason, errno } => {
                    if degraded.as_ref() != Some(&reason) {
                        self.degraded(&reason, errno, &error);
                        degraded = Some(reason);
                    }
                }
                fault @ (Fault::Damaged | Fault::Final) => {
                    return self.failed(fault == Fault::Damaged, error);
                }
            }
            match self.groups.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(RETRY_PAUSE_MAX),
                Err(RecvTimeoutError::Disconnected) => {
                    tracing::warn!(
                        event = "store_group_dropped",
                        group = group.id,
                        "the daemon ends while the store is degraded: the last group was not stored and not acked"
                    );
                    return Next::End;
                }
                Ok(second) => {
                    return self.fail(StoreError::TwoGroups {
                        first: group.id,
                        second: second.id,
                    });
                }
            }
        }
    }

    /// One transaction. On an error nothing of the group is on disk, with one exception that a
    /// retry asks for: the error came after the commit had become durable.
    fn attempt(&mut self, group: &Group, retry: bool) -> rusqlite::Result<Duration> {
        let begun = clock::boot();
        let sweep = begun >= self.sweep_at;
        let transaction = self
            .database
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        if retry && is_committed(&transaction, group)? {
            return Ok(clock::boot().saturating_since(begun));
        }
        write(&transaction, group)?;
        let mut sweep_again = false;
        if sweep {
            let keep_ms = i64::try_from(self.retention.keep.as_millis()).unwrap_or(i64::MAX);
            let bounds = Bounds {
                before_ms: clock::wall_ms().saturating_sub(keep_ms),
                bytes_max: self.retention.bytes_max,
            };
            sweep_again = events::sweep(&transaction, bounds, group.events.len())?;
        }
        transaction.commit()?;
        if sweep && !sweep_again {
            self.sweep_at = begun + SWEEP_EVERY;
        }
        Ok(clock::boot().saturating_since(begun))
    }

    /// Folds the log into the database once it is long. Whatever fails here, the log still has it; but
    /// after a failed fsync nobody knows what of the database is on disk, so the log must not be cut.
    fn checkpoint(&mut self) -> Next {
        let now = clock::boot();
        if now < self.checkpoint_at {
            return Next::Group;
        }
        let error = match fold_log(&self.database.connection) {
            Ok(()) => return Next::Group,
            Err(error) => error,
        };
        self.checkpoint_at = now + CHECKPOINT_PAUSE;
        match fault::classify(&error, &self.database.path) {
            Fault::Passing { reason, errno } => {
                tracing::debug!(
                    event = "store_checkpoint_failed",
                    reason,
                    errno,
                    error = %error,
                    "the log of the database could not be folded in and grows"
                );
                Next::Group
            }
            fault @ (Fault::Damaged | Fault::Final) => self.failed(fault == Fault::Damaged, error),
        }
    }

    fn committed(&self, group: &Group, took: Duration, was_degraded: bool) -> Next {
        if was_degraded {
            tracing::info!(
                event = "store_recovered",
                group = group.id,
                "the store writes again"
            );
        }
        self.send(Outcome::Committed {
            id: group.id,
            took,
            bytes: u64::try_from(group.redo.len()).unwrap_or(u64::MAX),
        })
    }

    fn degraded(&self, reason: &str, errno: Option<i32>, error: &rusqlite::Error) {
        tracing::warn!(
            event = "store_degraded",
            reason,
            errno,
            error = %error,
            "the store cannot write: nothing is acked until it can"
        );
        self.send(Outcome::Degraded {
            reason: reason.to_owned(),
        });
    }

    fn failed(&self, damaged: bool, source: rusqlite::Error) -> Next {
        if damaged {
            files::mark_suspect(&self.database.path);
        }
        let error = self.database.fault("write", source);
        self.fail(error)
    }

    fn fail(&self, error: StoreError) -> Next {
        tracing::error!(event = "store_failed", error = %error, "the store gives up");
        self.send(Outcome::Failed { error });
        Next::Abandon
    }

    /// Leaves the files as they are: after a failed fsync the next one would say yes to what the kernel
    /// has dropped.
    fn abandon(self) {
        let kept = schema::keep_log_at_close(&self.database.connection, true);
        if let Err(error) = kept {
            tracing::warn!(event = "store_close_failed", error = %error, "the log of the database is folded in at its close");
        }
    }

    /// Ends the thread if nobody listens any more.
    fn send(&self, outcome: Outcome) -> Next {
        match self.outcomes.blocking_send(outcome) {
            Ok(()) => Next::Group,
            Err(_nobody) => Next::End,
        }
    }
}

fn is_committed(connection: &Connection, group: &Group) -> rusqlite::Result<bool> {
    let next: i64 = connection.query_row("SELECT next_group FROM state", [], |row| row.get(0))?;
    Ok(next > as_i64(group.id)?)
}

/// The whole group, inside the caller's transaction.
pub(super) fn write(transaction: &Transaction<'_>, group: &Group) -> rusqlite::Result<()> {
    let id = as_i64(group.id)?;
    if !group.redo.is_empty() {
        transaction
            .prepare_cached("INSERT INTO redo (group_id, reports, checksum) VALUES (?1, ?2, ?3)")?
            .execute(params![id, group.redo, checksum::of_redo(id, &group.redo)])?;
    }
    for record in &group.records {
        let columns = SlaveColumns {
            id: &record.id,
            name: &record.name,
            presence: record.presence,
            health: record.health,
            last_seen_ms: record.last_seen_ms,
            record: &record.blob,
        };
        transaction
            .prepare_cached(
                "INSERT INTO slaves (id, name, presence, health, last_seen_ms, record, checksum)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (id) DO UPDATE SET name = ?2, presence = ?3, health = ?4, last_seen_ms = ?5, record = ?6, checksum = ?7",
            )?
            .execute(params![
                record.id,
                record.name,
                record.presence,
                record.health,
                record.last_seen_ms,
                record.blob,
                columns.checksum()
            ])?;
    }
    for slave in &group.forgotten {
        transaction
            .prepare_cached("DELETE FROM slaves WHERE id = ?1")?
            .execute([slave])?;
    }
    if let Some(below) = group.forget_redo_below {
        transaction
            .prepare_cached("DELETE FROM redo WHERE group_id < ?1")?
            .execute([as_i64(below)?])?;
    }
    let newest_event = events::insert(transaction, &group.events)?;
    let state = State::read(transaction)?;
    State {
        listening_at_ms: Some(group.listening_at_ms),
        next_group: id.saturating_add(1),
        next_event: state.next_event.max(newest_event.saturating_add(1)),
        is_open: true,
        ..state
    }
    .write(transaction)
}

fn fold_log(connection: &Connection) -> rusqlite::Result<()> {
    // The answer: whether it was busy, the pages in the log, and those of them that are folded in.
    let pages: i64 = connection
        .prepare_cached("PRAGMA wal_checkpoint(NOOP)")?
        .query_row([], |row| row.get(1))?;
    if pages < CHECKPOINT_PAGES {
        return Ok(());
    }
    connection
        .prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?
        .query_row([], |_folded| Ok(()))
}

fn as_i64(id: u64) -> rusqlite::Result<i64> {
    i64::try_from(id).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    #[test]
    fn a_retry_of_a_group_that_had_become_durable_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let database = schema::open(&folder.path().join("master.db")).unwrap();
        let (_groups, groups_in) = std::sync::mpsc::sync_channel(1);
        let (outcomes, _outcomes_in) = mpsc::channel(1);
        let mut writer = Writer::new(
            database,
            Retention {
                keep: Duration::MAX,
                bytes_max: u64::MAX,
            },
            groups_in,
            outcomes,
        );
        let group = Group {
            id: 4,
            redo: vec![1],
            ..Group::default()
        };
        writer.attempt(&group, false).unwrap();
        writer.attempt(&group, true).unwrap();
        // Without the question a second write of the group is an error, not a second row.
        writer.attempt(&group, false).unwrap_err();
        let next = Group {
            id: 5,
            redo: vec![1],
            ..Group::default()
        };
        writer.attempt(&next, true).unwrap();
        let rows: i64 = writer
            .database
            .connection
            .query_row("SELECT count(*) FROM redo", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 2);
    }
}
