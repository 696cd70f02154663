//! Scripted slaves: what they send is known beforehand, and they record what was acked.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rollcall_os::clock;
use rollcall_protocol::wire::{
    Check, Gap, GapReason, GoodbyeReason, Hello, Mode, Pending, Report, SlaveGoodbye, Status,
    to_master, to_slave,
};

use crate::peer::Peer;

/// A master that lives answers within this, also under strace on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Reports that the receipt of a scripted gap covers.
const GAP: u64 = 3;

/// One message of a member's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// The report of this sequence.
    Report(u64),
    /// The receipt for these.
    Gap(u64, u64),
}

impl Item {
    fn last(self) -> u64 {
        match self {
            Self::Report(sequence) | Self::Gap(_, sequence) => sequence,
        }
    }
}

/// A scripted slave.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// Its stream.
    pub stream: u64,
    /// All that it has sent, in order.
    pub sent: Vec<Item>,
    /// The highest sequence that was acked.
    pub acked: u64,
    /// Whether the master has answered its Hello.
    pub welcomed: bool,
    id: [u8; 16],
    mode: Mode,
    peer: Option<Peer>,
}

/// One step of a script, by the member's place in the fleet.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// A connection that stays.
    Open(usize),
    /// So many reports, each acked before the next.
    OneByOne(usize, u32),
    /// So many reports without waiting in between.
    Together(usize, u32),
    /// A gap.
    Gap(usize),
    /// The newest of so many reports as a preview, then all in order.
    Backlog(usize, u32),
    /// A report on a connection of its own.
    Brief(usize),
    /// Leaves on purpose.
    Goodbye(usize),
}

/// A script in which every kind of message occurs.
pub const SCRIPT: [Step; 14] = [
    Step::Open(0),
    Step::OneByOne(0, 4),
    Step::Brief(1),
    Step::Brief(1),
    Step::Open(2),
    Step::Backlog(2, 5),
    Step::Together(0, 6),
    Step::Gap(0),
    Step::OneByOne(0, 2),
    Step::Brief(1),
    Step::OneByOne(2, 2),
    Step::Gap(2),
    Step::Together(2, 3),
    Step::Goodbye(0),
];

/// Scripted slaves at one master.
#[derive(Debug)]
pub struct Fleet {
    /// The slaves.
    pub members: [Member; 3],
}

impl Fleet {
    /// Two with a connection that stays, and one with a connection for each report.
    pub fn new() -> Self {
        let member = |name, number: u8, mode| Member {
            name,
            stream: 0xa000 + u64::from(number),
            sent: Vec::new(),
            acked: 0,
            welcomed: false,
            id: [number; 16],
            mode,
            peer: None,
        };
        Self {
            members: [
                member("pooled", 1, Mode::Pooled),
                member("brief", 2, Mode::PerMessage),
                member("late", 3, Mode::Pooled),
            ],
        }
    }

    /// The same fleet without its connections: what a later run goes on from.
    pub fn disconnected(&self) -> Self {
        Self {
            members: self.members.each_ref().map(|member| Member {
                sent: member.sent.clone(),
                peer: None,
                ..*member
            }),
        }
    }

    /// Plays a script.
    ///
    /// # Errors
    /// At the first step that fails: the master is gone, or answers wrongly.
    pub fn play(&mut self, master: SocketAddr, script: &[Step]) -> anyhow::Result<()> {
        for step in script {
            self.step(master, *step)
                .with_context(|| format!("{step:?}"))?;
        }
        Ok(())
    }

