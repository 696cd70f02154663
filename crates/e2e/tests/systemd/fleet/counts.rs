//! What each slave made and had acked, against what the master has of it.

use rollcall_e2e::bench::LedgerLine;
use rollcall_e2e::peer::Identity;
use rollcall_protocol::api::{EventKind, EventRow, SlaveRow};

/// Sums over all slaves, witnesses included.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    slaves: u64,
    acked: u64,
    /// Acked and not applied, or never acked at all.
    pub(crate) lost: u64,
    /// Applied more often than sent.
    doubled: u64,
    reconnects: u64,
    gaps: u64,
    /// Read again by a successor, found out and not applied.
    found_to_be_duplicates: u64,
    presence_events: u64,
    /// Other events than presence and starts of the master.
    alerts: u64,
    master_starts: u64,
    /// The first of what is not as it should be.
    faults: Vec<String>,
}

/// One slave's own account.
struct Account<'a> {
    name: &'a str,
    sent: u64,
    acked: u64,
}

impl Counts {
    /// `before` are the events when all were connected, `after` those at the end.
    pub(crate) fn of(
        fleet: &[LedgerLine],
        witnesses: &[Identity],
        roll: &[SlaveRow],
        before: &[EventRow],
        after: &[EventRow],
    ) -> Self {
        let fleet = fleet.iter().map(|line| Account {
            name: &line.name,
            sent: line.sent,
            acked: line.distinct_reports_acked,
        });
        let witnesses = witnesses.iter().map(|identity| Account {
            name: &identity.name,
            sent: identity.next - 1,
            acked: identity.unacked - 1,
        });
        let mut counts = Self::default();
        for account in fleet.chain(witnesses) {
            let row = roll.iter().find(|row| row.name == account.name);
            counts.add(&account, row);
        }
        let known = before.last().map_or(0, |event| event.id);
        for event in after.iter().filter(|event| event.id > known) {
            counts.add_event(event);
        }
        counts
    }

    fn add(&mut self, account: &Account<'_>, row: Option<&SlaveRow>) {
        self.slaves += 1;
        self.acked += account.acked;
        let Some(row) = row else {
            self.lost += account.acked;
            self.fault(format!("{} is not on the roll", account.name));
            return;
        };
        let lost = account.sent - account.acked.min(row.applied);
        let doubled = row.applied.saturating_sub(account.sent);
        self.lost += lost;
        self.doubled += doubled;
        self.reconnects += row.reconnects;
        self.gaps += row.gaps;
        self.found_to_be_duplicates += row.duplicates;
        if lost + doubled + row.reconnects + row.gaps > 0 {
            self.fault(format!(
                "{} sent, {} acked: {row:?}",
                account.sent, account.acked
            ));
        }
    }

    fn add_event(&mut self, event: &EventRow) {
        match event.kind {
            EventKind::MasterStart => {
                self.master_starts += 1;
                return;
            }
            EventKind::Presence => self.presence_events += 1,
            _ => self.alerts += 1,
        }
        self.fault(format!("{event:?}"));
    }

    fn fault(&mut self, text: String) {
        if self.faults.len() < 10 {
            self.faults.push(text);
        }
    }

    #[track_caller]
    pub(crate) fn assert_exact(&self) {
        let wrong = [
            self.lost,
            self.doubled,
            self.reconnects,
            self.gaps,
            self.presence_events,
            self.alerts,
        ];
        assert_eq!(wrong, [0; 6], "{self:#?}");
    }
}
