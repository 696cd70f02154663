//! What a claimed length or a crafted payload can make the decoder allocate: nothing for what is
//! claimed, and a bounded multiple of what has come.
//!
//! Three facts together bound it. A frame is a borrowed part of bytes that the caller holds already,
//! so finding one allocates nothing. A length inside a payload that goes beyond the payload is an
//! error before anything is reserved for it. And what a payload of the largest size decodes to has a
//! number of elements that is bounded by its bytes, measured here at the worst case of each
//! repeated field.

use std::mem::size_of;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use rollcall_protocol::frame::{Frame, FrameError};
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::wire::{
    Check, Hello, Mark, Metric, Pending, ToMaster, ToSlave, to_master, to_slave,
};

/// Most bytes of memory for each byte of a payload. The largest element, a Check, takes at least two
/// bytes on the wire, and a vector has at most room for twice its elements.
const AMPLIFICATION_MAX: usize = size_of::<Check>();

#[test]
fn a_claimed_frame_of_4_gib_is_refused_by_its_header_alone() {
    let header = u32::MAX.to_be_bytes();
    let error = FrameError::Length {
        length: u32::MAX,
        limit: FRAME_PAYLOAD_BYTES_MAX,
    };
    assert_eq!(Frame::peek(&header, FRAME_PAYLOAD_BYTES_MAX), Err(error));
    // One byte over the limit, and the limit itself: only the latter may still come.
    let at = |length: usize| u32::try_from(length).unwrap().to_be_bytes();
    let peek = |header: &[u8; 4]| Frame::peek(header, FRAME_PAYLOAD_BYTES_MAX).is_ok();
    assert!(!peek(&at(FRAME_PAYLOAD_BYTES_MAX + 1)));
    assert!(peek(&at(FRAME_PAYLOAD_BYTES_MAX)));
}

#[test]
fn a_frame_is_a_part_of_the_bytes_that_were_given() {
    let bytes = [0, 0, 0, 2, 0x22, 0, 0xff];
    let frame = Frame::peek(&bytes, 100).unwrap().unwrap();
    assert_eq!(
        bytes.as_ptr_range().start.wrapping_add(4),
        frame.payload.as_ptr()
    );
    assert_eq!(frame.payload, [0x22, 0]);
}

/// A field of wire type "length-delimited" with a length of its own choice.
fn claim(field: u32, length: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_key(field, WireType::LengthDelimited, &mut bytes);
    encode_varint(length, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

fn wrap(field: u32, content: &[u8]) -> Vec<u8> {
    claim(field, content.len() as u64, content)
}

#[test]
fn an_inner_length_beyond_the_payload_is_an_error_and_reserves_nothing() {
    // Had it been reserved, 2^62 bytes would end this process.
    for length in [5, 1 << 20, 1 << 32, 1 << 62, u64::MAX] {
        let text = claim(9, length, b"four");
        let bytes = claim(3, length, b"four");
        let nested = claim(11, length, &[]);
        for hello in [&text, &bytes, &nested] {
            let payload = wrap(1, hello);
            assert!(ToMaster::decode(&payload[..]).is_err(), "{length}");
        }
        assert!(ToMaster::decode(&claim(1, length, b"four")[..]).is_err());
        assert!(ToSlave::decode(&claim(5, length, b"four")[..]).is_err());
    }
}

/// As many empty elements of `field` as fit, inside the fields `around`, the outermost first.
fn stuffed(around: &[u32], field: u32) -> Vec<u8> {
    let element = claim(field, 0, &[]);
    let room = FRAME_PAYLOAD_BYTES_MAX - 4 * around.len() - 4;
    let inner = element.repeat(room / element.len());
    around
        .iter()
        .rev()
        .fold(inner, |inner, &field| wrap(field, &inner))
}

fn decode(payload: &[u8]) -> to_master::Kind {
    assert!(payload.len() <= FRAME_PAYLOAD_BYTES_MAX);
    assert!(payload.len() > FRAME_PAYLOAD_BYTES_MAX - 32);
    let message = ToMaster::decode(payload).expect("it is stuffed, and valid");
    message.kind.expect("a known kind")
}

#[test]
fn the_most_elements_of_a_payload_are_bounded_by_its_bytes() {
    let mut worst = 0;
    let mut note = |count: usize, size: usize| {
        assert!(count > 20_000, "{count}: the payload is not stuffed");
        worst = worst.max(count * size);
    };
    let to_master::Kind::Report(report) = decode(&stuffed(&[2, 6], 1)) else {
        panic!("not a report");
    };
    let checks = report.status.unwrap().checks;
    note(checks.capacity(), size_of::<Check>());

    let to_master::Kind::Report(report) = decode(&stuffed(&[2, 6, 1], 4)) else {
        panic!("not a report");
    };
    let metrics = &report.status.unwrap().checks[0].metrics;
    note(metrics.capacity(), size_of::<Metric>());

    let to_master::Kind::Hello(hello) = decode(&stuffed(&[1], 11)) else {
        panic!("not a Hello");
    };
    note(hello.pending.capacity(), size_of::<Pending>());

    let welcome = ToSlave::decode(&stuffed(&[1], 4)[..]).unwrap().kind;
    let Some(to_slave::Kind::Welcome(welcome)) = welcome else {
        panic!("not a Welcome");
    };
    note(welcome.marks.capacity(), size_of::<Mark>());

    assert!(
        worst <= AMPLIFICATION_MAX * FRAME_PAYLOAD_BYTES_MAX,
        "{worst} bytes for one frame"
    );
}

#[test]
fn labels_of_one_key_are_one_label() {
    let payload = stuffed(&[1], 13);
    let to_master::Kind::Hello(Hello { labels, .. }) = decode(&payload) else {
        panic!("not a Hello");
    };
    assert_eq!(labels.len(), 1);
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow_of_the_stack() {
    // Groups are obsolete, and still the only thing that nests in a schema without recursion.
    let groups = vec![0x1b; FRAME_PAYLOAD_BYTES_MAX];
    assert!(ToMaster::decode(&groups[..]).is_err());
    assert!(ToSlave::decode(&groups[..]).is_err());
    let nested = (0..5_000).fold(Vec::new(), |inner, _| wrap(1, &inner));
    let nested = &nested[nested.len() - nested.len().min(FRAME_PAYLOAD_BYTES_MAX)..];
    // Whatever it is taken for, it is decided without going 5,000 levels down.
    let _ = ToMaster::decode(nested);
}
