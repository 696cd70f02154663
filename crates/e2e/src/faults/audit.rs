//! Compares what a fleet was told is durable with what a master has stored.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use rollcall_protocol::api::{EventKind, EventRow, SlaveRow};
use rusqlite::Connection;

use super::fleet::{Fleet, Member};
use crate::api::Api;
use crate::wait::{PATIENCE, poll_until};

/// What a master that was just started has of the fleet: all that was acked, no more than was sent,
/// nothing twice.
///
/// # Errors
/// Says what is wrong.
pub fn stored(api: &Api, fleet: &Fleet) -> anyhow::Result<()> {
    let rows = api.slaves()?;
    for member in &fleet.members {
        let row = rows.iter().find(|row| row.name == member.name);
        match row {
            Some(row) => stored_row(row, member).with_context(|| format!("{row:#?} {member:?}"))?,
            None => ensure!(!member.welcomed, "LOST: {} is not known", member.name),
        }
    }
    events(&api.events()?, fleet)
}

fn stored_row(row: &SlaveRow, member: &Member) -> anyhow::Result<()> {
    let stream = format!("{:016x}", member.stream);
    ensure!(row.stream == stream, "another stream");
    ensure!(row.sequence >= member.acked, "LOST: acked and not stored");
    ensure!(row.sequence <= member.last_sent(), "INVENTED: never sent");
    ensure!(
        row.applied + row.gaps == row.sequence,
        "DOUBLED or LOST: each sequence is a report or lost in a gap, once"
    );
    Ok(())
}

/// What a master has once everything was sent again and acked: each report, once.
///
/// # Errors
/// Says what is wrong.
pub fn complete(api: &Api, fleet: &Fleet) -> anyhow::Result<()> {
    for member in fleet
        .members
        .iter()
        .filter(|member| !member.sent.is_empty())
    {
        let (reports, lost) = member.sent_by_kind();
        let wanted = (member.last_sent(), reports, lost);
        let mut last = None;
        // What readers see may be a tenth of a second old.
        let found = poll_until(PATIENCE, || {
            let row = api.slave(member.name).ok()?.row;
            let found = (row.sequence, row.applied, row.gaps);
            last = Some(row);
            (found == wanted).then_some(())
        });
        if found.is_none() {
            bail!("LOST or DOUBLED: (sequence, applied, gaps) must be {wanted:?}: {last:#?}");
        }
    }
    let all = api.events()?;
    events(&all, fleet)?;
    for member in fleet
        .members
        .iter()
        .filter(|member| !member.sent.is_empty())
    {
        let enrolled = of(&all, member, EventKind::Enrolled).count();
        ensure!(
            enrolled == 1,
            "{} was enrolled {enrolled} times",
            member.name
        );
        let (_, lost) = member.sent_by_kind();
        let gaps = of(&all, member, EventKind::Gap).count();
        let told = if lost > 0 { gaps > 0 } else { gaps == 0 };
        ensure!(
            told,
            "{} lost {lost} reports, {gaps} gaps told",
            member.name
        );
    }
    Ok(())
}

fn of<'a>(
    events: &'a [EventRow],
    member: &Member,
    kind: EventKind,
) -> impl Iterator<Item = &'a EventRow> {
    let name = member.name;
    events
        .iter()
        .filter(move |event| event.kind == kind && event.slave.as_deref() == Some(name))
}

/// The events of the reports: none is told twice, and each stream's are in order.
fn events(all: &[EventRow], fleet: &Fleet) -> anyhow::Result<()> {
    for member in &fleet.members {
        let told: Vec<u64> = of(all, member, EventKind::Check)
            .filter_map(|event| event.text.strip_prefix("report ")?.parse().ok())
            .collect();
        // A preview runs ahead of its place.
        let in_place = |replayed| {
            of(all, member, EventKind::Check)
                .filter(|event| event.replayed == replayed)
                .filter_map(|event| event.text.strip_prefix("report ")?.parse::<u64>().ok())
                .collect::<Vec<_>>()
        };
        for lane in [in_place(false), in_place(true)] {
            let ordered = lane.is_sorted_by(|one, next| one < next);
            ensure!(ordered, "DOUBLED or REORDERED: {} {lane:?}", member.name);
        }
        let mut distinct = told.clone();
        distinct.sort_unstable();
        distinct.dedup();
        ensure!(
            distinct.len() == told.len(),
            "DOUBLED: {} {told:?}",
            member.name
        );
    }
    let ids = all.iter().map(|event| event.id);
    ensure!(ids.is_sorted_by(|one, next| one < next), "ids of events");
    Ok(())
}

/// The database of a master or a slave that does not run, as SQLite itself judges it.
///
/// # Errors
/// Says what is wrong.
pub fn integrity(database: &Path) -> anyhow::Result<()> {
    let connection = Connection::open(database)?;
    let verdict: String =
        connection.pragma_query_value(None, "integrity_check", |row| row.get(0))?;
    ensure!(verdict == "ok", "{}: {verdict}", database.display());
    Ok(())
}
