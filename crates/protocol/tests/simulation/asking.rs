//! One question of a slave in datagram mode, until it is answered or given up.

use std::time::Duration;

use fastrand::Rng;
use rollcall_protocol::Moment;
use rollcall_protocol::datagram::{Resend, ResendLimits, open_answer};
use rollcall_protocol::frame;
use rollcall_protocol::limits::PER_MESSAGE_FRAMES_MAX;
use rollcall_protocol::session::SlaveSession;
use rollcall_protocol::session::slave::{Opened, Pick, Step};
use rollcall_protocol::wire::{
    ErrorCode, Gap, Hello, Mark, Mode, Report, SlaveGoodbye, ToMaster, ToSlave, to_master::Kind,
};

use crate::datagrams::Port;
use crate::exchange::{Over, TIMEOUTS, Window, hello, millis, report};
use crate::slave::Surroundings;
use crate::spool::{Body, Spool};

const RESEND: ResendLimits = ResendLimits {
    first: Duration::from_millis(50),
    longest: Duration::from_millis(400),
};

/// What has come of a question.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) over: Over,
    /// The master has taken it for a copy of an older one.
    pub(crate) not_taken: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Asking {
    port: Port,
    slave: u8,
    number: u64,
    bytes: Vec<u8>,
    session: SlaveSession,
    /// What is to be acked.
    sent: Vec<Mark>,
    /// The last entry that was taken from the spool.
    handed_out: u64,
    owed_told: bool,
    owed: Vec<Gap>,
    is_goodbye: bool,
    up_since: Option<Moment>,
    window: Option<Window>,
    resend: Resend,
    again_at: Moment,
    give_up_at: Moment,
}

impl Asking {
    /// Builds the question `number` of at most `room` bytes. It is sent by [`Self::handle`].
    pub(crate) fn begin(
        (slave, number): (u8, u64),
        spool: &Spool,
        owed: Vec<Gap>,
        leaving: bool,
        room: usize,
        world: &mut Surroundings<'_>,
    ) -> Self {
        let pending = spool.pending();
        let mut session = SlaveSession::new(world.now, TIMEOUTS, pending.clone(), 0);
        session.send_with_hello(PER_MESSAGE_FRAMES_MAX);
        let announced: Vec<u64> = pending.iter().map(|pending| pending.stream).collect();
        let mut messages: Vec<Kind> = Vec::new();
        let mut sent = Vec::new();
        for gap in &owed {
            session.handle_gap_sent(gap, world.now);
            sent.push(mark(gap.stream, gap.last));
            messages.push(Kind::Gap(*gap));
        }
        let most = usize::try_from(PER_MESSAGE_FRAMES_MAX).expect("small") - 1;
        while messages.len() < most.min(room) {
            let next = spool.after(session.sent());
            let next = next.filter(|entry| announced.contains(&entry.stream));
            let pick = session.pick(next.map(|entry| entry.id), Some(spool.newest_id()));
            messages.push(match pick {
                Pick::Wait => break,
                Pick::Preview(id) => {
                    let (entry, number) = spool.report(id).expect("the newest is never given up");
                    session.handle_sent(pick, 0, 0, world.now);
                    Kind::Report(Report {
                        preview: true,
                        ..report(&entry, number, true)
                    })
                }
                Pick::InOrder { live, .. } => {
                    let entry = next.expect("it was picked");
                    session.handle_sent(pick, entry.stream, entry.last, world.now);
                    sent.push(mark(entry.stream, entry.last));
                    match entry.body {
                        Body::Report(number) => Kind::Report(report(&entry, number, live)),
                        Body::Gap(reason) => Kind::Gap(entry.to_gap(reason)),
                    }
                }
            });
        }
        let is_goodbye = leaving && spool.after(session.sent()).is_none();
        if is_goodbye {
            messages.push(Kind::Goodbye(SlaveGoodbye::default()));
        }
        let hello = Hello {
            question: number,
            frames: u32::try_from(messages.len()).expect("few"),
            ..hello(slave, Mode::Datagram, spool)
        };
        let port = world.network.new_name();
        world.network.datagrams.open(port);
        let mut bytes = Vec::new();
        for kind in std::iter::once(Kind::Hello(hello)).chain(messages) {
            let message = ToMaster { kind: Some(kind) };
            world.oracle.sent(port, &message);
            frame::encode(&message, &mut bytes).expect("it is small");
        }
        Self {
            port,
            slave,
            number,
            bytes,
            handed_out: session.sent(),
            session,
            sent,
            owed_told: !owed.is_empty(),
            owed: Vec::new(),
            is_goodbye,
            up_since: None,
            window: None,
            resend: Resend::new(RESEND),
            again_at: world.now,
            give_up_at: world.now + TIMEOUTS.welcome,
        }
    }

