//! Hello: who may speak for which slave, and where its streams stand.

use std::net::SocketAddr;

use rollcall_protocol::api::{EventKind, Presence};
use rollcall_protocol::ledger::Opening;
use rollcall_protocol::session::Refusal;
use rollcall_protocol::wire::{ErrorCode, Hello, Mark, Mode};

use super::gathering::Change;
use super::identity::{Claim, address};
use super::record;
use super::slave::Slave;
use super::{Roll, SessionId, Slot, Stamp};
use crate::view::SlaveId;

/// The answer to a Hello that was not refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// The session is open for the slave at `slot`.
    Welcome {
        /// Where the slave stands.
        slot: Slot,
        /// The high-water mark of each stream that the Hello announced.
        marks: Vec<Mark>,
    },
    /// A copy of a question that was taken in before: nothing of it is, but it is answered again.
    Copy {
        /// The present high-water marks of the streams that the Hello announced.
        marks: Vec<Mark>,
    },
    /// More has been applied of the slave's stream than it knows: it must start a new one.
    Resync {
        /// The highest sequence applied.
        applied: u64,
    },
}

impl Roll {
    /// A Hello has come on the connection `session` from `peer`; `payload` is the message as it came.
    ///
    /// # Errors
    /// A [`Refusal`] if another slave that answers has the id or the name.
    pub(crate) fn handle_hello(
        &mut self,
        hello: &Hello,
        payload: &[u8],
        peer: SocketAddr,
        session: SessionId,
        stamp: Stamp,
    ) -> Result<Greeting, Refusal> {
        let id = SlaveId::try_from(hello.slave_id.as_slice())
            .map_err(|_| Refusal::for_good(ErrorCode::Invalid, "Hello.slave_id is malformed"))?;
        let known = self.ids.get(&id).copied();
        if let Some(slot) = known
            && let Some(copy) = self.copy(slot, hello)
        {
            return Ok(copy);
        }
        let claim = known.map(|slot| self.claim(slot, hello, peer, stamp));
        let claim = claim.transpose()?;
        self.check_name(id, hello, peer, stamp)?;
        if let Some(applied) = self.runs_backwards(id, hello, stamp) {
            return Ok(Greeting::Resync { applied });
        }
        let slot = match (claim, known) {
            (Some(Claim::Elder), Some(slot)) => {
                self.accept_elder(slot, hello, payload, peer, session, stamp);
                slot
            }
            _ => {
                let slot = self.accept_hello(id, hello, payload, Some(peer), stamp);
                let slave = &mut self.slaves[slot];
                slave.session = Some(session);
                slave.shown_mut().connected_since_ms = Some(stamp.wall_ms);
                slot
            }
        };
        if hello.question != 0 {
            let seen = &mut self.slaves[slot].questions;
            seen.get_or_insert_default()
                .note(hello.stream, hello.question);
        }
        let mark = |stream| Mark {
            stream,
            sequence: self.mark(slot, stream),
        };
        let marks = hello.pending.iter().map(|pending| mark(pending.stream));
        let marks = marks.collect();
        Ok(Greeting::Welcome { slot, marks })
    }

    /// What a Hello changes, live or replayed.
    pub(super) fn accept_hello(
        &mut self,
        id: SlaveId,
        hello: &Hello,
        payload: &[u8],
        peer: Option<SocketAddr>,
        stamp: Stamp,
    ) -> Slot {
        let known = self.ids.get(&id).copied();
        let slot = known.unwrap_or_else(|| self.enroll(id, &hello.name, stamp));
        self.rename(slot, &hello.name, stamp);
        let slave = &mut self.slaves[slot];
        let durable = known.is_none() || changes_record(slave, hello);
        if slave.takes_resync(hello) {
            let text = "the slave ran on an older state of its disk, and has started a new stream";
            let change = change(EventKind::Resync, text.to_owned(), stamp);
            self.gathering.event(slave, stamp, change);
        }
        // A slave that has said goodbye is expected to come as a new process.
        if known.is_some() && slave.leaving.is_none() && slave.is_new_process(hello) {
            let text = format!("the slave's process started anew ({})", hello.agent_version);
            let change = change(EventKind::Restart, text, stamp);
            self.gathering.event(slave, stamp, change);
        }
        if !self.gathering.is_replaying() {
            slave.supersede(hello, stamp);
        }
        slave.ledger.open(hello);
        if durable {
            let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
            self.gathering.message(slave, stamp, payload, &peer);
        }
        slave.describe(hello, peer);
        self.gathering.touch(slave, slot);
        self.arm(slot);
        slot
    }

    /// The same for a process that was superseded a moment ago. Who holds the slave does not change.
    fn accept_elder(
        &mut self,
        slot: Slot,
        hello: &Hello,
        payload: &[u8],
        peer: SocketAddr,
        session: SessionId,
        stamp: Stamp,
    ) {
        let slave = &mut self.slaves[slot];
        if has_new_stream(slave, hello) {
            self.gathering
                .message(slave, stamp, payload, &peer.to_string());
        }
        slave.ledger.open(hello);
        slave.admit_elder(hello, session, peer);
        self.gathering.touch(slave, slot);
    }

    /// The master has started; `text` says from what.
    pub(crate) fn handle_start(&mut self, text: String, stamp: Stamp) {
        let change = change(EventKind::MasterStart, text, stamp);
        self.gathering.push_event(None, stamp, change);
    }

