//! Stands in for the master: records what a slave sends, acks it, and notes every breach.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use prost::Message;
use rollcall_protocol::wire::{
    Ack, Gap, Hello, Mark, MasterGoodbye, Report, ToMaster, ToSlave, Welcome, to_master, to_slave,
};

/// What has come is acked when nothing has followed for this long: so most of the time something is
/// not acked yet.
const ACK_AFTER: Duration = Duration::from_millis(15);

/// What the collector knows.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// How far each stream has come, reports and gaps, in order.
    pub marks: BTreeMap<u64, u64>,
    /// How far each stream was acked.
    pub acked: BTreeMap<u64, u64>,
    /// The streams in the order in which their reports came in place.
    pub streams: Vec<u64>,
    /// Every report that came, by stream and sequence, previews too: a hash of its content.
    pub reports: BTreeMap<(u64, u64), u64>,
    /// Number of gaps.
    pub gaps: usize,
    /// The slave's id.
    pub id: Option<Vec<u8>>,
    /// The stream that the slave appends to, as its last Hello says.
    pub own: Option<u64>,
    /// Number of Hellos.
    pub hellos: usize,
    /// Number of goodbyes.
    pub goodbyes: usize,
    /// Reports that came again.
    pub duplicates: usize,
    /// What must not be.
    pub breaches: Vec<String>,
}

impl Record {
    /// Whether all up to `sequence` of `stream` has come.
    pub fn has(&self, stream: u64, sequence: u64) -> bool {
        self.marks
            .get(&stream)
            .is_some_and(|&mark| mark >= sequence)
    }

    fn take_hello(&mut self, hello: &Hello) {
        self.hellos += 1;
        self.own = Some(hello.stream);
        let id = self.id.get_or_insert_with(|| hello.slave_id.clone());
        if *id != hello.slave_id {
            self.breaches
                .push("ANOTHER: the slave has lost its id".to_owned());
        }
        for pending in &hello.pending {
            let acked = self.acked.get(&pending.stream).copied().unwrap_or(0);
            let come = self
                .marks
                .entry(pending.stream)
                .or_insert(pending.first - 1);
            if pending.first - 1 > *come {
                let breach = format!("LOST: {pending:?} announced, and {come} have come");
                self.breaches.push(breach);
            } else if pending.first - 1 > acked {
                let breach = format!("LOST: {pending:?} announced, and {acked} were acked");
                self.breaches.push(breach);
            }
        }
    }

    fn take_report(&mut self, report: &Report) {
        let place = (report.stream, report.sequence);
        let content = Report {
            live: false,
            preview: false,
            ..report.clone()
        };
        let mut hasher = DefaultHasher::new();
        content.encode_to_vec().hash(&mut hasher);
        let content = hasher.finish();
        if let Some(before) = self.reports.insert(place, content)
            && before != content
        {
            self.breaches.push(format!(
                "CHANGED: {place:?} came again with another content"
            ));
        }
        if !report.preview {
            self.advance(report.stream, report.sequence, report.sequence);
        }
    }

    fn take_gap(&mut self, gap: &Gap) {
        self.gaps += 1;
        self.advance(gap.stream, gap.first, gap.last);
    }

    fn advance(&mut self, stream: u64, first: u64, last: u64) {
        let mark = self.marks.entry(stream).or_default();
        if last <= *mark {
            self.duplicates += 1;
            return;
        }
        if first > *mark + 1 {
            let breach = format!("LOST or REORDERED: {first} of {stream:x} after {mark}");
            self.breaches.push(breach);
        }
        *mark = last;
        if self.streams.last() != Some(&stream) {
            if self.streams.contains(&stream) {
                let breach = format!("REORDERED: back to stream {stream:x}");
                self.breaches.push(breach);
            }
            self.streams.push(stream);
        }
    }
}

/// A scripted master. Dropping it ends it.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Starts one on a port that the kernel picks.
    ///
    /// # Panics
    /// If there is none.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port on 127.0.0.1");
        let address = listener.local_addr().expect("a socket");
        let record = Arc::<Mutex<Record>>::default();
        let stop = Arc::<AtomicBool>::default();
        let thread = thread::spawn({
            let (record, stop) = (Arc::clone(&record), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        // A slave that was killed ends its connection as it likes.
                        Ok((stream, _)) => drop(serve(stream, &record, &stop)),
                        Err(error) => panic!("can't accept: {error}"),
                    }
                }
            }
        });
        Self {
            address,
            record,
            stop,
            thread: Some(thread),
        }
    }

    /// Where slaves connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it knows so far.
    pub fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Begins with what another one knew.
    pub fn take_over(&self, record: &Record) {
        lock(&self.record).clone_from(record);
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It waits for a connection.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            // It panics in no way that a test has not seen.
            let _ = thread.join();
        }
    }
}