    fn step(&mut self, master: SocketAddr, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Open(at) => self.members[at].open(master),
            Step::OneByOne(at, count) => {
                let member = &mut self.members[at];
                for _ in 0..count {
                    let item = member.next_report();
                    member.send(item, true)?;
                    member.await_acks()?;
                }
                Ok(())
            }
            Step::Together(at, count) => {
                let member = &mut self.members[at];
                for _ in 0..count {
                    let item = member.next_report();
                    member.send(item, true)?;
                }
                member.await_acks()
            }
            Step::Gap(at) => {
                let member = &mut self.members[at];
                let first = member.last_sent() + 1;
                member.send(Item::Gap(first, first + GAP - 1), false)?;
                member.await_acks()
            }
            Step::Backlog(at, count) => {
                let member = &mut self.members[at];
                let items: Vec<_> = (0..count).map(|_| member.next_report()).collect();
                member.preview()?;
                for item in items {
                    member.send(item, false)?;
                }
                member.await_acks()
            }
            Step::Brief(at) => {
                let member = &mut self.members[at];
                let item = member.next_report();
                member.open(master)?;
                member.send(item, true)?;
                member.await_acks()?;
                member.await_close()
            }
            Step::Goodbye(at) => self.members[at].leave(),
        }
    }

    /// Connects everybody again, sends again all that was not acked, and waits for its acks.
    ///
    /// # Errors
    /// If the master does not know what it had acked, knows more than was sent, or does not ack.
    pub fn recover(&mut self, master: SocketAddr) -> anyhow::Result<()> {
        for member in &mut self.members {
            member
                .recover(master)
                .with_context(|| format!("{} after the crash", member.name))?;
        }
        Ok(())
    }
}

impl Fleet {
    /// Has those with a connection that stays come back to a master that may have lost what it had
    /// acked.
    ///
    /// # Errors
    /// If it does not take what they send.
    pub fn rejoin(&mut self, master: SocketAddr) -> anyhow::Result<()> {
        for member in &mut self.members {
            if member.mode == Mode::Pooled {
                member
                    .rejoin(master)
                    .with_context(|| format!("{} after the damage", member.name))?;
            }
        }
        Ok(())
    }
}

impl Default for Fleet {
    fn default() -> Self {
        Self::new()
    }
}

impl Member {
    /// The last sequence that was sent.
    pub fn last_sent(&self) -> u64 {
        self.sent.last().map_or(0, |item| item.last())
    }

    /// The numbers of reports and of sequences lost in gaps, of all that was sent.
    pub fn sent_by_kind(&self) -> (u64, u64) {
        let mut kinds = (0, 0);
        for item in &self.sent {
            match *item {
                Item::Report(_) => kinds.0 += 1,
                Item::Gap(first, last) => kinds.1 += last - first + 1,
            }
        }
        kinds
    }

    /// Puts the next report among what was sent: a slave has it on disk before it is sent.
    fn next_report(&mut self) -> Item {
        let item = Item::Report(self.last_sent() + 1);
        self.sent.push(item);
        item
    }

    fn hello(&self, frames: usize) -> Hello {
        let pending = Pending {
            stream: self.stream,
            first: self.acked + 1,
        };
        Hello {
            version_min: 1,
            version_max: 1,
            slave_id: self.id.to_vec(),
            name: self.name.to_owned(),
            stream: self.stream,
            next_sequence: self.last_sent() + 1,
            interval_ms: 60_000,
            mode: self.mode.into(),
            agent_version: "faults".to_owned(),
            pending: vec![pending],
            frames: match self.mode {
                Mode::Pooled => 0,
                Mode::PerMessage | Mode::Datagram => u32::try_from(frames).unwrap_or(u32::MAX),
            },
            ..Hello::default()
        }
    }

    /// Each report tells a change, so the events tell which reports were applied, and in which order.
    fn report(&self, sequence: u64, live: bool) -> Report {
        let state = if sequence.is_multiple_of(2) { 0 } else { 2 };
        let check = Check {
            name: "e2e".to_owned(),
            state,
            text: format!("report {sequence}"),
            ..Check::default()
        };
        Report {
            stream: self.stream,
            sequence,
            time_ms: clock::wall_ms(),
            live,
            health: state,
            status: Some(Status {
                checks: vec![check],
            }),
            ..Report::default()
        }
    }

    fn open(&mut self, master: SocketAddr) -> anyhow::Result<()> {
        let mark = self.greet(master)?;
        let (acked, sent) = (self.acked, self.last_sent());
        ensure!(mark >= acked, "LOST: {acked} acked, the mark is {mark}");
        ensure!(mark <= sent, "INVENTED: {sent} sent, the mark is {mark}");
        Ok(())
    }