    pub(crate) fn port(&self) -> Port {
        self.port
    }

    pub(crate) fn handed_out(&self) -> u64 {
        self.handed_out
    }

    pub(crate) fn deadline(&self) -> Moment {
        self.again_at.min(self.give_up_at)
    }

    /// Takes the answer if it has come; sends the question if it is time.
    pub(crate) fn handle(
        &mut self,
        spool: &mut Spool,
        rng: &mut Rng,
        world: &mut Surroundings<'_>,
    ) -> Option<Answered> {
        if let Some(bytes) = world.network.datagrams.at_slave(self.port) {
            // The socket is of this question only.
            let messages = open_answer(&bytes, self.number).expect("the master sends answers");
            return Some(self.answered(messages, spool, world));
        }
        if self.give_up_at <= world.now {
            world.oracle.counts.add("questions_given_up");
            return Some(Answered {
                over: self.lost(),
                not_taken: false,
            });
        }
        if self.again_at <= world.now {
            if self.resend.sent() > 0 {
                world.oracle.counts.add("questions_resent");
            }
            let counts = &mut world.oracle.counts;
            let datagrams = &mut world.network.datagrams;
            datagrams.send(true, self.port, &self.bytes, counts);
            self.again_at = world.now + self.resend.handle_sent(rng.u64(..));
        }
        None
    }

    fn answered(
        &mut self,
        messages: Vec<ToSlave>,
        spool: &mut Spool,
        world: &mut Surroundings<'_>,
    ) -> Answered {
        let mut acked = Vec::new();
        let mut over = None;
        for message in messages {
            world.oracle.received(self.port, &message);
            let end = self.take(message, &mut acked, world);
            over = over.or(end);
        }
        let covers = |sent: &&Mark| {
            let covers = |mark: &Mark| mark.stream == sent.stream && mark.sequence >= sent.sequence;
            acked.iter().any(covers)
        };
        let covered = self.sent.iter().filter(covers).count();
        for mark in &acked {
            for entry in spool.acked(mark.stream, mark.sequence) {
                world.oracle.lets_go(self.slave, &entry);
            }
        }
        let is_all = covered == self.sent.len();
        let not_taken = over.is_none() && covered == 0 && !is_all;
        let over = match over {
            Some(Over::Told { .. }) | None if self.is_goodbye && is_all => Over::Stopped,
            Some(over) => over,
            None if not_taken => self.lost(),
            None => Over::Again {
                owed: std::mem::take(&mut self.owed),
            },
        };
        Answered { over, not_taken }
    }

    fn take(
        &mut self,
        message: ToSlave,
        acked: &mut Vec<Mark>,
        world: &mut Surroundings<'_>,
    ) -> Option<Over> {
        match self.session.handle_message(message, world.now) {
            Step::Opened(opened) => {
                self.opened(opened, acked, world.now);
                None
            }
            Step::Acked { ack, .. } => {
                acked.push(mark(ack.stream, ack.sequence));
                None
            }
            Step::Resync(resync) => Some(Over::Resync(resync.stream)),
            Step::Ahead(mark) => Some(Over::Resync(mark.stream)),
            Step::Goodbye(goodbye) => {
                acked.extend(&goodbye.marks);
                let [min, max] = [goodbye.back_min_ms, goodbye.back_max_ms].map(millis);
                Some(Over::Told {
                    told: Some((min, max)),
                })
            }
            Step::Refused(error) => {
                let hole = error.code() == ErrorCode::Hole;
                if hole && !self.owed_told && !self.owed.is_empty() {
                    world.oracle.counts.add("holes_explained");
                    let owed = std::mem::take(&mut self.owed);
                    return Some(Over::Again { owed });
                }
                let after = millis(error.retry_after_ms);
                self.window = error.retry.then_some((after, after * 2));
                Some(self.lost())
            }
            Step::ComeBack(_) | Step::Skipped => None,
        }
    }

    fn opened(&mut self, opened: Opened, acked: &mut Vec<Mark>, now: Moment) {
        self.up_since = Some(now);
        let welcome = &opened.welcome;
        self.window = Some((millis(welcome.back_min_ms), millis(welcome.back_max_ms)));
        acked.extend(&opened.marks);
        self.owed = opened.gaps;
    }

    fn lost(&mut self) -> Over {
        Over::Lost {
            told: self.window,
            up_since: self.up_since,
            owed: std::mem::take(&mut self.owed),
        }
    }
}

fn mark(stream: u64, sequence: u64) -> Mark {
    Mark { stream, sequence }
}