fn lock(record: &Mutex<Record>) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one connection to its end.
fn serve(mut stream: TcpStream, record: &Mutex<Record>, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ACK_AFTER))?;
    let mut bytes = Vec::new();
    let mut frames_left = None;
    let mut chunk = [0; 64 * 1024];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if is_timeout(&error) => {
                ack_all(&mut stream, record)?;
                continue;
            }
            Err(error) => return Err(error),
        }
        while let Some(message) = next_message(&mut bytes)? {
            let is_last = take(&mut stream, record, message, &mut frames_left)?;
            if is_last {
                ack_all(&mut stream, record)?;
                return close(stream);
            }
        }
    }
    Ok(())
}

/// Takes one message; whether it was the connection's last.
fn take(
    stream: &mut TcpStream,
    record: &Mutex<Record>,
    message: ToMaster,
    frames_left: &mut Option<u32>,
) -> io::Result<bool> {
    match message.kind {
        Some(to_master::Kind::Hello(hello)) => {
            let marks = {
                let mut record = lock(record);
                record.take_hello(&hello);
                let mark = |stream| Mark {
                    stream,
                    sequence: record.acked.get(&stream).copied().unwrap_or(0),
                };
                let pending = hello.pending.iter();
                let marks = pending.map(|pending| Mark {
                    // What was acked before this record began.
                    sequence: mark(pending.stream).sequence.max(pending.first - 1),
                    ..mark(pending.stream)
                });
                marks.collect()
            };
            *frames_left = (hello.frames > 0).then_some(hello.frames);
            let welcome = Welcome {
                version: 1,
                master_id: vec![9; 16],
                marks,
                max_frame_bytes: 65_532,
                window: 8,
                ..Welcome::default()
            };
            send(stream, to_slave::Kind::Welcome(welcome))?;
            return Ok(false);
        }
        Some(to_master::Kind::Report(report)) => lock(record).take_report(&report),
        Some(to_master::Kind::Gap(gap)) => lock(record).take_gap(&gap),
        Some(to_master::Kind::Goodbye(_)) => {
            lock(record).goodbyes += 1;
            ack_all(stream, record)?;
            send(stream, to_slave::Kind::Goodbye(MasterGoodbye::default()))?;
            return Ok(true);
        }
        None => return Ok(false),
    }
    Ok(match frames_left {
        Some(left) => {
            *left = left.saturating_sub(1);
            *left == 0
        }
        None => false,
    })
}

fn ack_all(stream: &mut TcpStream, record: &Mutex<Record>) -> io::Result<()> {
    let due: Vec<(u64, u64)> = {
        let record = lock(record);
        let come = record.marks.iter();
        come.filter(|&(of, mark)| record.acked.get(of) < Some(mark))
            .map(|(of, mark)| (*of, *mark))
            .collect()
    };
    for (of, sequence) in due {
        // Known as acked before it leaves: the slave may read it and die at once.
        lock(record).acked.insert(of, sequence);
        let ack = Ack {
            stream: of,
            sequence,
            received_ms: 1,
            sent_ms: 1,
        };
        send(stream, to_slave::Kind::Ack(ack))?;
    }
    Ok(())
}

fn close(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut rest = [0; 1024];
    while stream.read(&mut rest)? > 0 {}
    Ok(())
}

fn send(stream: &mut TcpStream, kind: to_slave::Kind) -> io::Result<()> {
    let payload = ToSlave { kind: Some(kind) }.encode_to_vec();
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    stream.write_all(&[&length.to_be_bytes()[..], &payload].concat())
}

fn next_message(bytes: &mut Vec<u8>) -> io::Result<Option<ToMaster>> {
    let Some((header, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
    let Some(payload) = rest.get(..length) else {
        return Ok(None);
    };
    let message = ToMaster::decode(payload).map_err(io::Error::other)?;
    bytes.drain(..4 + length);
    Ok(Some(message))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