    /// Connects and says Hello; how far the master has the stream.
    fn greet(&mut self, master: SocketAddr) -> anyhow::Result<u64> {
        let unacked = self.sent.iter().filter(|item| item.last() > self.acked);
        let hello = self.hello(unacked.count());
        let mut peer = Peer::connect(master)?;
        peer.set_timeout(TIMEOUT)?;
        peer.send(to_master::Kind::Hello(hello))?;
        self.peer = Some(peer);
        let Some(to_slave::Kind::Welcome(welcome)) = self.peer()?.receive()? else {
            bail!("no Welcome");
        };
        self.welcomed = true;
        let [mark] = welcome.marks[..] else {
            bail!("one stream was announced: {:?}", welcome.marks);
        };
        ensure!(mark.stream == self.stream, "a mark of another stream");
        Ok(mark.sequence)
    }

    fn recover(&mut self, master: SocketAddr) -> anyhow::Result<()> {
        if self.sent.is_empty() {
            return Ok(());
        }
        self.open(master)?;
        let newest = self.last_sent();
        let acked = self.acked;
        for item in self.sent.clone() {
            if item.last() > acked {
                self.send(item, item.last() == newest)?;
            }
        }
        self.await_acks()
    }

    /// Comes back to a master that may have lost what it had acked: says so in a gap, as a slave
    /// does, and sends one more report.
    fn rejoin(&mut self, master: SocketAddr) -> anyhow::Result<()> {
        let mark = self.greet(master)?;
        let sent = self.last_sent();
        ensure!(mark <= sent, "INVENTED: {sent} sent, the mark is {mark}");
        if mark < sent {
            let gap = Gap {
                stream: self.stream,
                first: mark + 1,
                last: sent,
                reason: GapReason::AckedBefore.into(),
                ..Gap::default()
            };
            self.peer()?.send(to_master::Kind::Gap(gap))?;
        }
        let item = self.next_report();
        self.send(item, true)?;
        self.await_acks()
    }

    fn peer(&mut self) -> anyhow::Result<&mut Peer> {
        self.peer.as_mut().context("no connection")
    }

    fn send(&mut self, item: Item, live: bool) -> anyhow::Result<()> {
        let message = match item {
            Item::Report(sequence) => to_master::Kind::Report(self.report(sequence, live)),
            Item::Gap(first, last) => to_master::Kind::Gap(Gap {
                stream: self.stream,
                first,
                last,
                reason: GapReason::SpoolFull.into(),
                ..Gap::default()
            }),
        };
        if item.last() > self.last_sent() {
            self.sent.push(item);
        }
        Ok(self.peer()?.send(message)?)
    }

    fn preview(&mut self) -> anyhow::Result<()> {
        let report = Report {
            preview: true,
            ..self.report(self.last_sent(), true)
        };
        Ok(self.peer()?.send(to_master::Kind::Report(report))?)
    }

    fn await_acks(&mut self) -> anyhow::Result<()> {
        while self.acked < self.last_sent() {
            let Some(to_slave::Kind::Ack(ack)) = self.peer()?.receive()? else {
                bail!("no Ack");
            };
            ensure!(ack.stream == self.stream, "an ack of another stream");
            let sent = self.last_sent();
            ensure!(ack.sequence <= sent, "INVENTED: {sent} sent, {ack:?}");
            self.acked = self.acked.max(ack.sequence);
        }
        Ok(())
    }

    fn await_close(&mut self) -> anyhow::Result<()> {
        self.peer()?.await_close()?;
        self.peer = None;
        Ok(())
    }

    fn leave(&mut self) -> anyhow::Result<()> {
        let goodbye = SlaveGoodbye {
            reason: GoodbyeReason::Stop.into(),
            back_ms: 0,
        };
        self.peer()?.send(to_master::Kind::Goodbye(goodbye))?;
        let Some(to_slave::Kind::Goodbye(_)) = self.peer()?.receive()? else {
            bail!("no goodbye");
        };
        self.await_close()
    }
}
