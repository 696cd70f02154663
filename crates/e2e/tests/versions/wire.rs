//! Slaves and masters that speak nothing but what an earlier version spoke, byte for byte.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::thread;

use prost::Message;
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Peer, Slave};
use rollcall_protocol::wire::{ToMaster, to_master, to_slave};

/// The stream in all golden frames, as it is on the wire.
const GOLDEN_STREAM: [u8; 8] = 0x1122_3344_5566_7788_u64.to_le_bytes();

/// The bytes of a golden message of version 1.
fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/tests/golden/v1");
    let text = fs::read_to_string(folder.join(format!("{name}.hex"))).expect("a golden message");
    let bytes = text.lines().filter(|line| !line.starts_with('#'));
    let bytes = bytes.flat_map(str::split_whitespace);
    bytes
        .map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal digits"))
        .collect()
}

/// A slave that speaks nothing but what version 1 spoke, byte for byte, pooled and per message.
#[test]
fn a_master_serves_a_slave_of_protocol_version_1() {
    let pooled: &[&[&str]] = &[
        &["hello-pooled"],
        &["report-preview", "report-backlog", "slave-goodbye-stop"],
    ];
    for turns in [pooled, &[&["hello-per-message", "report-live"]]] {
        let folder = tempfile::tempdir().expect("a folder");
        let master = Master::started(folder.path());
        let mut peer = Peer::connect(master.address()).expect("a connection");
        let mut heard = Vec::new();
        for turn in turns {
            let bytes: Vec<u8> = turn.iter().flat_map(|name| golden(name)).collect();
            peer.send_bytes(&bytes).expect("a connection");
            if heard.is_empty() {
                heard.extend(peer.receive().expect("an answer"));
            }
        }
        while let Some(message) = peer.receive().expect("an answer") {
            heard.push(message);
        }
        let [to_slave::Kind::Welcome(welcome), rest @ ..] = &heard[..] else {
            panic!("no Welcome: {heard:?}");
        };
        assert_eq!(welcome.version, 1);
        let acked = rest.iter().map(|message| match message {
            to_slave::Kind::Ack(ack) => ack.sequence,
            to_slave::Kind::Goodbye(goodbye) => goodbye.marks[0].sequence,
            other => panic!("{other:?} to a slave of version 1"),
        });
        assert_eq!(acked.max(), Some(7), "{heard:?}");
        let row = master.wait_for_row("web-1", "at 7", |row| row.sequence == 7);
        assert_eq!((row.gaps, row.duplicates), (0, 0));
        assert_eq!(row.stream, "1122334455667788");
    }
}

/// A golden message with another stream, and another sequence behind it.
fn told_of(name: &str, stream: u64, sequence: u64) -> Vec<u8> {
    let mut bytes = golden(name);
    let at = bytes.windows(8).rposition(|window| window == GOLDEN_STREAM);
    let at = at.expect("a golden message with the golden stream");
    bytes[at..at + 8].copy_from_slice(&stream.to_le_bytes());
    assert_eq!(bytes[at + 8], 0x10, "the field after it is the sequence");
    bytes[at + 9] = u8::try_from(sequence).expect("a sequence of one byte");
    bytes
}

/// Answers one connection as a master of version 1 did, and tells what it acks; returns the sequence that
/// it acked last.
fn serve_as_version_1(mut stream: TcpStream, tell: &Sender<u64>) -> u64 {
    let mut own = 0;
    let mut acked = 0;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("a frame");
        let length = usize::try_from(u32::from_be_bytes(length)).expect("small");
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).expect("a frame");
        let message = ToMaster::decode(&payload[..]).expect("a message");
        let answer = match message.kind {
            Some(to_master::Kind::Hello(hello)) => {
                assert_eq!((hello.version_min, hello.pending.len()), (1, 1));
                own = hello.stream;
                told_of("welcome-pooled", own, 0)
            }
            Some(to_master::Kind::Report(report)) => {
                assert_eq!(report.stream, own);
                if report.preview {
                    continue;
                }
                acked = report.sequence;
                // Nobody listens any more once enough is acked.
                let _ = tell.send(acked);
                told_of("ack", own, acked)
            }
            Some(to_master::Kind::Goodbye(_)) => {
                let answer = told_of("master-goodbye", own, acked);
                stream.write_all(&answer).expect("a connection");
                return acked;
            }
            other => panic!("{other:?} to a master of version 1"),
        };
        stream.write_all(&answer).expect("a connection");
    }
}

#[test]
fn a_slave_reports_to_a_master_of_protocol_version_1() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("a port");
    let (tell, acks) = mpsc::channel();
    let master = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        serve_as_version_1(stream, &tell)
    });
    let mut slave = Slave::new(folder.path(), "web-1", &[address], "500ms");
    slave.start();
    for _ in 0..3 {
        acks.recv_timeout(PATIENCE).expect("a report");
    }
    assert_eq!(slave.terminate().code(), Some(0));
    let acked = master.join().expect("a master that was spoken to rightly");
    assert!(acked >= 3);
    assert_eq!(slave.log().events("session_refused"), []);
    assert_eq!(slave.spooled(), Ok(0));
}
