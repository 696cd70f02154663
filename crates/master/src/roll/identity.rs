//! Who speaks for a slave's id, when more than one process does.
//!
//! A restart and a copy of a running slave's state folder look alike at first: the same id, a new
//! stream, and the holder's stream among the earlier ones. So a successor is welcome at once, also
//! while the connection of its predecessor still looks open. What proves that there are two living
//! processes is the *elder*, the one that was superseded, being heard again:
//!
//! ```text
//!   Hello of ...                                           while the holder is up
//!   the holder's stream                                    the same process: welcome
//!   a rival, or a process that comes from one              refused
//!   a new stream that names the holder's as an earlier one successor: it is the holder now
//!   a known stream, superseded: the elder                  it is the holder again, the other a rival
//!   a new stream that does not name the holder's           refused if the holder is connected, else
//!                                                          it is the holder now
//! ```
//!
//! What a process has sent before it was killed may be read after its successor's Hello. It is no
//! sign of life: the end of its connection lies behind it, or it comes within [`LATE_BYTES_MAX`]. A
//! datagram is one only if others came [`LATE_DATAGRAMS_MAX`] before it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rollcall_protocol::Moment;
use rollcall_protocol::api::{EventKind, Presence};
use rollcall_protocol::session::Refusal;
use rollcall_protocol::wire::{ErrorCode, Hello};

use super::hello::change;
use super::slave::{SessionId, Slave};
use super::{Roll, Slot, Stamp};
use crate::view::SlaveView;

/// A conflict that goes on is told this often.
const CONFLICT_TOLD_EVERY: Duration = Duration::from_secs(60);
/// How long after the Hello of a successor bytes of its dead predecessor may still come.
const LATE_BYTES_MAX: Duration = Duration::from_secs(2);
/// The same for datagrams, which may be late by themselves.
const LATE_DATAGRAMS_MAX: Duration = Duration::from_secs(5);
/// Most rivals of one slave that are remembered.
const RIVALS_MAX: usize = 16;

/// What is known of a slave's processes beside the holder's stream. Only slaves that were
/// restarted while this master runs have it.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// When the holder took over from another process; `None` if it has not.
    held_since: Option<Moment>,
    /// The process before, while its connection still looks open.
    elder: Option<Elder>,
    /// The superseded process that was heard in a datagram, and when for the first time.
    heard: Option<(u64, Moment)>,
    /// Streams of processes that live beside the one that was there first.
    rivals: Vec<u64>,
    /// The stream that was told to start anew last; 0 if none was.
    resynced: u64,
    /// The stream that was told so in a datagram; 0 if none was, or it took it, or went on.
    offered: u64,
    /// When a conflict was told last.
    told: Option<Moment>,
}

/// A process that was superseded.
#[derive(Debug)]
struct Elder {
    session: SessionId,
    /// What it had said of itself.
    said: Arc<SlaveView>,
}

/// What a Hello may be for the slave that it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It speaks for the slave.
    Holder,
    /// It was superseded a moment ago: its reports are taken, and it is not decided who holds the id.
    Elder,
}

impl Slave {
    fn claims_mut(&mut self) -> &mut Claims {
        self.claims.get_or_insert_default()
    }

    /// Whether `hello` comes from a process that was found to live beside the holder, or from a
    /// successor of one.
    fn is_rival(&self, hello: &Hello) -> bool {
        let Some(claims) = &self.claims else {
            return false;
        };
        let newer = hello.previous.iter();
        newer
            .take_while(|stream| **stream != self.shown.stream)
            .chain([&hello.stream])
            .any(|stream| claims.rivals.contains(stream))
    }

    fn is_within_late_bytes(&self, stamp: Stamp) -> bool {
        let since = self.claims.as_ref().and_then(|claims| claims.held_since);
        since.is_some_and(|since| stamp.at.saturating_since(since) < LATE_BYTES_MAX)
    }

    /// Whether datagrams of the superseded process of `hello` have come for longer than one can be
    /// late: then it lives.
    fn is_still_asking(&mut self, hello: &Hello, stamp: Stamp) -> bool {
        let heard = &mut self.claims_mut().heard;
        let known = heard.filter(|(stream, _)| *stream == hello.stream);
        let (_, since) = *heard.insert(known.unwrap_or((hello.stream, stamp.at)));
        stamp.at.saturating_since(since) >= LATE_DATAGRAMS_MAX
    }

