//! A relay between the slaves and the master, which passes every byte on and tells the
//! [`Witness`] what the frames say.
//!
//! ```text
//!   slave ── Hello, Report, Gap ──> relay ── the same bytes ──> master
//!         <── the same bytes ──────       <── Welcome, Ack ────
//! ```
//! A frame is noted before it is passed on: whatever the master has acked is known here, also when
//! the slave dies before it reads it. Threads block on their sockets and end with the connection.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prost::Message;
use rollcall_os::clock;
use rollcall_protocol::frame::Frames;
use rollcall_protocol::limits::{FRAME_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX};
use rollcall_protocol::wire::{Mark, ToMaster, ToSlave, to_master, to_slave};

use super::witness::{SlaveId, Witness};

/// The stack of a thread that carries one direction of a connection, in bytes; its buffer is on the
/// heap.
const STACK_BYTES: usize = 256 * 1024;

/// The relay, for as long as the process lives.
#[derive(Debug)]
pub(super) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    master: SocketAddr,
    witness: Mutex<Witness>,
    connections: Mutex<Connections>,
    ended: Condvar,
    acked: Condvar,
}

/// The connections whose master may still be heard.
#[derive(Debug, Default)]
struct Connections {
    next: u64,
    open: BTreeSet<u64>,
}

impl Relay {
    /// Starts to listen on loopback and to carry to `master`.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn start(master: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            master,
            witness: Mutex::default(),
            connections: Mutex::default(),
            ended: Condvar::new(),
            acked: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        spawn(move || {
            for slave in listener.incoming().flatten() {
                let shared = Arc::clone(&own);
                // Without a thread the connection is closed, and the slave tries again.
                drop(spawn(move || shared.carry(slave)));
            }
        })?;
        Ok(Self { address, shared })
    }

    /// Where slaves connect.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was seen so far.
    pub(super) fn witness(&self) -> MutexGuard<'_, Witness> {
        lock(&self.shared.witness)
    }

    /// Waits for the next ack.
    pub(super) fn wait_for_ack(&self, patience: Duration) {
        let witness = self.witness();
        let before = witness.acks;
        let is_awaited = |witness: &mut Witness| witness.acks == before;
        // Whether it came or not, the witness is let go.
        drop(
            self.shared
                .acked
                .wait_timeout_while(witness, patience, is_awaited),
        );
    }

    /// Waits until all is read that a master has said which is dead by now; whether it is.
    pub(super) fn hear_out(&self, patience: Duration) -> bool {
        let connections = lock(&self.shared.connections);
        let newest = connections.next;
        let is_heard = |connections: &mut Connections| {
            connections
                .open
                .first()
                .is_some_and(|oldest| *oldest < newest)
        };
        self.shared
            .ended
            .wait_timeout_while(connections, patience, is_heard)
            .is_ok_and(|(_, waited)| !waited.timed_out())
    }
}

impl Shared {
    fn carry(self: &Arc<Self>, mut slave: TcpStream) {
        let number = {
            let mut connections = lock(&self.connections);
            connections.next += 1;
            let number = connections.next - 1;
            connections.open.insert(number);
            number
        };
        // Refused while the master is down: the slave's connection is closed again.
        if let Ok(mut master) = TcpStream::connect(self.master)
            && let Ok((mut to_master, mut to_slave)) = self.pair(&slave, &master)
        {
            let session = Arc::new(Mutex::new(None));
            let upwards = (Arc::clone(self), Arc::clone(&session));
            let up = spawn(move || {
                let (shared, session) = upwards;
                let mut buffer = Vec::new();
                pump(&mut slave, &mut to_master, |bytes| {
                    shared.note(&mut buffer, bytes, &session, Shared::to_master);
                });
            });
            if up.is_ok() {
                let mut buffer = Vec::new();
                pump(&mut master, &mut to_slave, |bytes| {
                    self.note(&mut buffer, bytes, &session, Shared::to_slave);
                });
            }
        }
        lock(&self.connections).open.remove(&number);
        self.ended.notify_all();
    }

    fn pair(&self, slave: &TcpStream, master: &TcpStream) -> io::Result<(TcpStream, TcpStream)> {
        slave.set_nodelay(true)?;
        master.set_nodelay(true)?;
        Ok((master.try_clone()?, slave.try_clone()?))
    }

    /// Tells the witness of the frames that are whole by now. What is no frame is passed on as it
    /// is: the daemons have to cope with it.
    fn note(
        &self,
        buffer: &mut Vec<u8>,
        bytes: &[u8],
        session: &Mutex<Option<SlaveId>>,
        tell: fn(&mut Witness, &mut Option<SlaveId>, &[u8]),
    ) {
        buffer.extend_from_slice(bytes);
        let mut frames = Frames::new(buffer, FRAME_PAYLOAD_BYTES_MAX);
        let mut witness = lock(&self.witness);
        let mut session = lock(session);
        while let Ok(Some(frame)) = frames.next_frame() {
            tell(&mut witness, &mut session, frame.payload);
        }
        self.acked.notify_all();
        let taken = frames.taken();
        buffer.drain(..taken);
    }

    fn to_master(witness: &mut Witness, session: &mut Option<SlaveId>, payload: &[u8]) {
        let kind = ToMaster::decode(payload).ok().and_then(|sent| sent.kind);
        match (kind, *session) {
            (Some(to_master::Kind::Hello(hello)), _) => {
                *session = SlaveId::try_from(hello.slave_id.as_slice()).ok();
                if let Some(slave) = *session {
                    witness.hello(slave, &hello);
                }
            }
            (Some(to_master::Kind::Report(report)), Some(slave)) => {
                witness.report(slave, &report, payload.len());
            }
            (Some(to_master::Kind::Gap(gap)), Some(slave)) => {
                witness.gap(slave, gap.stream, gap.first, gap.last);
            }
            _ => {}
        }
    }

    fn to_slave(witness: &mut Witness, session: &mut Option<SlaveId>, payload: &[u8]) {
        let kind = ToSlave::decode(payload).ok().and_then(|said| said.kind);
        let Some(slave) = *session else {
            return;
        };
        match kind {
            Some(to_slave::Kind::Ack(ack)) => {
                let mark = Mark {
                    stream: ack.stream,
                    sequence: ack.sequence,
                };
                witness.ack(slave, &mark, clock::boot());
            }
            Some(to_slave::Kind::Welcome(welcome)) => {
                for mark in &welcome.marks {
                    witness.durable(slave, mark);
                }
            }
            Some(to_slave::Kind::Goodbye(goodbye)) => {
                for mark in &goodbye.marks {
                    witness.durable(slave, mark);
                }
            }
            _ => {}
        }
    }
}

/// Carries one direction to its end, and the end to the other side.
fn pump(from: &mut TcpStream, to: &mut TcpStream, mut note: impl FnMut(&[u8])) {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    let mut goes_on = true;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => {
                // The other direction may go on. It fails if that side is gone already.
                drop(to.shutdown(Shutdown::Write));
                return;
            }
            Ok(length) => {
                let bytes = &buffer[..length];
                note(bytes);
                // One that no longer reads may have been told more all the same: it is noted.
                goes_on = goes_on && to.write_all(bytes).is_ok();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                drop(to.shutdown(Shutdown::Both));
                return;
            }
        }
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name("relay".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(work)
        .map(drop)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
