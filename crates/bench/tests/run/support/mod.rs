//! A small master for tests, which misbehaves as told. It keeps its roll over a restart.

mod datagram;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use rollcall_os::socket::{BACKLOG, listen};
use rollcall_protocol::frame;
use rollcall_protocol::wire::{
    self, Ack, Gap, Hello, Mark, Mode, Report, ToMaster, ToSlave, Welcome, to_master, to_slave,
};

pub(crate) use datagram::DatagramServer;

/// What is wrong with the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It drops connections before or after it has stored a report, or before Hello.
    DropAtRandom,
    /// Each ack comes twice.
    AckTwice,
    /// So many connections are refused with an Error frame.
    Refuse {
        /// How many.
        times: u32,
        /// What the frame says.
        retry: bool,
    },
    /// It says nothing at all.
    Silent,
    /// It loses the last two reports of every stream between two connections.
    Forget,
    /// It acks one more than it got.
    AckAhead,
    /// It leaves it to the slave to close first.
    LeavesItOpen,
}

impl Fault {
    /// How often each ack is sent.
    fn times(self) -> u32 {
        if self == Self::AckTwice { 2 } else { 1 }
    }
}

/// What the master knows of a slave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    /// Reports applied, each once.
    pub(crate) applied: u64,
    /// Highest sequence of each stream.
    pub(crate) marks: BTreeMap<u64, u64>,
    /// Whether it came in per-message mode last.
    pub(crate) per_message: bool,
}

/// All that the master has seen.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    /// By name.
    pub(crate) slaves: BTreeMap<String, Entry>,
    /// Sizes of the frames of reports.
    pub(crate) report_bytes: BTreeSet<usize>,
    /// Where connections came from.
    pub(crate) peers: BTreeSet<IpAddr>,
    /// Connections accepted.
    pub(crate) connections: u64,
    /// Reports that had been applied before.
    pub(crate) duplicates: u64,
    /// Questions that had been answered before.
    pub(crate) copies: u64,
    /// Reports that ran ahead of their place.
    pub(crate) previews: u64,
    /// Gaps received.
    pub(crate) gaps: u64,
    /// What a slave must not do.
    pub(crate) violations: Vec<String>,
}

impl Roll {
    /// Reports applied, over all slaves.
    pub(crate) fn applied(&self) -> u64 {
        self.slaves.values().map(|entry| entry.applied).sum()
    }
}

#[derive(Debug)]
struct Shared {
    fault: Fault,
    refused: AtomicU32,
    roll: Mutex<Roll>,
    /// Told of every report that is applied.
    changed: Condvar,
    open: Mutex<Vec<TcpStream>>,
    stopping: AtomicBool,
}

impl Shared {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            refused: AtomicU32::new(0),
            roll: Mutex::default(),
            changed: Condvar::new(),
            open: Mutex::default(),
            stopping: AtomicBool::new(false),
        }
    }
}