    /// `hello` was told to start a new stream; whether that is news.
    pub(super) fn note_resync(&mut self, hello: &Hello) -> bool {
        let before = std::mem::replace(&mut self.claims_mut().resynced, hello.stream);
        before != hello.stream
    }

    /// The question of `hello` was told to start a new stream. Whether that is so shows when it does:
    /// the question may have been a late copy, of which nobody waits for the answer.
    pub(super) fn offer_resync(&mut self, hello: &Hello) {
        self.claims_mut().offered = hello.stream;
    }

    /// Whether `hello` is the first of a process that has taken such an offer.
    pub(super) fn takes_resync(&mut self, hello: &Hello) -> bool {
        let Some(claims) = self.claims.as_mut().filter(|claims| claims.offered != 0) else {
            return false;
        };
        let is_new = self.ledger.mark(hello.stream).is_none();
        let takes = is_new && hello.previous.first() == Some(&claims.offered);
        if takes {
            claims.resynced = claims.offered;
        }
        if takes || hello.stream == claims.offered {
            claims.offered = 0;
        }
        takes
    }

    /// Whether `hello` is that of a process which is new: not of one that was known before, nor of
    /// one that was told to start a new stream.
    pub(super) fn is_new_process(&self, hello: &Hello) -> bool {
        let resynced = self.claims.as_ref().map_or(0, |claims| claims.resynced);
        let is_resync = resynced != 0 && hello.previous.first() == Some(&resynced);
        let known = self.ledger.mark(hello.stream).is_some();
        self.shown.stream != 0 && self.shown.stream != hello.stream && !known && !is_resync
    }

    /// The process of `hello` takes over from the holder.
    pub(super) fn supersede(&mut self, hello: &Hello, stamp: Stamp) {
        if self.shown.stream == 0 || self.shown.stream == hello.stream {
            return;
        }
        let (holder, session) = (self.shown.stream, self.session);
        let said = Arc::clone(&self.shown);
        let claims = self.claims_mut();
        claims.heard = None;
        // A rival that has to give way has come second, however long it held the id.
        let session = session.filter(|_| !claims.rivals.contains(&holder));
        let elder = session.map(|session| Elder { session, said });
        claims.held_since = Some(stamp.at);
        claims.elder = elder;
        claims.rivals.retain(|rival| *rival != hello.stream);
    }

    /// The elder is there on the connection `session`, from `peer`.
    pub(super) fn admit_elder(&mut self, hello: &Hello, session: SessionId, peer: SocketAddr) {
        let mut said = SlaveView::clone(&self.shown);
        describe(&mut said, hello);
        said.peer = Some(peer);
        let said = Arc::new(said);
        self.claims_mut().elder = Some(Elder { session, said });
    }

    /// The connection `session` has ended.
    pub(super) fn forget_elder(&mut self, session: SessionId) {
        if let Some(claims) = &mut self.claims {
            claims.elder.take_if(|elder| elder.session == session);
        }
    }

    fn is_elder(&self, session: SessionId) -> bool {
        let elder = self
            .claims
            .as_ref()
            .and_then(|claims| claims.elder.as_ref());
        elder.is_some_and(|elder| elder.session == session)
    }

    /// The holder turns out to be the second of two processes.
    fn add_rival(&mut self) {
        let rival = self.shown.stream;
        let rivals = &mut self.claims_mut().rivals;
        if rivals.len() == RIVALS_MAX {
            rivals.remove(0);
        }
        rivals.push(rival);
    }
}

impl Roll {
    /// Decides what the process of `hello` is for the slave at `slot`.
    ///
    /// # Errors
    /// A [`Refusal`] if another process holds the id.
    pub(super) fn claim(
        &mut self,
        slot: Slot,
        hello: &Hello,
        peer: SocketAddr,
        stamp: Stamp,
    ) -> Result<Claim, Refusal> {
        let slave = &self.slaves[slot];
        let holder = slave.shown.stream;
        if holder == hello.stream || holder == 0 || slave.shown.presence != Presence::Up {
            return Ok(Claim::Holder);
        }
        if slave.is_rival(hello) {
            return Err(self.refuse_second(slot, peer, stamp));
        }
        if hello.previous.contains(&holder) {
            return Ok(Claim::Holder);
        }
        if slave.ledger.mark(hello.stream).is_some() {
            let is_late = if hello.question == 0 {
                slave.is_within_late_bytes(stamp)
            } else {
                !self.slaves[slot].is_still_asking(hello, stamp)
            };
            if is_late {
                return Ok(Claim::Elder);
            }
            self.tell_rival(slot, Some(peer), stamp);
            return Ok(Claim::Holder);
        }
        if slave.session.is_some() {
            return Err(self.refuse_second(slot, peer, stamp));
        }
        Ok(Claim::Holder)
    }

