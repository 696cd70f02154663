//! Going on with the sessions of the process before.

use std::net::TcpStream as StdStream;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use prost::Message;
use rollcall_os::parking::{self, Mark as Begun, Parked, Place};
use rollcall_os::{clock, socket};
use rollcall_protocol::frame::Frame;
use rollcall_protocol::wire::{Mark, ToMaster, to_master};
use tokio::net::TcpStream;

use super::ParkedSession;
use crate::connection::{Connection, Resumed};
use crate::listener::{Accepting, canonical};

/// Why a connection is not gone on with. Its slave connects anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// It has broken meanwhile.
    Broken,
    /// The process before may have sent a frame in part.
    Torn,
    /// Its record can't be read.
    Unreadable,
    /// The roll does not know the session, or knows that its slave has a newer one.
    Unknown,
}

/// What became of the parked connections.
#[derive(Debug, Default)]
struct Tally {
    resumed: u64,
    greeted: u64,
    broken: u64,
    torn: u64,
    unreadable: u64,
    unknown: u64,
}

/// Goes on with what lies in the shards whose `ends` this process was started with. To be called
/// once, with the roll as it is durable, before anybody new is let in.
pub(crate) fn adopt(accepting: &Accepting, ends: Vec<(String, OwnedFd)>) {
    if ends.is_empty() {
        return;
    }
    let began = clock::boot();
    let mut tally = Tally::default();
    for parked in accepting.reactor.parking().take_over(ends) {
        go_on(accepting, parked, &mut tally);
    }
    let took = clock::boot().saturating_since(began);
    let Tally {
        resumed,
        greeted,
        broken,
        torn,
        unreadable,
        unknown,
    } = tally;
    tracing::info!(
        event = "connections_adopted",
        resumed,
        greeted,
        broken,
        torn,
        unreadable,
        unknown,
        took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        "the connections of the process before are gone on with"
    );
}

fn go_on(accepting: &Accepting, parked: Parked, tally: &mut Tally) {
    let Parked {
        socket,
        record,
        place,
    } = parked;
    let parking = accepting.reactor.parking();
    let Ok(stream) = TcpStream::from_std(StdStream::from(socket)) else {
        if let Some(place) = place {
            parking.evict(&place);
        }
        return tally.broken += 1;
    };
    let dropped = match begin(accepting, &stream, &record) {
        Ok(kind) => return serve(accepting, kind, place, stream, tally),
        Err(dropped) => dropped,
    };
    // It is over if that can't be done.
    let _ = parking::shut_down(&stream);
    if let Some(place) = place {
        parking.leave(&place);
    }
    match dropped {
        Dropped::Broken => tally.broken += 1,
        Dropped::Torn => tally.torn += 1,
        Dropped::Unreadable => tally.unreadable += 1,
        Dropped::Unknown => tally.unknown += 1,
    }
}

/// A connection that is gone on with.
pub(super) enum Kind {
    /// Its Hello was not consumed.
    Silent(Connection),
    /// Its session is open.
    Open(Connection, Resumed),
}

pub(super) fn begin(
    accepting: &Accepting,
    stream: &TcpStream,
    record: &[u8],
) -> Result<Kind, Dropped> {
    let reactor = &accepting.reactor;
    let begun = parking::find(stream).map_err(|_| Dropped::Broken)?;
    let peer = stream.peer_addr().map_err(|_| Dropped::Broken)?;
    let peer = canonical(peer);
    if begun == Begun::Torn {
        return Err(Dropped::Torn);
    }
    let is_hello = begins_with_hello(stream, &mut reactor.buffer());
    let kind = if is_hello.ok_or(Dropped::Broken)? {
        Kind::Silent(Connection::new(Rc::clone(reactor), peer))
    } else {
        let session = ParkedSession::decode(record).map_err(|_| Dropped::Unreadable)?;
        let id = reactor.next_session();
        let mut roll = reactor.roll();
        let slot = session.slave();
        let slot = slot.and_then(|slave| roll.adopt(slave, &session, id));
        let slot = slot.ok_or(Dropped::Unknown)?;
        let streams = session.streams.into_iter();
        // Nothing has been taken in yet: this is what is durable.
        let marks = streams.map(|stream| Mark {
            stream,
            sequence: roll.mark(slot, stream),
        });
        let resumed = Resumed {
            id,
            slot,
            marks: marks.collect(),
            owes_welcome: begun == Begun::Greeting,
        };
        drop(roll);
        let connection = Connection::resume(Rc::clone(reactor), peer, &resumed);
        Kind::Open(connection, resumed)
    };
    accepting.admission.count_in(peer.ip());
    Ok(kind)
}

/// `None` if it is broken.
fn begins_with_hello(stream: &TcpStream, buffer: &mut [u8]) -> Option<bool> {
    let peeked = match socket::peek(stream.as_fd(), buffer) {
        Ok(peeked) => peeked,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
        Err(_) => return None,
    };
    // Parked is only who has sent a whole Hello.
    let frame = Frame::peek(&buffer[..peeked], buffer.len()).ok().flatten();
    let message = frame.and_then(|frame| frame.decode::<ToMaster>().ok());
    let kind = message.and_then(|message| message.kind);
    Some(matches!(kind, Some(to_master::Kind::Hello(_))))
}

fn serve(
    accepting: &Accepting,
    kind: Kind,
    place: Option<Place>,
    stream: TcpStream,
    tally: &mut Tally,
) {
    let stop = accepting.stop.clone();
    let tasks = &accepting.tasks;
    let admission = Rc::clone(&accepting.admission);
    match kind {
        Kind::Silent(connection) => {
            tally.greeted += 1;
            let connection = connection.parked_at(place).let_in_by(admission);
            tasks.spawn_local(connection.serve(stream, stop));
        }
        Kind::Open(connection, resumed) => {
            tally.resumed += 1;
            let connection = connection.parked_at(place).let_in_by(admission);
            tasks.spawn_local(connection.go_on(stream, resumed, stop));
        }
    }
}
