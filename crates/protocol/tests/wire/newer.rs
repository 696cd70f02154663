//! What a newer minor version sends is skipped by this one, and what this one leaves out is read as
//! nothing said.

use rollcall_protocol::Moment;
use rollcall_protocol::frame::Frame;
use rollcall_protocol::session::{MasterSession, SlaveSession, master, slave};
use rollcall_protocol::wire::{Ack, Pending, ToMaster, ToSlave, to_master, to_slave};

use crate::examples;
use crate::hex;
use std::time::Duration;

fn decode<M: prost::Message + Default>(text: &str) -> M {
    let bytes = hex::parse(text).expect("bytes");
    let frame = Frame::peek(&bytes, 100)
        .expect("a frame")
        .expect("a whole one");
    assert_eq!(frame.taken, bytes.len());
    frame.decode().expect("a message")
}

#[test]
fn unknown_fields_are_skipped() {
    // An Ack of stream 1, sequence 2, with field 31 as varint, 32 as text, 33 as fixed64, 34 as fixed32.
    let message: ToSlave = decode(
        "00000026 12 24 09 0100000000000000 10 02 \
         f801 05 8202 03 616263 8902 0000000000000000 9502 00000000",
    );
    let expected = Ack {
        stream: 1,
        sequence: 2,
        ..Ack::default()
    };
    assert_eq!(message.kind, Some(to_slave::Kind::Ack(expected)));
}

#[test]
fn unknown_kinds_are_skipped_by_both_sessions() {
    // Kind 15 with three bytes that mean nothing to anybody.
    let newer = "00000005 7a 03 010203";
    let to_slave: ToSlave = decode(newer);
    let to_master: ToMaster = decode(newer);
    assert_eq!(
        (to_slave.kind.as_ref(), to_master.kind.as_ref()),
        (None, None)
    );

    let timeouts = slave::SlaveTimeouts {
        welcome: Duration::from_secs(5),
        ack: Duration::from_secs(60),
    };
    let mut slave = SlaveSession::new(Moment::ZERO, timeouts, Vec::<Pending>::new(), 0);
    assert_eq!(
        slave.handle_message(to_slave, Moment::ZERO),
        slave::Step::Skipped
    );

    let mut master = MasterSession::new(Moment::ZERO, Duration::from_secs(5));
    let hello = examples::all()
        .into_iter()
        .find(|example| example.name == "hello-pooled");
    let bytes = hello.expect("it exists").encode();
    let hello: ToMaster = Frame::peek(&bytes, 1000)
        .unwrap()
        .unwrap()
        .decode()
        .unwrap();
    assert!(matches!(hello.kind, Some(to_master::Kind::Hello(_))));
    // Before Hello nothing may come, known or not.
    let early =
        MasterSession::new(Moment::ZERO, Duration::from_secs(5)).handle_message(to_master.clone());
    assert!(early.is_err());
    master.handle_message(hello).unwrap();
    assert_eq!(master.handle_message(to_master), Ok(master::Step::Skipped));
}
