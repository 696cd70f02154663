//! What readers see of the roll: a snapshot that its owner replaces and nobody locks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rollcall_protocol::Moment;
use rollcall_protocol::api::{Health, Mode, Presence, SlaveRow};
use rollcall_protocol::limits::ID_BYTES;
use rollcall_protocol::wire::Status;
use tokio::sync::oneshot;

use crate::roll::Remembered;

/// A slave's identity.
pub(crate) type SlaveId = [u8; ID_BYTES];

/// All that is told of one slave. The owner shares it with the snapshots and copies it only when it
/// changes a slave that a snapshot still shows.
#[derive(Clone, Debug)]
pub(crate) struct SlaveView {
    pub(crate) name: String,
    pub(crate) id: SlaveId,
    pub(crate) presence: Presence,
    /// None before the first report.
    pub(crate) health: Option<Health>,
    /// Since when presence and health are what they are, in ms since 1970.
    pub(crate) since_ms: i64,
    /// When the newest live report was read, in ms since 1970.
    pub(crate) last_seen_ms: Option<i64>,
    pub(crate) interval_ms: u32,
    /// Its newest stream, and the highest sequence of it that was applied.
    pub(crate) stream: u64,
    pub(crate) sequence: u64,
    /// Reports applied, come again, and lost, since it was enrolled.
    pub(crate) applied: u64,
    pub(crate) duplicates: u64,
    pub(crate) gaps: u64,
    pub(crate) clock_offset_ms: Option<i64>,
    pub(crate) mode: Mode,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) connected_since_ms: Option<i64>,
    /// Pooled sessions opened since it was enrolled.
    pub(crate) connects: u64,
    pub(crate) labels: Arc<BTreeMap<String, String>>,
    pub(crate) agent_version: Arc<str>,
    /// When the newest live report was taken, by the slave's clock, in ms since 1970.
    pub(crate) report_time_ms: Option<i64>,
    /// What that report said.
    pub(crate) status: Arc<Status>,
}

impl SlaveView {
    /// A slave of which nothing is known but its name and id.
    pub(crate) fn new(id: SlaveId, name: String, since_ms: i64) -> Self {
        Self {
            name,
            id,
            presence: Presence::Expected,
            health: None,
            since_ms,
            last_seen_ms: None,
            interval_ms: 0,
            stream: 0,
            sequence: 0,
            applied: 0,
            duplicates: 0,
            gaps: 0,
            clock_offset_ms: None,
            mode: Mode::Pooled,
            peer: None,
            connected_since_ms: None,
            connects: 0,
            labels: Arc::default(),
            agent_version: Arc::from(""),
            report_time_ms: None,
            status: Arc::default(),
        }
    }

    /// The row of the API.
    pub(crate) fn to_row(&self) -> SlaveRow {
        SlaveRow {
            name: self.name.clone(),
            id: self.id_hex(),
            presence: self.presence,
            health: self.health,
            since_ms: self.since_ms,
            last_seen_ms: self.last_seen_ms,
            interval_ms: self.interval_ms,
            stream: format!("{:016x}", self.stream),
            sequence: self.sequence,
            applied: self.applied,
            duplicates: self.duplicates,
            gaps: self.gaps,
            clock_offset_ms: self.clock_offset_ms,
            mode: self.mode,
            peer: self.peer.map(|peer| peer.to_string()),
            connected_since_ms: self.connected_since_ms,
            reconnects: self.connects.saturating_sub(1),
            labels: BTreeMap::clone(&self.labels),
        }
    }

    /// The id as people see it.
    pub(crate) fn id_hex(&self) -> String {
        self.id.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The whole roll at one moment.
#[derive(Debug, Default)]
pub(crate) struct RollSnapshot {
    /// By name.
    pub(crate) slaves: Vec<Arc<SlaveView>>,
    /// Why reports are not being stored at present; none when they are.
    pub(crate) degraded: Option<Degraded>,
}

/// Why reports are not being stored.
#[derive(Clone, Debug)]
pub(crate) struct Degraded {
    /// What is wrong and what to do.
    pub(crate) reason: String,
    /// Since when, on the boot clock and in ms since 1970.
    pub(crate) since: Moment,
    pub(crate) since_ms: i64,
}

/// A reader's question to the roll's owner: what it remembers of one slave's reports.
#[derive(Debug)]
pub(crate) struct ReportsAsked {
    /// The slave's name.
    pub(crate) slave: String,
    /// For the reports.
    pub(crate) answer: oneshot::Sender<Remembered>,
}

impl RollSnapshot {
    /// The slave of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<SlaveView>> {
        self.slaves
            .binary_search_by(|view| view.name.as_str().cmp(name))
            .ok()
            .map(|at| &self.slaves[at])
    }
}
