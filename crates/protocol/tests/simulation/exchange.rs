//! One connection of a slave, from Hello to its end.

use std::time::Duration;

use rollcall_protocol::Moment;
use rollcall_protocol::frame::{self, Frames};
use rollcall_protocol::limits::{FRAME_PAYLOAD_BYTES_MAX, PER_MESSAGE_FRAMES_MAX};
use rollcall_protocol::session::SlaveSession;
use rollcall_protocol::session::slave::{Opened, Pick, SlaveTimeouts, Step};
use rollcall_protocol::wire::{
    ErrorCode, Gap, Hello, Mark, Mode, Report, SlaveGoodbye, ToMaster, ToSlave, to_master::Kind,
};

use crate::network::{ConnId, Way};
use crate::slave::Surroundings;
use crate::spool::{Body, Entry, Spool};

pub(crate) const TIMEOUTS: SlaveTimeouts = SlaveTimeouts {
    welcome: Duration::from_secs(1),
    ack: Duration::from_secs(3),
};
/// How long the master may take to close first.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A window in which to come back.
pub(crate) type Window = (Duration, Duration);

/// How a connection has ended.
#[derive(Debug)]
pub(crate) enum Over {
    /// All was acked, or there is more to say on a new connection.
    Again { owed: Vec<Gap> },
    /// The goodbye has been said.
    Stopped,
    /// A new stream is to begin instead of this one.
    Resync(u64),
    /// The master goes away.
    Told { told: Option<Window> },
    /// Anything else.
    Lost {
        told: Option<Window>,
        up_since: Option<Moment>,
        owed: Vec<Gap>,
    },
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Exchange {
    connection: ConnId,
    slave: u8,
    mode: Mode,
    session: SlaveSession,
    /// Entries of streams that Hello did not announce wait for the next connection.
    announced: Vec<u64>,
    up_since: Option<Moment>,
    window: Option<Window>,
    goodbye_said: bool,
    owed_told: bool,
    owed: Vec<Gap>,
    close_by: Option<Moment>,
}

impl Exchange {
    /// Says Hello, in per-message mode together with the messages.
    pub(crate) fn begin(
        slave: u8,
        mode: Mode,
        spool: &Spool,
        owed: Vec<Gap>,
        leaving: bool,
        world: &mut Surroundings<'_>,
    ) -> Self {
        let pending = spool.pending();
        let mut exchange = Self {
            connection: world.network.connect(),
            slave,
            mode,
            announced: pending.iter().map(|pending| pending.stream).collect(),
            session: SlaveSession::new(world.now, TIMEOUTS, pending.clone(), 0),
            up_since: None,
            window: None,
            goodbye_said: false,
            owed_told: !owed.is_empty(),
            owed: Vec::new(),
            close_by: None,
        };
        let mut messages = Vec::new();
        if mode == Mode::PerMessage {
            exchange.fill(spool, owed, leaving, &mut messages, world);
        }
        let hello = Hello {
            frames: u32::try_from(messages.len()).expect("few"),
            ..hello(slave, mode, spool)
        };
        messages.insert(0, Kind::Hello(hello));
        exchange.write(messages, world);
        exchange
    }

    /// Per-message mode: what goes out with Hello.
    fn fill(
        &mut self,
        spool: &Spool,
        owed: Vec<Gap>,
        leaving: bool,
        messages: &mut Vec<Kind>,
        world: &mut Surroundings<'_>,
    ) {
        for gap in owed {
            self.session.handle_gap_sent(&gap, world.now);
            messages.push(Kind::Gap(gap));
        }
        self.session.send_with_hello(PER_MESSAGE_FRAMES_MAX);
        let room = usize::try_from(PER_MESSAGE_FRAMES_MAX).expect("small") - 1;
        while messages.len() < room
            && let Some(message) = self.next_message(spool, world)
        {
            messages.push(message);
        }
        if leaving && spool.after(self.session.sent()).is_none() {
            messages.push(Kind::Goodbye(SlaveGoodbye::default()));
            self.goodbye_said = true;
        }
    }

    pub(crate) fn connection(&self) -> ConnId {
        self.connection
    }

