//! What a connection does so that the next process can go on with it at any moment: it is parked
//! before anything of its Hello is consumed, and what it has begun and not ended is marked on it.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use rollcall_os::clock;
use rollcall_os::parking::{self, Mark as Begun, Place};
use rollcall_protocol::session::MasterSession;
use rollcall_protocol::wire::{Ack, Hello, Mark, Mode, to_slave::Kind};
use tokio_util::sync::CancellationToken;

use super::{Connection, End, Read, Transport, message};
use crate::adoption::ParkedSession;
use crate::reactor::Reactor;
use crate::roll::{SessionId, Slot};

/// A session of the process before.
#[derive(Debug)]
pub(crate) struct Resumed {
    /// Its name in this process.
    pub(crate) id: SessionId,
    /// Its slave.
    pub(crate) slot: Slot,
    /// The streams that its Hello announced, and what is durable of each.
    pub(crate) marks: Vec<Mark>,
    /// Whether Hello was not answered.
    pub(crate) owes_welcome: bool,
}

impl Connection {
    /// A connection whose session was opened by the process before.
    pub(crate) fn resume(reactor: Rc<Reactor>, peer: SocketAddr, resumed: &Resumed) -> Self {
        let streams = resumed.marks.iter().map(|mark| mark.stream);
        let session = MasterSession::resume(streams.collect());
        Self::of(reactor, peer, session, resumed.id, Some(resumed.slot))
    }

    /// It is parked already.
    pub(crate) fn parked_at(mut self, place: Option<Place>) -> Self {
        self.place = place;
        self
    }

    /// Goes on with a session of the process before, to its end.
    #[expect(
        clippy::manual_async_fn,
        reason = "the future of an async fn holds its arguments twice, and there are many idle ones"
    )]
    pub(crate) fn go_on(
        mut self,
        mut transport: impl Transport,
        resumed: Resumed,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> {
        async move {
            let said = Box::pin(self.say_where_it_stands(&mut transport, resumed)).await;
            let end = match said {
                Ok(()) => self.run(&mut transport, &stop).await,
                Err(error) => End::Broken(error),
            };
            Box::pin(self.part(transport, end)).await;
        }
    }

    /// Acks what was durable of each stream when this process began: the one before may have died
    /// before it could.
    async fn say_where_it_stands(
        &self,
        transport: &mut impl Transport,
        resumed: Resumed,
    ) -> io::Result<()> {
        let mut out = Vec::new();
        let sent_ms = clock::wall_ms();
        if resumed.owes_welcome {
            let welcome = self.reactor.welcome(resumed.marks.clone(), 0);
            self.encode(&message(Kind::Welcome(welcome)), &mut out);
        }
        for mark in resumed.marks.iter().filter(|mark| mark.sequence > 0) {
            let ack = Ack {
                stream: mark.stream,
                sequence: mark.sequence,
                // When the bytes were read is not known any more; so the slave does not take the
                // restart for a part of the round trip.
                received_ms: 0,
                sent_ms,
            };
            self.encode(&message(Kind::Ack(ack)), &mut out);
        }
        self.write(transport, &out).await?;
        self.mark(transport, Begun::Whole)
    }

    /// Its Hello is accepted: the next process can go on with it from now on.
    pub(super) fn park(&mut self, transport: &impl Transport, hello: &Hello, opened_ms: i64) {
        let Some(socket) = transport.descriptor() else {
            return;
        };
        if self.place.is_none() && hello.mode() == Mode::Pooled {
            let session = ParkedSession::new(hello, opened_ms);
            self.place = self.reactor.parking().park(socket, &session);
        }
    }

    /// Marks what is half done once the bytes are consumed, until it is answered.
    pub(super) fn mark_before(&self, transport: &impl Transport, read: &Read) -> io::Result<()> {
        if read.is_opened {
            self.mark(transport, Begun::Greeting)
        } else if self.session.is_complete() {
            // It is to be closed, whether this process comes to it or not.
            self.mark(transport, Begun::Torn)
        } else {
            Ok(())
        }
    }

    /// Takes the mark of [`Self::mark_before`] away.
    pub(super) fn mark_after(&self, transport: &impl Transport, read: &Read) -> io::Result<()> {
        if read.is_opened {
            self.mark(transport, Begun::Whole)
        } else {
            Ok(())
        }
    }

    fn mark(&self, transport: &impl Transport, mark: Begun) -> io::Result<()> {
        match (&self.place, transport.descriptor()) {
            (Some(_), Some(socket)) => parking::leave(&socket, mark),
            _ => Ok(()),
        }
    }

    /// Writes frames, so that the next process can tell if one was torn.
    pub(super) async fn write(
        &self,
        transport: &mut impl Transport,
        frames: &[u8],
    ) -> io::Result<()> {
        let timeout = self.reactor.rules().write_timeout;
        if self.place.is_some() {
            transport.write_marked(frames, timeout).await
        } else {
            transport.write(frames, timeout).await
        }
    }

    /// It has ended: the parked copy must not keep it open.
    pub(super) fn give_up_place(&mut self, transport: &impl Transport) {
        let Some(place) = self.place.take() else {
            return;
        };
        if let Some(socket) = transport.descriptor() {
            // It is over if that can't be done.
            let _ = parking::shut_down(&socket);
        }
        self.reactor.parking().leave(&place);
    }
}
