//! The spool's entries on their way into one session.

use std::collections::VecDeque;

use rollcall_protocol::wire::{self, GapReason, Mark, Pending, to_master::Kind};

use crate::spool::{BEFORE_ALL, Body, Entry, Spool, SpoolError};

/// Entries read from the spool at once.
const READ_AHEAD: usize = 16;

/// Reads the spool in order, a little ahead.
#[derive(Debug)]
pub(super) struct Feed {
    spool: Spool,
    announced: Vec<u64>,
    ahead: VecDeque<Entry>,
    /// The id of the last entry read.
    read: u64,
}

impl Feed {
    /// Begins at the oldest entry. Only the streams of `pending` may go into the session.
    pub(super) fn new(spool: Spool, pending: &[Pending]) -> Self {
        Self {
            spool,
            announced: pending.iter().map(|pending| pending.stream).collect(),
            ahead: VecDeque::new(),
            read: BEFORE_ALL,
        }
    }

    /// Reads ahead if nothing is left of what was read.
    pub(super) async fn fill(&mut self) -> Result<(), SpoolError> {
        if self.ahead.is_empty() {
            self.ahead = self.spool.read_after(self.read, READ_AHEAD).await?.into();
            self.read = self.ahead.back().map_or(self.read, |entry| entry.id);
        }
        Ok(())
    }

    /// The same, if there is anything up to `newest` that was not read.
    pub(super) async fn fill_up_to(&mut self, newest: u64) -> Result<(), SpoolError> {
        if self.read == BEFORE_ALL || self.read < newest {
            self.fill().await?;
        }
        Ok(())
    }

    /// Whether nothing is left of what was read.
    pub(super) fn is_empty(&self) -> bool {
        self.ahead.is_empty()
    }

    /// The next entry of a stream that was announced.
    pub(super) fn next(&self) -> Option<&Entry> {
        self.ahead
            .front()
            .filter(|entry| self.announced.contains(&place_of(&entry.body).stream))
    }

    /// Whether the next entry can't go into this session: Hello has room for so many streams, and
    /// the next Hello will announce more.
    pub(super) fn is_elsewhere(&self) -> bool {
        !self.ahead.is_empty() && self.next().is_none()
    }

    /// The next entry has been sent.
    pub(super) fn advance(&mut self) {
        self.ahead.pop_front();
    }

    /// The next entry does not fit into a frame of this master: its loss is told instead.
    pub(super) async fn give_up_next(&mut self) -> Result<(), SpoolError> {
        let Some(Entry { id, body }) = self.ahead.front_mut() else {
            return Ok(());
        };
        if let Body::Report(report) = body {
            tracing::error!(
                event = "report_too_large",
                stream = %format_args!("{:016x}", report.stream),
                sequence = report.sequence,
                "a report is larger than the master allows and is given up: shorten the output of checks"
            );
            let gap = wire::Gap {
                stream: report.stream,
                first: report.sequence,
                last: report.sequence,
                reason: GapReason::Unknown.into(),
                from_ms: report.time_ms,
                to_ms: report.time_ms,
            };
            *body = Body::Gap(gap);
            self.spool.give_up(*id, GapReason::Unknown).await?;
        }
        Ok(())
    }
}

/// The stream that an entry belongs to, and its last sequence.
pub(super) fn place_of(body: &Body) -> Mark {
    let (stream, sequence) = match body {
        Body::Report(report) => (report.stream, report.sequence),
        Body::Gap(gap) => (gap.stream, gap.last),
    };
    Mark { stream, sequence }
}

/// A report as the message that goes ahead of the backlog.
pub(super) fn to_preview(body: Body) -> Option<Kind> {
    match body {
        Body::Report(report) => Some(Kind::Report(wire::Report {
            live: true,
            preview: true,
            ..report
        })),
        Body::Gap(_) => None,
    }
}

/// The entry as a message.
pub(super) fn to_message(body: &Body, live: bool) -> Kind {
    match body {
        Body::Report(report) => Kind::Report(wire::Report {
            live,
            ..report.clone()
        }),
        Body::Gap(gap) => Kind::Gap(*gap),
    }
}
