//! What goes out: Hello, the spool's entries, the goodbye.

use prost::Message;
use rollcall_os::clock;
use rollcall_protocol::limits::{self, PER_MESSAGE_FRAMES_MAX};
use rollcall_protocol::session::slave::Pick;
use rollcall_protocol::wire::{self, ToMaster, to_master::Kind};

use super::{Exchange, Leaving};
use crate::link::feed::{place_of, to_message, to_preview};
use crate::link::hello::{goodbye, hello};
use crate::spool::{SpoolError, Standing};

/// Bytes that may wait for the socket before no more is taken from the spool.
const UNWRITTEN_MAX: usize = limits::FRAME_BYTES_MAX;

impl Exchange<'_> {
    pub(super) fn hello(&self, standing: Standing, frames: u32) -> Kind {
        Kind::Hello(hello(&self.link.config, standing, self.mode(), frames))
    }

    /// How the reports come on this connection: while the ports are used up, pooled all the same.
    fn mode(&self) -> wire::Mode {
        if self.per_message {
            self.link.config.mode
        } else {
            wire::Mode::Pooled
        }
    }

    /// Per-message mode: Hello with as many messages as one connection carries, all in the first
    /// segment, and the goodbye if it is time for it.
    pub(super) async fn queue_all(&mut self, standing: Standing) -> Result<(), SpoolError> {
        let owed = std::mem::take(&mut self.link.owed);
        self.owed_told = !owed.is_empty();
        let mut messages: Vec<Kind> = Vec::new();
        for gap in owed {
            self.session.handle_gap_sent(&gap, clock::boot());
            messages.push(Kind::Gap(gap));
        }
        let room = usize::try_from(PER_MESSAGE_FRAMES_MAX).unwrap_or(1) - 1;
        self.session.send_with_hello(PER_MESSAGE_FRAMES_MAX);
        while messages.len() < room
            && let Some(message) = self.next_message().await?
        {
            messages.push(message);
        }
        self.feed.fill().await?;
        let over = self.link.is_stopping() && (self.feed.is_empty() || self.link.is_drained());
        if over {
            messages.push(goodbye());
            self.goodbye_said = true;
        }
        let frames = u32::try_from(messages.len()).unwrap_or(PER_MESSAGE_FRAMES_MAX);
        let hello = self.hello(standing, frames);
        self.queue(hello);
        for message in messages {
            self.queue(message);
        }
        Ok(())
    }

    /// Pooled mode: as much as the window allows.
    pub(super) async fn send_more(&mut self) -> Result<(), SpoolError> {
        while self.connection.unwritten() < UNWRITTEN_MAX
            && let Some(message) = self.next_message().await?
        {
            self.queue(message);
        }
        if self.feed.is_elsewhere() {
            self.leaving.get_or_insert(Leaving::Again);
        }
        let sent_all = self.feed.is_empty() && self.session.in_flight() == 0;
        if self.link.is_stopping() && (sent_all || self.link.is_drained()) {
            self.queue(goodbye());
            self.session.handle_goodbye_sent(clock::boot());
            self.goodbye_said = true;
        }
        Ok(())
    }

    /// What the session picks next from the spool; `None` if nothing is to be sent now.
    async fn next_message(&mut self) -> Result<Option<Kind>, SpoolError> {
        loop {
            let newest = *self.newest.borrow_and_update();
            self.feed.fill_up_to(newest).await?;
            let next = self.feed.next().map(|entry| entry.id);
            let pick = self.session.pick(next, Some(newest));
            let message = match pick {
                Pick::Wait => return Ok(None),
                Pick::Preview(entry) => self.preview(entry).await?,
                Pick::InOrder { live, .. } => self.in_order(pick, live).await?,
            };
            if message.is_some() {
                return Ok(message);
            }
        }
    }

    /// The newest report, ahead of the backlog; `None` if there is none that fits.
    async fn preview(&mut self, picked: u64) -> Result<Option<Kind>, SpoolError> {
        let newest = self.link.spool.newest().await?;
        // A newer one may have come meanwhile.
        let id = newest.as_ref().map_or(picked, |entry| entry.id.max(picked));
        self.session
            .handle_sent(Pick::Preview(id), 0, 0, clock::boot());
        let message = newest.and_then(|entry| to_preview(entry.body));
        Ok(message.filter(|message| self.fits(message)))
    }

    /// The next entry; `None` if it does not fit and has become a gap.
    async fn in_order(&mut self, pick: Pick, live: bool) -> Result<Option<Kind>, SpoolError> {
        let Some(entry) = self.feed.next() else {
            return Ok(None);
        };
        let message = to_message(&entry.body, live);
        let place = place_of(&entry.body);
        if !self.fits(&message) {
            self.feed.give_up_next().await?;
            return Ok(None);
        }
        self.session
            .handle_sent(pick, place.stream, place.sequence, clock::boot());
        self.link.note_sent(place);
        self.feed.advance();
        Ok(Some(message))
    }

    fn fits(&self, kind: &Kind) -> bool {
        // The message around it takes a tag and a length.
        const AROUND: usize = 8;
        let bytes = match kind {
            Kind::Report(report) => report.encoded_len(),
            _ => 0,
        };
        bytes + AROUND <= self.link.payload_bytes_max
    }

    pub(super) fn queue(&mut self, kind: Kind) {
        let message = ToMaster { kind: Some(kind) };
        if let Err(error) = self.connection.queue(&message) {
            // Reports were measured before; all else is small.
            tracing::error!(event = "message_too_large", error = %error, "a message is not sent");
        }
    }
}