    /// The last entry that was taken from the spool.
    pub(crate) fn handed_out(&self) -> u64 {
        self.session.sent()
    }

    pub(crate) fn deadline(&self) -> Option<Moment> {
        [self.session.deadline(), self.close_by]
            .into_iter()
            .flatten()
            .min()
    }

    /// Takes what has come, sends what may go. Returns how it is over, once it is.
    pub(crate) fn handle(
        &mut self,
        spool: &mut Spool,
        leaving: bool,
        world: &mut Surroundings<'_>,
    ) -> Option<Over> {
        if let Some(over) = self.take_messages(spool, world) {
            return Some(over);
        }
        if self.mode == Mode::Pooled && self.session.is_open() {
            self.send_more(spool, leaving, world);
        }
        if world.network.ended(self.connection, Way::Down).is_some() {
            return Some(self.closed(world));
        }
        if self.close_by.is_some_and(|by| by <= world.now) {
            world.oracle.counts.add("master_did_not_close");
            return Some(self.done());
        }
        if self.session.handle_timeout(world.now).is_err() {
            world.oracle.counts.add("silences");
            return Some(self.lost());
        }
        None
    }

    fn closed(&mut self, world: &mut Surroundings<'_>) -> Over {
        let acked = self.session.is_open() && self.session.in_flight() == 0;
        if acked && (self.goodbye_said || self.mode == Mode::PerMessage) {
            world.oracle.counts.add("master_closed_first");
            return self.done();
        }
        self.lost()
    }

    fn done(&mut self) -> Over {
        if self.goodbye_said {
            Over::Stopped
        } else {
            Over::Again {
                owed: std::mem::take(&mut self.owed),
            }
        }
    }

    fn lost(&mut self) -> Over {
        Over::Lost {
            told: self.window,
            up_since: self.up_since,
            owed: std::mem::take(&mut self.owed),
        }
    }

    fn take_messages(&mut self, spool: &mut Spool, world: &mut Surroundings<'_>) -> Option<Over> {
        let arrived = world.network.arrived(self.connection, Way::Down).to_vec();
        let mut frames = Frames::new(&arrived, FRAME_PAYLOAD_BYTES_MAX);
        let mut over = None;
        while over.is_none() {
            let Some(frame) = frames.next_frame().expect("the master sends frames") else {
                break;
            };
            let message: ToSlave = frame.decode().expect("the master sends messages");
            world.oracle.received(self.connection, &message);
            over = self.take(message, spool, world);
        }
        let taken = frames.taken();
        world.network.consume(self.connection, Way::Down, taken);
        over
    }

    fn take(
        &mut self,
        message: ToSlave,
        spool: &mut Spool,
        world: &mut Surroundings<'_>,
    ) -> Option<Over> {
        match self.session.handle_message(message, world.now) {
            Step::Opened(opened) => self.opened(opened, spool, world),
            Step::Acked { ack, round_trip } => {
                assert!(round_trip.is_none_or(|trip| trip <= TIMEOUTS.ack + CLOSE_WAIT));
                let mark = Mark {
                    stream: ack.stream,
                    sequence: ack.sequence,
                };
                self.let_go(&[mark], spool, world);
                self.await_close(world.now);
            }
            Step::Resync(resync) => return Some(Over::Resync(resync.stream)),
            Step::Ahead(mark) => return Some(Over::Resync(mark.stream)),
            Step::Goodbye(goodbye) => {
                self.let_go(&goodbye.marks, spool, world);
                if self.goodbye_said {
                    return None;
                }
                let [min, max] = [goodbye.back_min_ms, goodbye.back_max_ms].map(millis);
                return Some(Over::Told {
                    told: Some((min, max)),
                });
            }
            Step::Refused(error) => {
                let hole = error.code() == ErrorCode::Hole;
                if hole && !self.owed_told && !self.owed.is_empty() {
                    world.oracle.counts.add("holes_explained");
                    return Some(self.done());
                }
                assert!(
                    error.retry || error.code() == ErrorCode::Timeout,
                    "{error:?}"
                );
                let after = millis(error.retry_after_ms);
                self.window = error.retry.then_some((after, after * 2));
                return Some(self.lost());
            }
            Step::ComeBack(_) | Step::Skipped => {}
        }
        None
    }

