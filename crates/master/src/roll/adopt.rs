//! A session that was opened before this process began.

use super::{Roll, SessionId, Slot};
use crate::adoption::ParkedSession;
use crate::view::SlaveId;

impl Roll {
    /// The connection `session` goes on with what was `parked` for `slave`. `None` if the roll does not
    /// know the slave and all of its streams, if another process speaks for it since, or if the same one
    /// has a newer connection.
    pub(crate) fn adopt(
        &mut self,
        slave: SlaveId,
        parked: &ParkedSession,
        session: SessionId,
    ) -> Option<Slot> {
        let slot = *self.ids.get(&slave)?;
        let slave = &mut self.slaves[slot];
        let is_known = |stream: &u64| slave.ledger.mark(*stream).is_some();
        let speaks = parked.streams.last() == Some(&slave.shown.stream);
        if !speaks || !parked.streams.iter().all(is_known) {
            return None;
        }
        let newest = slave.session.and(slave.shown.connected_since_ms);
        if newest.is_some_and(|newest| newest >= parked.since_ms) {
            return None;
        }
        slave.session = Some(session);
        slave.shown_mut().connected_since_ms = Some(parked.since_ms);
        self.gathering.touch_view(slave, slot);
        Some(slot)
    }
}
