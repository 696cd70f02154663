//! One slave on the roll.

use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use rollcall_protocol::Moment;
use rollcall_protocol::datagram::Seen;
use rollcall_protocol::ledger::Ledger;
use rollcall_protocol::wire::{self, Hello, Mark, Report, Status};

use super::identity::{self, Claims};
use super::record::{self, CatchingUp, Leaving, Newest, SlaveRecord, StoredPresence};
use crate::view::{SlaveId, SlaveView};

/// Names one connection for as long as the process lives.
pub(crate) type SessionId = u64;

/// Most live reports that may run ahead of one slave's backlog and be remembered as told.
const PREVIEWED_MAX: usize = 4096;

/// The present state of one slave.
#[derive(Debug)]
pub(super) struct Slave {
    /// What readers see, shared with the snapshots.
    pub(super) shown: Arc<SlaveView>,
    pub(super) ledger: Ledger,
    /// The newest live report.
    pub(super) newest: Option<Mark>,
    pub(super) catching_up: Option<Box<CatchingUp>>,
    /// It has said goodbye, and no event tells of it yet.
    pub(super) leaving: Option<Box<Leaving>>,
    /// The last group that its record on disk contains.
    pub(super) record_group: u64,

    /// When it was heard last: its deadlines count from here.
    pub(super) read_at: Moment,
    /// The connection that holds its id.
    pub(super) session: Option<SessionId>,
    /// The connection of which bytes wait to be read: its silence proves nothing.
    pub(super) held_back: Option<SessionId>,
    /// What is known of other processes that claim its id.
    pub(super) claims: Option<Box<Claims>>,
    /// The questions that it has asked in datagrams.
    pub(super) questions: Option<Box<Seen>>,
    /// Whether it has changed since its record was written, and since it was last published.
    pub(super) record_is_old: bool,
    pub(super) view_is_old: bool,
}

impl Slave {
    /// A slave that has just said Hello for the first time.
    pub(super) fn new(id: SlaveId, name: String, wall_ms: i64) -> Self {
        Self {
            shown: Arc::new(SlaveView::new(id, name, wall_ms)),
            ledger: Ledger::default(),
            newest: None,
            catching_up: None,
            leaving: None,
            record_group: 0,
            read_at: Moment::ZERO,
            session: None,
            held_back: None,
            claims: None,
            questions: None,
            record_is_old: true,
            view_is_old: true,
        }
    }

    /// What its record says.
    pub(super) fn from_record(id: SlaveId, record: SlaveRecord) -> Self {
        let newest = record.newest.unwrap_or_default();
        let has_newest = newest.sequence > 0;
        let ledger = Ledger::from_marks(record.marks);
        let view = SlaveView {
            presence: StoredPresence::try_from(record.presence)
                .unwrap_or(StoredPresence::Expected)
                .into(),
            health: record.health.map(record::health),
            last_seen_ms: record.last_seen_ms,
            interval_ms: record.interval_ms,
            stream: record.stream,
            sequence: ledger.mark(record.stream).unwrap_or(0),
            applied: record.applied,
            duplicates: record.duplicates,
            gaps: record.gaps,
            clock_offset_ms: record.clock_offset_ms,
            mode: record::mode(record.mode),
            peer: record.peer.and_then(|peer| peer.parse().ok()),
            connects: record.connects,
            labels: Arc::new(record.labels),
            agent_version: record.agent_version.into(),
            report_time_ms: has_newest.then_some(newest.time_ms),
            status: Arc::new(newest.status.unwrap_or_default()),
            ..SlaveView::new(id, record.name, record.since_ms)
        };
        Self {
            shown: Arc::new(view),
            ledger,
            newest: has_newest.then_some(Mark {
                stream: newest.stream,
                sequence: newest.sequence,
            }),
            catching_up: record.catching_up.map(Box::new),
            leaving: record.leaving.map(Box::new),
            record_group: record.group,
            record_is_old: false,
            ..Self::new(id, String::new(), 0)
        }
    }

    /// Its record, to be written with `group`.
    pub(super) fn to_record(&self, group: u64) -> SlaveRecord {
        let shown = &*self.shown;
        SlaveRecord {
            group,
            name: shown.name.clone(),
            presence: StoredPresence::from(shown.presence).into(),
            health: shown.health.map(record::wire_health),
            since_ms: shown.since_ms,
            last_seen_ms: shown.last_seen_ms,
            interval_ms: shown.interval_ms,
            stream: shown.stream,
            marks: self.ledger.marks().to_vec(),
            applied: shown.applied,
            duplicates: shown.duplicates,
            gaps: shown.gaps,
            clock_offset_ms: shown.clock_offset_ms,
            mode: record::wire_mode(shown.mode),
            peer: shown.peer.map(|peer| peer.to_string()),
            connects: shown.connects,
            labels: (*shown.labels).clone(),
            agent_version: shown.agent_version.to_string(),
            newest: self.newest.map(|newest| Newest {
                stream: newest.stream,
                sequence: newest.sequence,
                time_ms: shown.report_time_ms.unwrap_or_default(),
                status: Some(Status::clone(&shown.status)),
            }),
            catching_up: self.catching_up.as_deref().cloned(),
            leaving: self.leaving.as_deref().cloned(),
        }
    }

    /// What readers will see, to be changed: copied if a snapshot shows it as it was.
    pub(super) fn shown_mut(&mut self) -> &mut SlaveView {
        Arc::make_mut(&mut self.shown)
    }

    /// What a Hello says of the slave itself.
    pub(super) fn describe(&mut self, hello: &Hello, peer: Option<SocketAddr>) {
        let sequence = self.ledger.mark(hello.stream).unwrap_or(0);
        let shown = self.shown_mut();
        identity::describe(shown, hello);
        shown.sequence = sequence;
        shown.peer = peer;
        if hello.mode() == wire::Mode::Pooled {
            shown.connects += 1;
        }
    }

    /// Whether the report may have run ahead of its place before.
    pub(super) fn was_previewed(&self, report: &Report) -> bool {
        let is_it = |mark: &Mark| mark.sequence == report.sequence && mark.stream == report.stream;
        self.catching_up
            .as_ref()
            .is_some_and(|behind| behind.previewed.iter().any(is_it))
    }

    /// `stream` has been applied further.
    pub(super) fn advance(&mut self, stream: u64) {
        if stream == self.shown.stream {
            self.shown_mut().sequence = self.ledger.mark(stream).unwrap_or(0);
        }
    }

    /// Makes `report` the newest; `ahead` if reports before it are still to come.
    pub(super) fn set_newest(&mut self, report: Report, ahead: bool) {
        let mark = Mark {
            stream: report.stream,
            sequence: report.sequence,
        };
        self.newest = Some(mark);
        let shown = self.shown_mut();
        let status = Arc::new(report.status.unwrap_or_default());
        let before = mem::replace(&mut shown.status, status);
        let health = shown.health.replace(record::health(report.health));
        shown.report_time_ms = Some(report.time_ms);
        if report.clock_offset_ms.is_some() {
            shown.clock_offset_ms = report.clock_offset_ms;
        }
        if !ahead {
            self.catching_up = None;
            return;
        }
        let catching_up = self.catching_up.get_or_insert_with(|| {
            let before = Arc::unwrap_or_clone(before);
            Box::new(CatchingUp {
                status: Some(before.clone()),
                health: health.map(record::wire_health),
                previewed: Vec::new(),
                shown: Some(before),
                shown_health: health.map(record::wire_health),
            })
        });
        if catching_up.previewed.len() < PREVIEWED_MAX {
            catching_up.previewed.push(mark);
        }
    }
}