/// The running master. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    /// Keeps the port from other tests while nobody listens on it: bound, and not listening.
    _reservation: Socket,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on a free loopback port.
    pub(crate) fn start(fault: Fault) -> Self {
        let reservation = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        reservation.set_reuse_address(true).expect("SO_REUSEADDR");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        reservation
            .bind(&any.into())
            .expect("a free port on loopback");
        let address = reservation.local_addr().expect("the address bound");
        let mut server = Self {
            address: address.as_socket().expect("an IPv4 address"),
            _reservation: reservation,
            shared: Arc::new(Shared::new(fault)),
            acceptor: None,
        };
        server.resume();
        server
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// What it has seen.
    pub(crate) fn roll(&self) -> MutexGuard<'_, Roll> {
        lock(&self.shared.roll)
    }

    /// Waits until this many reports have been applied; says whether they have in time.
    pub(crate) fn wait_for_applied(&self, reports: u64, limit: Duration) -> bool {
        let lacks = |roll: &mut Roll| roll.applied() < reports;
        let changed = &self.shared.changed;
        let waited = changed.wait_timeout_while(self.roll(), limit, lacks);
        let (_roll, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    /// Breaks all connections and listens no more.
    pub(crate) fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes up the acceptor, which then sees the flag.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().expect("the acceptor has not panicked");
        }
        for stream in lock(&self.shared.open).drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// Listens again where it did before, with the same roll.
    pub(crate) fn resume(&mut self) {
        self.shared.stopping.store(false, Ordering::SeqCst);
        let listener = listen(self.address, BACKLOG).expect("a free port on loopback");
        listener
            .set_nonblocking(false)
            .expect("a blocking listener");
        self.address = listener.local_addr().expect("the address bound");
        let shared = Arc::clone(&self.shared);
        self.acceptor = Some(std::thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                if shared.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let mut roll = lock(&shared.roll);
                roll.connections += 1;
                roll.peers.insert(peer.ip());
                drop(roll);
                let mut open = lock(&shared.open);
                open.push(stream.try_clone().expect("a descriptor"));
                drop(open);
                let shared = Arc::clone(&shared);
                // Its end is the connection's end, which the slave sees.
                std::thread::spawn(move || drop(connection(stream, &shared)));
            }
        }));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.acceptor.is_some() {
            self.stop();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One slave's connection, from Hello to its end.
fn connection(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let drops = |one_in: u32| shared.fault == Fault::DropAtRandom && fastrand::u32(..one_in) == 0;
    if drops(20) {
        return stream.shutdown(Shutdown::Both);
    }
    let (Some(to_master::Kind::Hello(hello)), _) = receive(&mut stream)? else {
        lock(&shared.roll)
            .violations
            .push("no Hello first".to_owned());
        return Ok(());
    };
    if shared.fault == Fault::Silent {
        return drain(&mut stream);
    }
    if let Fault::Refuse { times, retry } = shared.fault
        && shared.refused.fetch_add(1, Ordering::SeqCst) < times
    {
        send(&mut stream, refusal(retry))?;
        stream.shutdown(Shutdown::Write)?;
        return drain(&mut stream);
    }
    send(
        &mut stream,
        to_slave::Kind::Welcome(welcome(&hello, shared)),
    )?;
    let mut left = (hello.mode() == Mode::PerMessage).then_some(hello.frames);
    while left != Some(0) {
        let (message, bytes) = receive(&mut stream)?;
        if drops(100) {
            return stream.shutdown(Shutdown::Both);
        }
        let ack = match message {
            Some(to_master::Kind::Report(report)) if report.preview => {
                lock(&shared.roll).previews += 1;
                continue;
            }
            Some(to_master::Kind::Report(report)) => apply(&hello, &report, bytes, shared),
            Some(to_master::Kind::Gap(gap)) => fill(&hello, &gap, shared),
            other => {
                lock(&shared.roll)
                    .violations
                    .push(format!("out of turn: {other:?}"));
                return Ok(());
            }
        };
        left = left.map(|left| left - 1);
        if drops(100) {
            return stream.shutdown(Shutdown::Both);
        }
        for _ in 0..shared.fault.times() {
            send(&mut stream, to_slave::Kind::Ack(ack))?;
        }
    }
    if shared.fault == Fault::LeavesItOpen {
        drain(&mut stream)?;
        return stream.shutdown(Shutdown::Both);
    }
    // The master closes first.
    stream.shutdown(Shutdown::Write)?;
    drain(&mut stream)
}

fn welcome(hello: &Hello, shared: &Shared) -> Welcome {
    let mut roll = lock(&shared.roll);
    let entry = roll.slaves.entry(hello.name.clone()).or_default();
    entry.per_message = hello.mode() == Mode::PerMessage;
    let mark = entry.marks.entry(hello.stream).or_insert(0);
    if shared.fault == Fault::Forget {
        *mark = mark.saturating_sub(2);
    }
    let sequence = *mark;
    let marks = vec![Mark {
        stream: hello.stream,
        sequence,
    }];
    Welcome {
        version: 1,
        window: 64,
        marks,
        ..Welcome::default()
    }
}

fn apply(hello: &Hello, report: &Report, bytes: usize, shared: &Shared) -> Ack {
    let mut roll = lock(&shared.roll);
    roll.report_bytes.insert(bytes);
    let entry = roll.slaves.entry(hello.name.clone()).or_default();
    let mark = entry.marks.entry(report.stream).or_insert(0);
    let expected = *mark + 1;
    if report.sequence == expected {
        *mark = expected;
        entry.applied += 1;
        shared.changed.notify_all();
    }
    let mut sequence = *mark;
    if report.sequence > expected {
        let text = format!(
            "{}: {} came where {expected} was due",
            hello.name, report.sequence
        );
        roll.violations.push(text);
    } else if report.sequence < expected {
        roll.duplicates += 1;
    }
    if shared.fault == Fault::AckAhead {
        sequence += 1;
    }
    Ack {
        stream: report.stream,
        sequence,
        ..Ack::default()
    }
}

fn fill(hello: &Hello, gap: &Gap, shared: &Shared) -> Ack {
    let mut roll = lock(&shared.roll);
    roll.gaps += 1;
    let entry = roll.slaves.entry(hello.name.clone()).or_default();
    entry.marks.insert(gap.stream, gap.last);
    Ack {
        stream: gap.stream,
        sequence: gap.last,
        ..Ack::default()
    }
}

fn refusal(retry: bool) -> to_slave::Kind {
    to_slave::Kind::Error(wire::Error {
        text: "not today".to_owned(),
        retry,
        ..wire::Error::default()
    })
}

fn send(stream: &mut TcpStream, kind: to_slave::Kind) -> io::Result<()> {
    let mut bytes = Vec::new();
    encode(kind, &mut bytes)?;
    stream.write_all(&bytes)
}

fn encode(kind: to_slave::Kind, out: &mut Vec<u8>) -> io::Result<()> {
    frame::encode(&ToSlave { kind: Some(kind) }, out).map_err(io::Error::other)
}

/// The next message and the size of its frame.
fn receive(stream: &mut TcpStream) -> io::Result<(Option<to_master::Kind>, usize)> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let length = usize::try_from(u32::from_be_bytes(header)).map_err(io::Error::other)?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload)?;
    let message: ToMaster = prost::Message::decode(&payload[..]).map_err(io::Error::other)?;
    Ok((message.kind, 4 + length))
}

fn drain(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}
