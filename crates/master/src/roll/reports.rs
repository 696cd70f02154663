//! Reports, gaps and goodbyes: each sequence is applied once, in its place.

use rollcall_protocol::api::EventKind;
use rollcall_protocol::ledger::Admission;
use rollcall_protocol::session::Refusal;
use rollcall_protocol::wire::{
    ErrorCode, Gap, GapReason, GoodbyeReason, Mark, Report, SlaveGoodbye,
};

use super::changes::{self, Before};
use super::gathering::Change;
use super::record::{self, CatchingUp};
use super::spans;
use super::{Roll, Slot, Stamp};

/// What became of a report or a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It was applied.
    Applied,
    /// It had been applied before.
    Duplicate,
    /// It ran ahead of the backlog: the roll shows it, and it comes again in its place.
    Previewed,
}

impl Roll {
    /// A report of the slave was read at `stamp`; `payload` is the message as it came.
    ///
    /// # Errors
    /// A [`Refusal`] if sequences before it are missing and no gap explains them.
    pub(crate) fn handle_report(
        &mut self,
        slot: Slot,
        report: Report,
        payload: &[u8],
        stamp: Stamp,
    ) -> Result<Taken, Refusal> {
        if report.preview {
            return Ok(self.preview(slot, report, payload, stamp));
        }
        let slave = &mut self.slaves[slot];
        let live = report.live;
        match slave.ledger.admit(report.stream, report.sequence) {
            Admission::Ahead { expected } => return Err(hole(report.sequence, expected)),
            Admission::Duplicate => {
                slave.shown_mut().duplicates += 1;
                self.gathering.touch(slave, slot);
                if live {
                    self.hear_again(slot, stamp);
                }
                return Ok(Taken::Duplicate);
            }
            Admission::Apply => {}
        }
        slave.advance(report.stream);
        slave.shown_mut().applied += 1;
        self.gathering.message(slave, stamp, payload, "");
        let may_repeat = slave.was_previewed(&report);
        let group = self.gathering.group();
        self.rings
            .remember(slot, &report, payload, group, may_repeat);
        if live {
            if may_repeat {
                self.fill_history(slot, report.clone(), stamp);
            }
            self.show(slot, report, stamp, false);
        } else {
            self.fill_history(slot, report, stamp);
        }
        let slave = &mut self.slaves[slot];
        self.gathering.touch(slave, slot);
        Ok(Taken::Applied)
    }

    /// A loss receipt of the slave was read at `stamp`.
    ///
    /// # Errors
    /// A [`Refusal`] if sequences before it are missing.
    pub(crate) fn handle_gap(
        &mut self,
        slot: Slot,
        gap: &Gap,
        payload: &[u8],
        stamp: Stamp,
    ) -> Result<Taken, Refusal> {
        let slave = &mut self.slaves[slot];
        let before = slave.ledger.mark(gap.stream).unwrap_or(0);
        match slave.ledger.admit_range(gap.stream, gap.first, gap.last) {
            Admission::Ahead { expected } => return Err(hole(gap.first, expected)),
            Admission::Duplicate => return Ok(Taken::Duplicate),
            Admission::Apply => {}
        }
        let lost = gap.last - before.max(gap.first - 1);
        slave.advance(gap.stream);
        slave.shown_mut().gaps += lost;
        self.gathering.message(slave, stamp, payload, "");
        self.gathering
            .event(slave, stamp, gap_change(gap, lost, stamp));
        self.gathering.touch(slave, slot);
        Ok(Taken::Applied)
    }

    /// The slave leaves on purpose, or is restarted: it can't know which.
    pub(crate) fn handle_goodbye(
        &mut self,
        slot: Slot,
        goodbye: &SlaveGoodbye,
        payload: &[u8],
        stamp: Stamp,
    ) {
        self.gathering
            .message(&self.slaves[slot], stamp, payload, "");
        let back_ms = match goodbye.reason() {
            GoodbyeReason::Stop => 0,
            GoodbyeReason::Restart => goodbye.back_ms,
        };
        self.leave(slot, back_ms, stamp);
    }

    /// A live report that runs ahead of its place.
    fn preview(&mut self, slot: Slot, report: Report, payload: &[u8], stamp: Stamp) -> Taken {
        let slave = &mut self.slaves[slot];
        if slave.ledger.mark(report.stream) >= Some(report.sequence) {
            slave.shown_mut().duplicates += 1;
            self.hear_again(slot, stamp);
            return Taken::Duplicate;
        }
        self.gathering.message(slave, stamp, payload, "");
        let group = self.gathering.group();
        self.rings.remember(slot, &report, payload, group, true);
        self.show(slot, report, stamp, true);
        let slave = &mut self.slaves[slot];
        self.gathering.touch(slave, slot);
        Taken::Previewed
    }

