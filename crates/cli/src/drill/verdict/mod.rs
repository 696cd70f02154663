//! What a drill has found out. JSON has it as it stands here; `words` has it for people.

mod words;

use std::collections::BTreeSet;
use std::time::Duration;

use rollcall_protocol::api::SlaveRow;
use serde::Serialize;

pub(super) use self::words::grouped;
use super::stored::{self, History, Stored};
use super::witness::{Blow, Seen, SlaveId, Witness};

/// Cases of one kind that are named at most.
const EXAMPLES_MAX: usize = 3;

/// Restarts of one kind of daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Restarts {
    /// With SIGKILL.
    pub(super) killed: u64,
    /// With SIGTERM.
    pub(super) planned: u64,
}

/// Of both kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct AllRestarts {
    /// Of the master.
    pub(super) master: Restarts,
    /// Of all slaves together.
    pub(super) slaves: Restarts,
}

/// How long slaves went without an ack once the master had been ended, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Blackouts {
    /// How many were measured: one a slave and a time that the master was ended.
    pub(super) count: u64,
    /// Half of them were shorter. Absent if none was measured.
    pub(super) p50: Option<u64>,
    /// None was longer.
    pub(super) max: Option<u64>,
}

/// Of both kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct AllBlackouts {
    /// After SIGKILL.
    pub(super) killed: Blackouts,
    /// After SIGTERM.
    pub(super) planned: Blackouts,
}

/// Changes of a check's state that must be in the history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Changes {
    /// As the stored reports tell.
    pub(super) made: u64,
    /// Not in the history.
    pub(super) missing: u64,
    /// More than once in the history.
    pub(super) doubled: u64,
}

/// Slaves that were called late or missing, which no slave was long enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct FalseAlarms {
    /// Late.
    pub(super) late: u64,
    /// Missing.
    pub(super) missing: u64,
}

/// The result of a drill. The keys in JSON stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Verdict {
    /// Whether everything is as promised.
    pub(super) passed: bool,
    /// The version of the programs.
    pub(super) version: &'static str,
    /// The seed of what was ended when.
    pub(super) seed: u64,
    /// Number of slaves.
    pub(super) slaves: u64,
    /// How long daemons were ended and started, in milliseconds.
    pub(super) load_ms: u64,
    /// A signal ended the drill before its time.
    pub(super) interrupted: bool,
    /// Whether every spool was empty and every report acked at the end.
    pub(super) settled: bool,
    /// Reports seen in a spool or on the wire, each once.
    pub(super) sent: u64,
    /// Those that were acked on the wire.
    pub(super) acked: u64,
    /// Those that are in the master's database.
    pub(super) stored: u64,
    /// Those that are not.
    pub(super) lost: u64,
    /// Applied more than once.
    pub(super) doubled: u64,
    /// Applied after a later one of the same slave.
    pub(super) reordered: u64,
    /// Stored with another content than sent, or sent with two contents.
    pub(super) altered: u64,
    /// Acked, and not on disk when the master was down.
    pub(super) acked_unstored: u64,
    /// Acks of what was never sent.
    pub(super) baseless_acks: u64,
    /// Neither acked nor in the spool when their slave was down.
    pub(super) unspooled: u64,
    /// Slaves whose row on the roll does not count what is stored of them.
    pub(super) rows_wrong: u64,
    /// Sent again, and rightly not applied again.
    pub(super) resent: u64,
    /// Changes in the history.
    pub(super) changes: Changes,
    /// Changes of presence that should not be.
    pub(super) false_alarms: FalseAlarms,
    /// How often daemons were ended and started.
    pub(super) restarts: AllRestarts,
    /// Time without acks.
    pub(super) blackout_ms: AllBlackouts,
    /// What went wrong besides, in words.
    pub(super) faults: Vec<String>,
}

/// All that a verdict is made from.
pub(super) struct Findings<'a> {
    pub(super) witness: &'a Witness,
    pub(super) stored: &'a Stored,
    pub(super) history: &'a History,
    pub(super) rows: &'a [SlaveRow],
    pub(super) restarts: AllRestarts,
    pub(super) faults: &'a [String],
    pub(super) seed: u64,
    pub(super) slaves: u64,
    pub(super) load: Duration,
    pub(super) interrupted: bool,
    pub(super) settled: bool,
}

