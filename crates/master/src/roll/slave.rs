//! One slave on the roll.

use std::collections::BTreeMap;
use std::sync::Arc;

use rollcall_protocol::Moment;
use rollcall_protocol::api::{Health, Presence, SlaveRow};
use rollcall_protocol::ledger::Ledger;
use rollcall_protocol::limits::ID_BYTES;
use rollcall_protocol::wire::{Hello, Mark, Report, Status};

use super::record::{self, CatchingUp, Newest, SlaveRecord, StoredPresence};
use crate::view::SlaveView;

/// A slave's identity.
pub(crate) type SlaveId = [u8; ID_BYTES];

/// Names one connection for as long as the process lives.
pub(crate) type SessionId = u64;

/// Most live reports that may run ahead of one slave's backlog and be remembered as told.
const PREVIEWED_MAX: usize = 4096;

/// The present state of one slave. What [`Self::to_record`] leaves out is of this process only.
#[derive(Debug)]
pub(crate) struct Slave {
    pub(crate) id: SlaveId,
    pub(crate) name: String,
    pub(crate) presence: Presence,
    pub(crate) health: Option<Health>,
    /// Since when presence and health are what they are.
    pub(crate) since_ms: i64,
    pub(crate) last_seen_ms: Option<i64>,
    pub(crate) interval_ms: u32,
    pub(crate) stream: u64,
    pub(crate) ledger: Ledger,
    pub(crate) applied: u64,
    pub(crate) duplicates: u64,
    pub(crate) gaps: u64,
    pub(crate) clock_offset_ms: Option<i64>,
    pub(crate) mode: i32,
    pub(crate) peer: Option<String>,
    /// Sessions opened since it was enrolled.
    pub(crate) connects: u64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) agent_version: String,
    pub(crate) newest: Option<Mark>,
    pub(crate) report_time_ms: Option<i64>,
    pub(crate) status: Arc<Status>,
    pub(crate) catching_up: Option<Box<CatchingUp>>,

    /// The last group that its record on disk contains.
    pub(crate) record_group: u64,
    /// When it was heard last: its deadlines count from here.
    pub(crate) read_at: Moment,
    /// The connection that holds its id, and since when.
    pub(crate) session: Option<(SessionId, i64)>,
    /// When a conflict about it was told last.
    pub(crate) conflict_told: Option<Moment>,
    /// Whether it has changed since its record, and since its view, was last made.
    pub(crate) record_is_old: bool,
    pub(crate) view_is_old: bool,
    pub(crate) view: Option<Arc<SlaveView>>,
}

impl Slave {
    /// A slave that has just said Hello for the first time.
    pub(crate) fn new(id: SlaveId, wall_ms: i64) -> Self {
        Self {
            id,
            name: String::new(),
            presence: Presence::Expected,
            health: None,
            since_ms: wall_ms,
            last_seen_ms: None,
            interval_ms: 0,
            stream: 0,
            ledger: Ledger::default(),
            applied: 0,
            duplicates: 0,
            gaps: 0,
            clock_offset_ms: None,
            mode: 0,
            peer: None,
            connects: 0,
            labels: BTreeMap::new(),
            agent_version: String::new(),
            newest: None,
            report_time_ms: None,
            status: Arc::default(),
            catching_up: None,
            record_group: 0,
            read_at: Moment::ZERO,
            session: None,
            conflict_told: None,
            record_is_old: true,
            view_is_old: true,
            view: None,
        }
    }

    /// What its record says.
    pub(crate) fn from_record(id: SlaveId, record: SlaveRecord) -> Self {
        let newest = record.newest.unwrap_or_default();
        let has_newest = newest.sequence > 0;
        Self {
            name: record.name,
            presence: StoredPresence::try_from(record.presence)
                .unwrap_or(StoredPresence::Expected)
                .into(),
            health: record.health.map(record::health),
            last_seen_ms: record.last_seen_ms,
            interval_ms: record.interval_ms,
            stream: record.stream,
            ledger: Ledger::from_marks(record.marks),
            applied: record.applied,
            duplicates: record.duplicates,
            gaps: record.gaps,
            clock_offset_ms: record.clock_offset_ms,
            mode: record.mode,
            peer: record.peer,
            connects: record.connects,
            labels: record.labels,
            agent_version: record.agent_version,
            newest: has_newest.then_some(Mark {
                stream: newest.stream,
                sequence: newest.sequence,
            }),
            report_time_ms: has_newest.then_some(newest.time_ms),
            status: Arc::new(newest.status.unwrap_or_default()),
            catching_up: record.catching_up.map(Box::new),
            record_group: record.group,
            record_is_old: false,
            ..Self::new(id, record.since_ms)
        }
    }