    /// A live report becomes what the roll shows.
    fn show(&mut self, slot: Slot, report: Report, stamp: Stamp, ahead: bool) {
        self.heard(slot, stamp);
        let slave = &mut self.slaves[slot];
        let before = Before {
            health: slave.shown.health,
            status: &slave.shown.status,
        };
        let health = slave.shown.health;
        if !self.gathering.is_replaying() {
            let changes = changes::between(&before, &report, stamp.wall_ms, false);
            for change in changes {
                self.gathering.event(slave, stamp, change);
            }
        }
        slave.set_newest(report, ahead);
        if slave.shown.health != health {
            slave.shown_mut().since_ms = stamp.wall_ms;
        }
    }

    /// A report from the backlog changes nothing that the roll shows, raises no alert, and revives
    /// nobody.
    fn fill_history(&mut self, slot: Slot, report: Report, stamp: Stamp) {
        let slave = &mut self.slaves[slot];
        let mark = Mark {
            stream: report.stream,
            sequence: report.sequence,
        };
        let behind = slave.catching_up.get_or_insert_with(|| {
            Box::new(CatchingUp {
                status: Some((*slave.shown.status).clone()),
                health: None,
                previewed: Vec::new(),
                shown: None,
                shown_health: None,
            })
        });
        let told = behind
            .previewed
            .iter()
            .position(|previewed| *previewed == mark);
        let status = behind.status.take().unwrap_or_default();
        let before = Before {
            health: behind.health.map(record::health).or(slave.shown.health),
            status: &status,
        };
        let mut changes = changes::between(&before, &report, report.time_ms, true);
        if let Some(told) = told {
            // It was told against what the roll showed then, which is not its predecessor.
            let shown = behind.shown.take().unwrap_or_default();
            let before = Before {
                health: behind.shown_health.map(record::health),
                status: &shown,
            };
            let known = changes::between(&before, &report, report.time_ms, false);
            changes.retain(|change| {
                let is_it =
                    |known: &Change| known.subject == change.subject && known.to == change.to;
                !known.iter().any(is_it)
            });
            behind.previewed.drain(..=told);
            behind.shown.clone_from(&report.status);
            behind.shown_health = Some(report.health);
        }
        behind.health = Some(report.health);
        behind.status = report.status;
        if slave.newest == Some(mark) {
            slave.catching_up = None;
        }
        for change in changes {
            self.gathering.event(slave, stamp, change);
        }
    }

    /// A live report that had been applied: its ack was lost, and the slave is there.
    fn hear_again(&mut self, slot: Slot, stamp: Stamp) {
        let before = self.slaves[slot].shown.presence;
        self.heard(slot, stamp);
        if self.slaves[slot].shown.presence != before {
            self.record_presence(slot);
        }
    }
}

fn hole(sequence: u64, expected: u64) -> Refusal {
    let text =
        format!("sequence {sequence} came where {expected} was expected, and no Gap explains it");
    Refusal::for_now(ErrorCode::Hole, text, std::time::Duration::ZERO)
}

/// "gap: 12 reports, 12:00-12:40, spool full", in its place in the past.
fn gap_change(gap: &Gap, lost: u64, stamp: Stamp) -> Change {
    let times = (gap.from_ms > 0).then(|| (gap.from_ms, gap.to_ms.max(gap.from_ms)));
    let reports = if lost == 1 { "report" } else { "reports" };
    let mut text = format!("gap: {lost} {reports}, ");
    if let Some(range) = times.and_then(|(from_ms, to_ms)| spans::clock_range(from_ms, to_ms)) {
        text.push_str(&range);
        text.push_str(", ");
    }
    text.push_str(gap_reason(gap.reason()));
    Change {
        kind: EventKind::Gap,
        subject: None,
        from: times.and_then(|(from_ms, _)| spans::rfc3339(from_ms)),
        to: times.and_then(|(_, to_ms)| spans::rfc3339(to_ms)),
        text,
        time_ms: times.map_or(stamp.wall_ms, |(from_ms, _)| from_ms),
        replayed: true,
    }
}

fn gap_reason(reason: GapReason) -> &'static str {
    match reason {
        GapReason::Unknown => "for a reason that this master does not know",
        GapReason::SpoolFull => "spool full",
        GapReason::Expired => "expired in the spool",
        GapReason::Damaged => "spool damaged",
        GapReason::AckedBefore => "acked before, by a master with another state",
    }
}