    fn opened(&mut self, opened: Opened, spool: &mut Spool, world: &mut Surroundings<'_>) {
        self.up_since = Some(world.now);
        let welcome = &opened.welcome;
        self.window = Some((millis(welcome.back_min_ms), millis(welcome.back_max_ms)));
        self.let_go(&opened.marks, spool, world);
        if self.mode == Mode::PerMessage {
            self.owed = opened.gaps;
            self.await_close(world.now);
            return;
        }
        let mut messages = Vec::new();
        for gap in opened.gaps {
            self.session.handle_gap_sent(&gap, world.now);
            messages.push(Kind::Gap(gap));
        }
        self.write(messages, world);
    }

    fn await_close(&mut self, now: Moment) {
        if self.mode == Mode::PerMessage && self.session.in_flight() == 0 {
            self.close_by.get_or_insert(now + CLOSE_WAIT);
        }
    }

    fn let_go(&self, marks: &[Mark], spool: &mut Spool, world: &mut Surroundings<'_>) {
        for mark in marks {
            for entry in spool.acked(mark.stream, mark.sequence) {
                world.oracle.lets_go(self.slave, &entry);
            }
        }
    }

    fn send_more(&mut self, spool: &Spool, leaving: bool, world: &mut Surroundings<'_>) {
        let mut messages = Vec::new();
        while !self.goodbye_said
            && let Some(message) = self.next_message(spool, world)
        {
            messages.push(message);
        }
        if leaving && !self.goodbye_said && spool.is_empty() && self.session.in_flight() == 0 {
            messages.push(Kind::Goodbye(SlaveGoodbye::default()));
            self.session.handle_goodbye_sent(world.now);
            self.goodbye_said = true;
        }
        self.write(messages, world);
    }

    /// What the session picks from the spool.
    fn next_message(&mut self, spool: &Spool, world: &Surroundings<'_>) -> Option<Kind> {
        let announced = |entry: &Entry| self.announced.contains(&entry.stream);
        let next = spool.after(self.session.sent()).filter(announced);
        let next_id = next.map(|entry| entry.id);
        let pick = self.session.pick(next_id, Some(spool.newest_id()));
        match pick {
            Pick::Wait => None,
            Pick::Preview(id) => {
                self.session.handle_sent(pick, 0, 0, world.now);
                // It may have been acked already, while an older stream still waits.
                let Some((entry, number)) = spool.report(id) else {
                    return self.next_message(spool, world);
                };
                let report = report(&entry, number, true);
                Some(Kind::Report(Report {
                    preview: true,
                    ..report
                }))
            }
            Pick::InOrder { live, .. } => {
                let entry = next.expect("it was picked");
                self.session
                    .handle_sent(pick, entry.stream, entry.last, world.now);
                Some(match entry.body {
                    Body::Report(number) => Kind::Report(report(&entry, number, live)),
                    Body::Gap(reason) => Kind::Gap(entry.to_gap(reason)),
                })
            }
        }
    }

    fn write(&self, messages: Vec<Kind>, world: &mut Surroundings<'_>) {
        let mut out = Vec::new();
        for kind in messages {
            let message = ToMaster { kind: Some(kind) };
            world.oracle.sent(self.connection, &message);
            frame::encode(&message, &mut out).expect("it is small");
        }
        let counts = &mut world.oracle.counts;
        world.network.write(self.connection, Way::Up, &out, counts);
    }
}

/// What a slave says of itself.
pub(crate) fn hello(slave: u8, mode: Mode, spool: &Spool) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        slave_id: vec![slave; 16],
        name: format!("slave-{slave}"),
        stream: spool.stream,
        next_sequence: spool.next_sequence,
        interval_ms: 100,
        mode: mode.into(),
        agent_version: "sim".into(),
        backlog: spool.len() as u64,
        pending: spool.pending(),
        ..Hello::default()
    }
}

/// The report's number stands where its time would.
pub(crate) fn report(entry: &Entry, number: u64, live: bool) -> Report {
    Report {
        stream: entry.stream,
        sequence: entry.first,
        time_ms: i64::try_from(number).expect("few"),
        live,
        ..Report::default()
    }
}

pub(crate) fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}