    /// Its record, to be written with `group`.
    pub(crate) fn to_record(&self, group: u64) -> SlaveRecord {
        SlaveRecord {
            group,
            id: self.id.to_vec(),
            name: self.name.clone(),
            presence: StoredPresence::from(self.presence).into(),
            health: self.health.map(wire_health),
            since_ms: self.since_ms,
            last_seen_ms: self.last_seen_ms,
            interval_ms: self.interval_ms,
            stream: self.stream,
            marks: self.ledger.marks().to_vec(),
            applied: self.applied,
            duplicates: self.duplicates,
            gaps: self.gaps,
            clock_offset_ms: self.clock_offset_ms,
            mode: self.mode,
            peer: self.peer.clone(),
            connects: self.connects,
            labels: self.labels.clone(),
            agent_version: self.agent_version.clone(),
            newest: self.newest.map(|newest| Newest {
                stream: newest.stream,
                sequence: newest.sequence,
                time_ms: self.report_time_ms.unwrap_or_default(),
                status: Some(Status::clone(&self.status)),
            }),
            catching_up: self.catching_up.as_deref().cloned(),
        }
    }

    /// What a Hello says of the slave itself.
    pub(crate) fn describe(&mut self, hello: &Hello, peer: String) {
        self.interval_ms = hello.interval_ms;
        self.stream = hello.stream;
        self.mode = hello.mode;
        self.labels.clone_from(&hello.labels);
        self.agent_version.clone_from(&hello.agent_version);
        self.peer = Some(peer);
        self.connects += 1;
    }

    /// Makes `report` the newest; `ahead` if reports before it are still to come.
    pub(crate) fn set_newest(&mut self, report: Report, ahead: bool) {
        let mark = Mark {
            stream: report.stream,
            sequence: report.sequence,
        };
        let before = std::mem::replace(
            &mut self.status,
            Arc::new(report.status.unwrap_or_default()),
        );
        if ahead {
            let health = self.health.map(wire_health);
            let catching_up = self.catching_up.get_or_insert_with(|| {
                Box::new(CatchingUp {
                    status: Some(Arc::unwrap_or_clone(before)),
                    health,
                    previewed: Vec::new(),
                })
            });
            if catching_up.previewed.len() < PREVIEWED_MAX {
                catching_up.previewed.push(mark);
            }
        } else {
            self.catching_up = None;
        }
        self.newest = Some(mark);
        self.report_time_ms = Some(report.time_ms);
        self.health = Some(record::health(report.health));
        if report.clock_offset_ms.is_some() {
            self.clock_offset_ms = report.clock_offset_ms;
        }
    }

    /// What readers see.
    pub(crate) fn to_view(&self) -> SlaveView {
        SlaveView {
            row: SlaveRow {
                name: self.name.clone(),
                id: self.id.iter().map(|byte| format!("{byte:02x}")).collect(),
                presence: self.presence,
                health: self.health,
                since_ms: self.since_ms,
                last_seen_ms: self.last_seen_ms,
                interval_ms: self.interval_ms,
                stream: format!("{:016x}", self.stream),
                sequence: self.ledger.mark(self.stream).unwrap_or(0),
                applied: self.applied,
                duplicates: self.duplicates,
                gaps: self.gaps,
                clock_offset_ms: self.clock_offset_ms,
                mode: record::mode(self.mode),
                peer: self.peer.clone(),
                connected_since_ms: self.session.map(|(_, since_ms)| since_ms),
                reconnects: self.connects.saturating_sub(1),
                labels: self.labels.clone(),
            },
            agent_version: self.agent_version.clone(),
            report_time_ms: self.report_time_ms,
            status: Arc::clone(&self.status),
        }
    }
}

fn wire_health(health: Health) -> i32 {
    use rollcall_protocol::wire::Health as Wire;
    match health {
        Health::Ok => Wire::Ok,
        Health::Warning => Wire::Warning,
        Health::Critical => Wire::Critical,
        Health::Unknown => Wire::Unknown,
    }
    .into()
}
