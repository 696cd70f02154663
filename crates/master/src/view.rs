//! The published snapshot of the roll: what readers see. The owner replaces it, nobody locks it.

use std::sync::Arc;

use rollcall_protocol::api::SlaveRow;
use rollcall_protocol::wire::Status;

/// One slave as readers see it; rebuilt when the slave has changed, shared otherwise.
#[derive(Debug)]
pub(crate) struct SlaveView {
    /// The row of the roll.
    pub(crate) row: SlaveRow,
    /// The version of its agent.
    pub(crate) agent_version: String,
    /// When the newest report was taken, by the slave's clock, in ms since 1970.
    pub(crate) report_time_ms: Option<i64>,
    /// What the newest report said.
    pub(crate) status: Arc<Status>,
}

/// The whole roll at one moment.
#[derive(Debug, Default)]
pub(crate) struct RollSnapshot {
    /// By name.
    pub(crate) slaves: Vec<Arc<SlaveView>>,
    /// Why reports are not being stored at present; none when they are.
    pub(crate) degraded: Option<String>,
}

impl RollSnapshot {
    /// The slave of that name.
    pub(crate) fn find(&self, name: &str) -> Option<&Arc<SlaveView>> {
        self.slaves
            .binary_search_by(|view| view.row.name.as_str().cmp(name))
            .ok()
            .map(|at| &self.slaves[at])
    }
}
