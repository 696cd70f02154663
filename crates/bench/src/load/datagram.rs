//! Datagram mode: a socket for each slave, and no connection. A slave asks one question after the other.
//!
//! ```text
//!   reports owed ── ask() ──> put() ──> master
//!                              ^  no answer: the same bytes, after pauses that double │
//!                              └──────────────────────── ask_again() ─────────────────┤
//!   reports acked <── answered() ── the answer to this question ──────────────────────┤
//!   come back later, under another number <── lose() ── none for as long as --timeout ┘
//! ```
//! The real slave takes a new socket for each question. One that stays tells as well which answers
//! come twice or too late.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket as StdSocket};

use anyhow::{Context, ensure};
use mio::net::UdpSocket;
use mio::{Interest, Token};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use prost::Message;
use rollcall_os::udp;
use rollcall_protocol::Moment;
use rollcall_protocol::datagram::{NoAnswer, Numbers, Resend, open_answer};
use rollcall_protocol::limits::{DATAGRAM_BYTES_MAX, FRAME_HEADER_BYTES, PER_MESSAGE_FRAMES_MAX};
use rollcall_protocol::wire::{Hello, Mode, Pending, ToMaster, to_master, to_slave};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::drive::Loss;
use super::slave::Slave;
use super::tally::ErrorKind;
use super::{Load, Plan};

/// The part of the load that asks questions.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    /// One for each slave; none in other modes.
    askers: Vec<Asker>,
    /// When to look after the question of which slave.
    wake_ups: BinaryHeap<Reverse<(Moment, usize)>>,
    /// Reports that one question has room for.
    reports_max: u64,
}

/// What a slave asks with.
#[derive(Debug)]
struct Asker {
    numbers: Numbers,
    socket: Option<UdpSocket>,
    question: Option<Question>,
    /// The datagram of the question.
    bytes: Vec<u8>,
    /// Whether it has a wake-up. It has one at most, which may come too soon.
    wakes: bool,
}

/// A question without an answer.
#[derive(Debug)]
struct Question {
    number: u64,
    resend: Resend,
    again: Moment,
    give_up: Moment,
}

impl Question {
    fn due(&self) -> Moment {
        self.again.min(self.give_up)
    }
}

impl Datagrams {
    /// What the plan needs: nothing in other modes.
    ///
    /// # Errors
    /// If a report does not fit into a datagram on the way to the master.
    pub(super) fn new(plan: &Plan) -> anyhow::Result<Self> {
        if !plan.modes.contains(&Mode::Datagram) {
            return Ok(Self::default());
        }
        let asker = |_: &Mode| Asker {
            numbers: Numbers::new(fastrand::u64(..)),
            socket: None,
            question: None,
            bytes: Vec::new(),
            wakes: false,
        };
        Ok(Self {
            askers: plan.modes.iter().map(asker).collect(),
            wake_ups: BinaryHeap::new(),
            reports_max: reports_max(plan)?,
        })
    }

    /// Whether the slave waits for an answer.
    pub(super) fn is_asking(&self, index: usize) -> bool {
        let asker = self.askers.get(index);
        asker.is_some_and(|asker| asker.question.is_some())
    }

    /// The question is not to be sent any more.
    pub(super) fn give_up(&mut self, index: usize) {
        if let Some(asker) = self.askers.get_mut(index) {
            asker.question = None;
        }
    }

    /// When to call [`Load::ask_again`] at the latest.
    pub(super) fn next_wake_up(&self) -> Option<Moment> {
        self.wake_ups.peek().map(|Reverse((at, _))| *at)
    }
}

