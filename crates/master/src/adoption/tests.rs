//! Which parked connections are gone on with, and how.

use std::io::{Read, Write};
use std::net::TcpStream as Client;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use rollcall_os::parking::{self, Mark as Begun};
use rollcall_protocol::frame::{self, Frames};
use rollcall_protocol::wire::{Hello, Mark, Pending, ToMaster, ToSlave, to_master, to_slave};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::sessions::{Dropped, Kind, begin};
use super::*;
use crate::connection::{Connection, Resumed, Transport};
use crate::listener::Accepting;
use crate::listener::tests::accepting;
use crate::roll::{Slot, Stamp};
use crate::testing::run;

const STREAM: u64 = 7;

fn hello() -> Hello {
    let pending = Pending {
        stream: STREAM,
        first: 1,
    };
    Hello {
        version_min: 1,
        version_max: 1,
        slave_id: vec![3; 16],
        name: "web-1".to_owned(),
        stream: STREAM,
        next_sequence: 1,
        interval_ms: 1000,
        pending: vec![pending],
        ..Hello::default()
    }
}

fn record(since_ms: i64) -> Vec<u8> {
    ParkedSession::new(&hello(), since_ms).encode_to_vec()
}

async fn pair() -> (Client, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// The slave has said Hello to the process before.
fn enroll(accepting: &Accepting) -> Slot {
    let stamp = Stamp {
        at: clock::boot(),
        wall_ms: clock::wall_ms(),
    };
    let mut roll = accepting.reactor.roll();
    let peer = "127.0.0.1:9".parse().unwrap();
    let id = accepting.reactor.next_session();
    let greeting = roll.handle_hello(&hello(), &[], peer, id, stamp).unwrap();
    let crate::roll::Greeting::Welcome { slot, .. } = greeting else {
        panic!("{greeting:?}");
    };
    roll.handle_disconnect(slot, id);
    slot
}

#[test]
fn a_session_is_resumed_if_the_roll_knows_it() {
    run(async {
        let accepting = accepting();
        let (_client, stream) = pair().await;
        let unknown = begin(&accepting, &stream, &record(5)).err();
        assert_eq!(unknown, Some(Dropped::Unknown));
        let slot = enroll(&accepting);
        let unreadable = begin(&accepting, &stream, &[255]).err();
        assert_eq!(unreadable, Some(Dropped::Unreadable));

        parking::leave(&stream, Begun::Greeting).unwrap();
        let Ok(Kind::Open(connection, resumed)) = begin(&accepting, &stream, &record(5)) else {
            panic!("it is not resumed");
        };
        assert!(resumed.owes_welcome && resumed.marks[0].stream == STREAM);
        assert!(accepting.reactor.roll().holds(slot, resumed.id));
        // An older connection of the same process is left over; a newer one takes over.
        let older = begin(&accepting, &stream, &record(4)).err();
        assert_eq!(older, Some(Dropped::Unknown));
        let newer = begin(&accepting, &stream, &record(6));
        assert!(matches!(newer, Ok(Kind::Open(..))));
        assert!(!accepting.reactor.roll().holds(slot, resumed.id));
        drop(connection);
    });
}

#[test]
fn what_is_durable_is_acked_before_anything_is_read() {
    run(async {
        let accepting = accepting();
        let slot = enroll(&accepting);
        let (client, stream) = pair().await;
        let mark = Mark {
            stream: STREAM,
            sequence: 4,
        };
        let resumed = Resumed {
            id: accepting.reactor.next_session(),
            slot,
            marks: vec![mark],
            owes_welcome: true,
        };
        let peer = stream.peer_addr().unwrap();
        let connection = Connection::resume(Rc::clone(&accepting.reactor), peer, &resumed);
        let served = connection.go_on(stream, resumed, accepting.stop.clone());
        let mut said = Vec::new();
        let reading = async {
            client.set_nonblocking(true).unwrap();
            let mut client = TcpStream::from_std(client).unwrap();
            while answers(&said).len() < 2 {
                assert!(client.read_buf(&mut said).await.unwrap() > 0);
            }
        };
        tokio::select! {
            () = served => panic!("nothing ends it"),
            () = reading => {}
        }
        let [to_slave::Kind::Welcome(welcome), to_slave::Kind::Ack(ack)] = &answers(&said)[..]
        else {
            panic!("{:?}", answers(&said));
        };
        assert_eq!(welcome.marks, [mark]);
        assert_eq!((ack.stream, ack.sequence, ack.received_ms), (STREAM, 4, 0));
    });
}

fn answers(bytes: &[u8]) -> Vec<to_slave::Kind> {
    let mut frames = Frames::new(bytes, bytes.len());
    let frames = std::iter::from_fn(|| frames.next_frame().unwrap());
    let messages = frames.map(|frame| frame.decode::<ToSlave>().unwrap());
    messages.filter_map(|message| message.kind).collect()
}

#[test]
fn a_hello_that_was_not_consumed_begins_anew() {
    run(async {
        let accepting = accepting();
        let (mut client, stream) = pair().await;
        let mut bytes = Vec::new();
        let kind = Some(to_master::Kind::Hello(hello()));
        frame::encode(&ToMaster { kind }, &mut bytes).unwrap();
        client.write_all(&bytes).unwrap();
        stream.readable().await.unwrap();
        let silent = begin(&accepting, &stream, &record(5));
        assert!(matches!(silent, Ok(Kind::Silent(_))));
    });
}

#[test]
fn what_may_be_torn_is_marked_until_it_is_written_and_dropped_till_then() {
    run(async {
        let accepting = accepting();
        enroll(&accepting);
        let (mut client, mut stream) = pair().await;
        let limit = Duration::from_secs(10);
        stream.write_marked(b"small", limit).await.unwrap();
        assert_eq!(parking::find(&stream).unwrap(), Begun::Whole);
        // More than all buffers take.
        let large = vec![7; 64 << 20];
        {
            let mut writing = std::pin::pin!(stream.write_marked(&large, limit));
            let none = Duration::from_millis(50);
            let early = tokio::time::timeout(none, &mut writing).await;
            assert!(early.is_err(), "nobody reads");
            // The process dies here.
        }
        let torn = begin(&accepting, &stream, &record(5)).err();
        assert_eq!(torn, Some(Dropped::Torn));
        let reader = std::thread::spawn(move || {
            let mut read = vec![0; 1 << 20];
            while client.read(&mut read).is_ok_and(|count| count > 0) {}
        });
        stream.write_marked(&large, limit).await.unwrap();
        assert_eq!(parking::find(&stream).unwrap(), Begun::Whole);
        stream.close().await;
        drop(stream);
        reader.join().unwrap();
    });
}

#[test]
fn without_a_store_only_an_upgrade_in_place_hands_over() {
    run(async {
        const FILES: u64 = 1024;
        let parking = Parking::new(None, FILES);
        let (_client, ours) = pair().await;
        let session = ParkedSession::new(&hello(), 1);
        parking.park(ours.as_fd(), &session).expect("parked");
        assert_eq!((parking.len(), parking.shards()), (1, 1));
        assert!(!parking.hand_over("SIGTERM") && !parking.is_handing_over());
        assert!(parking.hand_over_to_oneself() && parking.is_handing_over());
        let passed = parking.pass_on();
        assert_eq!((passed.len(), parking.len()), (2, 0));
        let next = Parking::new(None, FILES);
        let parked = next.take_over(passed);
        assert_eq!((parked.len(), next.len()), (1, 1));
        // What the tests of the rest of the master run on parks nothing.
        let parking = Parking::default();
        assert!(parking.park(ours.as_fd(), &session).is_none());
    });
}