    /// Another slave has the name, and answers.
    fn check_name(
        &mut self,
        id: SlaveId,
        hello: &Hello,
        peer: SocketAddr,
        stamp: Stamp,
    ) -> Result<(), Refusal> {
        let Some(&slot) = self.names.get(&hello.name) else {
            return Ok(());
        };
        let slave = &self.slaves[slot];
        if slave.shown.id == id || slave.shown.presence != Presence::Up {
            return Ok(());
        }
        let text = format!(
            "two slaves have the name \"{}\": one at {}, which keeps it, and one at {peer}, which is refused; \
             give one of them another `name` in its slave.toml",
            slave.shown.name,
            address(slave.shown.peer),
        );
        Err(self.refuse(slot, ErrorCode::NameConflict, text, stamp))
    }

    fn runs_backwards(&mut self, id: SlaveId, hello: &Hello, stamp: Stamp) -> Option<u64> {
        let slot = *self.ids.get(&id)?;
        let slave = &mut self.slaves[slot];
        // Only asked: what Hello opens is opened once it is accepted.
        let Opening::Backwards { applied } = slave.ledger.clone().open(hello) else {
            return None;
        };
        if hello.question != 0 {
            slave.offer_resync(hello);
            return Some(applied);
        }
        if !slave.note_resync(hello) {
            // It was told so before, and has not heard it.
            return Some(applied);
        }
        let text = format!(
            "the slave's next report is {}, and {applied} are applied: it runs on an older state of its disk and was told to start a new stream",
            hello.next_sequence,
        );
        let change = change(EventKind::Resync, text, stamp);
        self.gathering.event(slave, stamp, change);
        Some(applied)
    }

    /// The answer to a question that was taken in before, or is older than one that was; `None` if it
    /// is new.
    fn copy(&self, slot: Slot, hello: &Hello) -> Option<Greeting> {
        let slave = &self.slaves[slot];
        let seen = slave.questions.as_ref()?;
        if hello.question == 0 || !seen.is_copy(hello.stream, hello.question) {
            return None;
        }
        let mark = |stream| slave.ledger.mark(stream);
        if let Some(applied) = mark(hello.stream).filter(|mark| *mark >= hello.next_sequence) {
            return Some(Greeting::Resync { applied });
        }
        let marks = hello.pending.iter().filter_map(|pending| {
            let stream = pending.stream;
            mark(stream).map(|sequence| Mark { stream, sequence })
        });
        Some(Greeting::Copy {
            marks: marks.collect(),
        })
    }

    fn enroll(&mut self, id: SlaveId, name: &str, stamp: Stamp) -> Slot {
        let mut slave = Slave::new(id, name.to_owned(), stamp.wall_ms);
        slave.read_at = stamp.at;
        let slot = match self.names.get(name) {
            // A reinstalled host: nobody else answers to this name.
            Some(&slot) => {
                // The one that had the name before is not heard of again.
                self.tell_leaving(slot, stamp);
                let old = std::mem::replace(&mut self.slaves[slot], slave);
                self.ids.remove(&old.shown.id);
                self.ids.insert(id, slot);
                self.gathering.forget(old.shown.id);
                self.gathering.touch_new(slot, true);
                slot
            }
            None => self.insert(slave),
        };
        let change = change(
            EventKind::Enrolled,
            "seen for the first time".to_owned(),
            stamp,
        );
        self.gathering.event(&self.slaves[slot], stamp, change);
        slot
    }

    fn rename(&mut self, slot: Slot, name: &str, stamp: Stamp) {
        let slave = &mut self.slaves[slot];
        if slave.shown.name == name {
            return;
        }
        self.names.remove(&slave.shown.name);
        let before = std::mem::replace(&mut slave.shown_mut().name, name.to_owned());
        let mut change = change(EventKind::Renamed, format!("it was \"{before}\""), stamp);
        change.from = Some(before);
        change.to = Some(name.to_owned());
        self.gathering.event(slave, stamp, change);
        if let Some(displaced) = self.names.insert(name.to_owned(), slot) {
            self.displace(displaced);
        }
    }

    /// The slave at `slot` has lost its name to another one: it keeps its place under its id.
    fn displace(&mut self, slot: Slot) {
        let slave = &mut self.slaves[slot];
        let id = slave.shown.id_hex();
        slave.shown_mut().name.clone_from(&id);
        self.gathering.touch(slave, slot);
        self.names.insert(id, slot);
    }
}

/// Whether accepting `hello` changes what is durable of the slave. A per-message slave says Hello
/// with every report; most of those say nothing new.
fn changes_record(slave: &Slave, hello: &Hello) -> bool {
    let shown = &slave.shown;
    hello.mode() == Mode::Pooled
        || shown.mode != record::mode(hello.mode)
        || shown.stream != hello.stream
        || shown.interval_ms != hello.interval_ms
        || shown.name != hello.name
        || *shown.agent_version != *hello.agent_version
        || *shown.labels != hello.labels
        || has_new_stream(slave, hello)
}

fn has_new_stream(slave: &Slave, hello: &Hello) -> bool {
    let mut pending = hello.pending.iter();
    pending.any(|pending| slave.ledger.mark(pending.stream).is_none())
}

pub(super) fn change(kind: EventKind, text: String, stamp: Stamp) -> Change {
    Change {
        kind,
        subject: None,
        from: None,
        to: None,
        text,
        time_ms: stamp.wall_ms,
        replayed: false,
    }
}
