//! The same master over UDP.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread::JoinHandle;

use rollcall_protocol::datagram::{Question, Seen, answer};
use rollcall_protocol::frame::Frames;
use rollcall_protocol::limits::{DATAGRAM_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX};

use super::*;

/// The running master. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct DatagramServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl DatagramServer {
    /// Answers on a free loopback port.
    pub(crate) fn start(fault: Fault) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on loopback");
        let address = socket.local_addr().expect("the address bound");
        let shared = Arc::new(Shared::new(fault));
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            if let Err(error) = serve(&socket, &of_thread) {
                let text = format!("the socket: {error}");
                lock(&of_thread.roll).violations.push(text);
            }
        });
        Self {
            address,
            shared,
            thread: Some(thread),
        }
    }

    /// Where it answers.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// What it has seen.
    pub(crate) fn roll(&self) -> MutexGuard<'_, Roll> {
        lock(&self.shared.roll)
    }
}

impl Drop for DatagramServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        // It wakes the thread up, which then sees the flag.
        socket.send_to(&[], self.address).expect("a datagram");
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the thread has not panicked");
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared) -> io::Result<()> {
    let drops = |one_in: u32| shared.fault == Fault::DropAtRandom && fastrand::u32(..one_in) == 0;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    let mut seen = BTreeMap::new();
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        if shared.stopping.load(Ordering::SeqCst) {
            return Ok(());
        }
        let bytes = &buffer[..length];
        let question = match Question::parse(bytes, FRAME_PAYLOAD_BYTES_MAX) {
            Ok(question) => question,
            Err(error) => {
                let text = format!("no question: {error}");
                lock(&shared.roll).violations.push(text);
                continue;
            }
        };
        if drops(10) || shared.fault == Fault::Silent {
            continue;
        }
        lock(&shared.roll).peers.insert(peer.ip());
        let said = said(bytes, question.number, &mut seen, shared)?;
        if drops(10) {
            continue;
        }
        let answer = answer(question.number, length, &said);
        for _ in 0..shared.fault.times() {
            if let Some(answer) = &answer {
                socket.send_to(answer, peer)?;
            }
        }
    }
}

/// Takes the question in, unless it is a copy, and says what is to be answered.
fn said(
    bytes: &[u8],
    number: u64,
    seen: &mut BTreeMap<String, Seen>,
    shared: &Shared,
) -> io::Result<Vec<u8>> {
    let mut frames = Frames::new(bytes, FRAME_PAYLOAD_BYTES_MAX);
    let mut kinds = Vec::new();
    while let Some(frame) = frames.next_frame().map_err(io::Error::other)? {
        let message: ToMaster = frame.decode().map_err(io::Error::other)?;
        kinds.push((message.kind, 4 + frame.payload.len()));
    }
    let mut kinds = kinds.into_iter();
    let Some((Some(to_master::Kind::Hello(hello)), _)) = kinds.next() else {
        return Err(io::Error::other("no Hello first"));
    };
    let mut said = Vec::new();
    if let Fault::Refuse { times, retry } = shared.fault
        && shared.refused.fetch_add(1, Ordering::SeqCst) < times
    {
        encode(refusal(retry), &mut said)?;
        return Ok(said);
    }
    encode(to_slave::Kind::Welcome(welcome(&hello, shared)), &mut said)?;
    let seen = seen.entry(hello.name.clone()).or_default();
    if seen.is_copy(hello.stream, number) {
        lock(&shared.roll).copies += 1;
        return Ok(said);
    }
    seen.note(hello.stream, number);
    for (kind, bytes) in kinds {
        if let Some(to_master::Kind::Report(report)) = kind {
            let ack = apply(&hello, &report, bytes, shared);
            encode(to_slave::Kind::Ack(ack), &mut said)?;
        }
    }
    Ok(said)
}