    /// A frame has come on the connection `session`, which does not hold the slave (any more);
    /// `ended` if its end has come too. Whether the frame counts: it may have made the elder the
    /// holder again.
    pub(crate) fn hear_elder(
        &mut self,
        slot: Slot,
        session: SessionId,
        ended: bool,
        stamp: Stamp,
    ) -> bool {
        let slave = &self.slaves[slot];
        if ended || !slave.is_elder(session) {
            return false;
        }
        if !slave.is_within_late_bytes(stamp) {
            self.reinstate(slot, stamp);
        }
        true
    }

    /// The elder holds the slave again.
    fn reinstate(&mut self, slot: Slot, stamp: Stamp) {
        let slave = &mut self.slaves[slot];
        let Some(Elder { session, said }) = slave.claims_mut().elder.take() else {
            return;
        };
        self.tell_rival(slot, said.peer, stamp);
        let slave = &mut self.slaves[slot];
        slave.claims_mut().held_since = Some(stamp.at);
        slave.session = Some(session);
        let sequence = slave.ledger.mark(said.stream).unwrap_or(0);
        let shown = slave.shown_mut();
        shown.stream = said.stream;
        shown.sequence = sequence;
        shown.interval_ms = said.interval_ms;
        shown.mode = said.mode;
        shown.labels = Arc::clone(&said.labels);
        shown.agent_version.clone_from(&said.agent_version);
        shown.peer = said.peer;
        shown.connected_since_ms = said.connected_since_ms;
        self.gathering.touch(slave, slot);
        self.arm(slot);
    }

    /// The holder is a rival of the process at `elder`, which was there first and lives.
    fn tell_rival(&mut self, slot: Slot, elder: Option<SocketAddr>, stamp: Stamp) {
        let slave = &mut self.slaves[slot];
        let second = slave.shown.peer;
        slave.add_rival();
        let text = two_processes(slave, elder, second);
        self.tell_conflict(slot, text, stamp);
    }

    fn refuse_second(&mut self, slot: Slot, second: SocketAddr, stamp: Stamp) -> Refusal {
        let slave = &self.slaves[slot];
        let text = two_processes(slave, slave.shown.peer, Some(second));
        self.refuse(slot, ErrorCode::IdConflict, text, stamp)
    }

    /// Refuses a process because of the slave at `slot`, and tells of it.
    pub(super) fn refuse(
        &mut self,
        slot: Slot,
        code: ErrorCode,
        text: String,
        stamp: Stamp,
    ) -> Refusal {
        self.tell_conflict(slot, text.clone(), stamp);
        let interval_ms = self.slaves[slot].shown.interval_ms;
        let retry_after = Duration::from_millis(u64::from(interval_ms));
        Refusal::for_now(code, text, retry_after)
    }

    fn tell_conflict(&mut self, slot: Slot, text: String, stamp: Stamp) {
        let slave = &mut self.slaves[slot];
        let told = &mut slave.claims_mut().told;
        let ago = told.map(|told| stamp.at.saturating_since(told));
        if ago.is_none_or(|ago| ago >= CONFLICT_TOLD_EVERY) {
            *told = Some(stamp.at);
            let change = change(EventKind::Conflict, text, stamp);
            self.gathering.event(slave, stamp, change);
        }
    }
}

/// What `hello` says of a process.
pub(super) fn describe(view: &mut SlaveView, hello: &Hello) {
    view.interval_ms = hello.interval_ms;
    view.stream = hello.stream;
    view.mode = super::record::mode(hello.mode);
    if *view.labels != hello.labels {
        view.labels = Arc::new(hello.labels.clone());
    }
    if *view.agent_version != *hello.agent_version {
        view.agent_version = hello.agent_version.as_str().into();
    }
}

fn two_processes(slave: &Slave, first: Option<SocketAddr>, second: Option<SocketAddr>) -> String {
    format!(
        "two slaves run with the id of \"{}\": one at {}, which keeps it, and one at {}, which is refused; \
         was a state folder copied? Stop the second one and run `rollcall-slave --new-identity` on its folder",
        slave.shown.name,
        address(first),
        address(second),
    )
}

/// A peer, for people.
pub(super) fn address(peer: Option<SocketAddr>) -> String {
    let peer = peer.map(|peer| peer.to_string());
    peer.unwrap_or_else(|| "an unknown address".to_owned())
}