impl Load<'_> {
    /// Asks a new question with what is owed, or with a report made for it.
    pub(super) fn ask(&mut self, index: usize, now: Moment) -> Result<(), Loss> {
        self.make_up_to(index, 1, now);
        let owed = u64::try_from(self.slaves[index].owed()).unwrap_or(u64::MAX);
        let reports = owed.min(self.datagrams.reports_max);
        let slave = &mut self.slaves[index];
        if self.datagrams.is_asking(index) || slave.dead() || reports == 0 {
            return Ok(());
        }
        let number = self.datagrams.askers[index].numbers.next_number();
        let frames = u32::try_from(reports).unwrap_or(PER_MESSAGE_FRAMES_MAX);
        let hello = slave.ask(&self.plan.fleet, frames, number);
        self.output.clear();
        self.append(&hello)?;
        self.append_due(index, reports);
        self.open_socket(index)?;
        let asker = &mut self.datagrams.askers[index];
        asker.bytes.clone_from(&self.output);
        asker.question = Some(Question {
            number,
            resend: Resend::new(self.plan.resend),
            again: now,
            give_up: now + self.plan.timeout,
        });
        self.tally.datagrams.questions += 1;
        self.put(index, now)
    }

    fn open_socket(&mut self, index: usize) -> Result<(), Loss> {
        let asker = &mut self.datagrams.askers[index];
        if asker.socket.is_none() {
            let source = self.plan.source_of(index);
            let mut socket = UdpSocket::from_std(open(self.plan.master, source)?);
            let registry = self.poll.registry();
            registry.register(&mut socket, Token(index), Interest::READABLE)?;
            asker.socket = Some(socket);
        }
        Ok(())
    }

    /// Sends the question, for the first time or again.
    fn put(&mut self, index: usize, now: Moment) -> Result<(), Loss> {
        let asker = &mut self.datagrams.askers[index];
        let (Some(socket), Some(question)) = (&asker.socket, &mut asker.question) else {
            return Ok(());
        };
        match socket.send(&asker.bytes) {
            Ok(_) => {}
            // A queue is full: it is lost like any other, and sent again.
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock
                    || Errno::from_io_error(&error) == Some(Errno::NOBUFS) => {}
            Err(error) => return Err(error.into()),
        }
        question.again = now + question.resend.handle_sent(fastrand::u64(..));
        if question.resend.sent() > 1 {
            self.tally.datagrams.sent_again += 1;
        }
        let due = question.due();
        if !std::mem::replace(&mut asker.wakes, true) {
            self.datagrams.wake_ups.push(Reverse((due, index)));
        }
        Ok(())
    }

    /// Sends the questions again that are due, and gives up those without hope.
    pub(super) fn ask_again(&mut self, now: Moment) {
        while let Some(Reverse((at, index))) = self.datagrams.wake_ups.peek().copied()
            && at <= now
        {
            self.datagrams.wake_ups.pop();
            let asker = &mut self.datagrams.askers[index];
            asker.wakes = false;
            let Some(question) = &asker.question else {
                continue;
            };
            let due = question.due();
            let result = if now >= question.give_up {
                self.tally.datagrams.given_up += 1;
                Err(Loss::Kind(ErrorKind::Timeout))
            } else if now >= due {
                self.put(index, now)
            } else {
                // It is of a question that has been answered, and this is a later one.
                asker.wakes = true;
                self.datagrams.wake_ups.push(Reverse((due, index)));
                Ok(())
            };
            if let Err(loss) = result {
                self.lose(index, loss, now);
            }
        }
    }

    /// Takes in what the socket has received: until it is empty, since the poll is edge-triggered.
    pub(super) fn hear(&mut self, index: usize, now: Moment) -> Result<(), Loss> {
        while let Some(socket) = &self.datagrams.askers[index].socket {
            match socket.recv(&mut self.input) {
                Ok(bytes) => self.answered(index, bytes, now)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// A datagram came, of so many bytes.
    fn answered(&mut self, index: usize, bytes: usize, now: Moment) -> Result<(), Loss> {
        let asker = &mut self.datagrams.askers[index];
        // No question has the number 0.
        let number = asker.question.as_ref().map_or(0, |asked| asked.number);
        let mut messages = match open_answer(&self.input[..bytes], number) {
            Ok(messages) => messages,
            Err(NoAnswer::Other) => {
                self.tally.datagrams.answers_repeated += 1;
                return Ok(());
            }
            Err(_) => {
                self.tally.count_error(ErrorKind::BadFrame);
                return Ok(());
            }
        };
        asker.question = None;
        // They come in any order, and Welcome tells how things stood before the others.
        messages.sort_by_key(|message| !matches!(message.kind, Some(to_slave::Kind::Welcome(_))));
        let slave = &mut self.slaves[index];
        let acked = slave.acked();
        for message in messages {
            slave.handle(message, now, &mut self.tally)?;
        }
        if slave.leaving() {
            let pause = slave.lost(now);
            self.come_back(index, now + pause);
        } else if slave.acked() > acked {
            slave.finished();
        } else {
            asker.numbers.jump();
            return Err(Loss::Kind(ErrorKind::NotTaken));
        }
        Ok(())
    }
}

/// A socket that is connected to the master: the kernel drops what others send to it, and tells when
/// nobody listens there.
fn open(master: SocketAddr, source: Option<IpAddr>) -> io::Result<StdSocket> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(master), kind, Some(Protocol::UDP))?;
    if let Some(source) = source {
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&master.into())?;
    udp::forbid_fragments(&socket, master)?;
    Ok(socket.into())
}

/// How many reports fit into a question, on the path as the kernel knows it.
fn reports_max(plan: &Plan) -> anyhow::Result<u64> {
    let master = plan.master;
    let socket = open(master, plan.source_of(0))
        .with_context(|| format!("can't open a socket for datagrams to {master}"))?;
    let room = udp::datagram_bytes_max(&socket, master).context("can't tell the path's MTU")?;
    let room = room.min(DATAGRAM_BYTES_MAX);
    let left = room.saturating_sub(hello_bytes_max(plan));
    let wanted = plan.payload_bytes;
    ensure!(
        wanted <= left,
        "--payload-bytes {wanted}: a datagram to {master} has room for {left} at most ({room} bytes, \
         Hello included); a slave in datagram mode sends larger reports over connections: --mode \
         per-message measures those"
    );
    let fitting = u64::try_from(left / wanted.max(1)).unwrap_or(u64::MAX);
    Ok(fitting.min(PER_MESSAGE_FRAMES_MAX.into()))
}

/// Bytes that the frame of a Hello has at most.
fn hello_bytes_max(plan: &Plan) -> usize {
    let mut slave = Slave::new(u32::MAX, Mode::Datagram, plan.fleet.backoff);
    let mut message = slave.ask(&plan.fleet, PER_MESSAGE_FRAMES_MAX, u64::MAX);
    if let ToMaster {
        kind: Some(to_master::Kind::Hello(hello)),
    } = &mut message
    {
        *hello = Hello {
            next_sequence: u64::MAX,
            backlog: u64::MAX,
            pending: vec![Pending {
                stream: u64::MAX,
                first: u64::MAX,
            }],
            ..hello.clone()
        };
    }
    FRAME_HEADER_BYTES + message.encoded_len()
}
