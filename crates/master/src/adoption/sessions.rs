//! Going on with the sessions of the process before.

use std::net::TcpStream as StdStream;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use prost::Message;
use rollcall_os::parking::{self, Mark, Parked, Place};
use rollcall_os::{clock, socket};
use rollcall_protocol::frame::Frame;
use rollcall_protocol::wire::{ToMaster, to_master};
use tokio::net::TcpStream;

use super::ParkedSession;
use crate::connection::{Connection, Resumed};
use crate::listener::{Accepting, canonical};

/// Why a connection is not gone on with. Its slave connects anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dropped {
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
    let stream = StdStream::from(socket);
    match begin(accepting, &stream, &record, place) {
        Ok(begun) => match TcpStream::from_std(stream) {
            Ok(stream) => serve(accepting, begun, stream, tally),
            // It was not made known to the runtime, and its place is given up with `begun`.
            Err(_) => tally.broken += 1,
        },
        Err((dropped, place)) => {
            // It is over if that can't be done.
            let _ = parking::shut_down(&stream);
            if let Some(place) = place {
                accepting.reactor.parking().leave(&place);
            }
            match dropped {
                Dropped::Broken => tally.broken += 1,
                Dropped::Torn => tally.torn += 1,
                Dropped::Unreadable => tally.unreadable += 1,
                Dropped::Unknown => tally.unknown += 1,
            }
        }
    }
}

/// A connection that is gone on with.
enum Begun {
    /// Its Hello was not consumed.
    Silent(Connection),
    /// Its session is open; whether Welcome is owed.
    Open(Connection, bool),
}

fn begin(
    accepting: &Accepting,
    stream: &StdStream,
    record: &[u8],
    place: Option<Place>,
) -> Result<Begun, (Dropped, Option<Place>)> {
    let reactor = &accepting.reactor;
    let Ok((mark, peer)) = parking::find(stream).and_then(|mark| Ok((mark, stream.peer_addr()?)))
    else {
        return Err((Dropped::Broken, place));
    };
    if mark == Mark::Torn {
        return Err((Dropped::Torn, place));
    }
    let peer = canonical(peer);
    let Some(is_hello) = begins_with_hello(stream, &mut reactor.buffer()) else {
        return Err((Dropped::Broken, place));
    };
    let connection = if is_hello {
        Begun::Silent(Connection::new(Rc::clone(reactor), peer).parked_at(place))
    } else {
        let Ok(session) = ParkedSession::decode(record) else {
            return Err((Dropped::Unreadable, place));
        };
        let id = reactor.next_session();
        let slot = session.slave();
        let slot = slot.and_then(|slave| reactor.roll().adopt(slave, &session, id));
        let Some(slot) = slot else {
            return Err((Dropped::Unknown, place));
        };
        let resumed = Resumed {
            id,
            slot,
            streams: session.streams,
        };
        let connection = Connection::resume(Rc::clone(reactor), peer, resumed).parked_at(place);
        Begun::Open(connection, mark == Mark::Greeting)
    };
    accepting.admission.count_in(peer.ip());
    Ok(connection)
}

/// `None` if it is broken.
fn begins_with_hello(stream: &StdStream, buffer: &mut [u8]) -> Option<bool> {
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

fn serve(accepting: &Accepting, begun: Begun, stream: TcpStream, tally: &mut Tally) {
    let stop = accepting.stop.clone();
    let tasks = &accepting.tasks;
    let admission = Rc::clone(&accepting.admission);
    match begun {
        Begun::Silent(connection) => {
            tally.greeted += 1;
            tasks.spawn_local(connection.let_in_by(admission).serve(stream, stop));
        }
        Begun::Open(connection, owes_welcome) => {
            tally.resumed += 1;
            let connection = connection.let_in_by(admission);
            tasks.spawn_local(connection.go_on(stream, owes_welcome, stop));
        }
    }
}