impl Verdict {
    /// Compares what was seen with what is stored and shown.
    pub(super) fn new(findings: &Findings<'_>) -> Self {
        let Findings {
            witness, stored, ..
        } = findings;
        let (changes, untold) = changes(findings);
        let mut verdict = Self {
            passed: false,
            version: env!("CARGO_PKG_VERSION"),
            seed: findings.seed,
            slaves: findings.slaves,
            load_ms: millis(findings.load),
            interrupted: findings.interrupted,
            settled: findings.settled,
            sent: witness.sent(),
            acked: witness.acked(),
            stored: stored.count(),
            lost: 0,
            doubled: number(stored.doubled.len()),
            reordered: number(stored.reordered.len()),
            altered: 0,
            acked_unstored: number(stored.acked_unstored.len()),
            baseless_acks: witness.baseless_acks,
            unspooled: number(witness.unspooled.len()),
            rows_wrong: number(wrong_rows(findings.rows, stored).len()),
            resent: witness.resent,
            changes,
            false_alarms: false_alarms(findings.history),
            restarts: findings.restarts,
            blackout_ms: AllBlackouts {
                killed: blackouts(witness, Blow::Killed),
                planned: blackouts(witness, Blow::Planned),
            },
            faults: findings.faults.to_vec(),
        };
        verdict.faults.extend(untold);
        let mut altered = witness.altered.clone();
        for (stream, seen) in &witness.streams {
            let there = stored.streams.get(stream);
            for (at, content) in &seen.reports {
                match there.and_then(|there| there.reports.get(at)) {
                    None => {
                        verdict.lost += 1;
                        if verdict.lost <= number(EXAMPLES_MAX) {
                            verdict.faults.push(lost(*stream, *at, seen));
                        }
                    }
                    Some(found) if found != content => {
                        altered.insert((*stream, *at));
                    }
                    Some(_) => {}
                }
            }
        }
        verdict.altered = number(altered.len());
        for (slave, state, text) in &findings.history.alarms {
            verdict
                .faults
                .push(format!("{slave} was called {state}: {text}"));
        }
        verdict.passed = verdict.is_as_promised();
        verdict
    }

    fn is_as_promised(&self) -> bool {
        let none = [
            self.lost,
            self.doubled,
            self.reordered,
            self.altered,
            self.acked_unstored,
            self.baseless_acks,
            self.unspooled,
            self.rows_wrong,
            self.changes.missing,
            self.changes.doubled,
            self.false_alarms.late,
            self.false_alarms.missing,
        ];
        let all = self.sent > 0 && self.acked == self.sent && self.stored == self.sent;
        self.settled && all && self.faults.is_empty() && none.iter().all(|count| *count == 0)
    }
}

/// The slaves whose row does not count what is stored of them. What readers see is a moment old.
pub(super) fn wrong_rows(rows: &[SlaveRow], stored: &Stored) -> BTreeSet<SlaveId> {
    let is_right = |(id, slave): &(&SlaveId, &stored::Slave)| {
        let row = rows.iter().find(|row| row.id == hex(id));
        row.is_some_and(|row| {
            let stream = u64::from_str_radix(&row.stream, 16).ok();
            let newest = stream.and_then(|stream| stored.streams.get(&stream));
            row.applied == slave.applied
                && row.gaps == slave.given_up
                && row.sequence == newest.map_or(0, |newest| newest.highest)
        })
    };
    let wrong = stored.slaves.iter().filter(|pair| !is_right(pair));
    wrong.map(|(id, _)| *id).collect()
}

/// The changes, and in words which ones are not in the history.
fn changes(findings: &Findings<'_>) -> (Changes, Vec<String>) {
    let mut changes = Changes::default();
    let mut untold = Vec::new();
    for (name, id) in &findings.witness.names {
        let Some(slave) = findings.stored.slaves.get(id) else {
            continue;
        };
        for text in &slave.changes {
            changes.made += 1;
            if !findings
                .history
                .told
                .contains(&(name.clone(), text.clone()))
            {
                changes.missing += 1;
                untold.push(format!("the history does not tell \"{text}\" of {name}"));
            }
        }
    }
    let told = findings.history.changes.values();
    changes.doubled = told.map(|times| u64::from(times.saturating_sub(1))).sum();
    untold.truncate(EXAMPLES_MAX);
    (changes, untold)
}

fn false_alarms(history: &History) -> FalseAlarms {
    let count = |wanted: &str| {
        let alarms = history.alarms.iter();
        number(alarms.filter(|(_, state, _)| state == wanted).count())
    };
    FalseAlarms {
        late: count("late"),
        missing: count("missing"),
    }
}

fn lost(stream: u64, sequence: u64, seen: &Seen) -> String {
    let acked = if sequence <= seen.acked {
        "was acked"
    } else {
        "was not acked"
    };
    format!(
        "report {sequence} of the stream {stream:016x} of slave {} is not stored; it {acked}",
        hex(&seen.slave)
    )
}

fn blackouts(witness: &Witness, blow: Blow) -> Blackouts {
    let of_this_kind = |&&(kind, _): &&(Blow, Duration)| kind == blow;
    let all = witness.blackouts.iter().filter(of_this_kind);
    let mut lengths: Vec<_> = all.map(|(_, length)| millis(*length)).collect();
    lengths.sort_unstable();
    Blackouts {
        count: number(lengths.len()),
        p50: lengths.get(lengths.len() / 2).copied(),
        max: lengths.last().copied(),
    }
}

fn hex(id: &SlaveId) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

pub(super) fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
