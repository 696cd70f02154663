//! The bytes of every message, as they were when version 1 was released.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use protox::prost_reflect::DynamicMessage;
use rollcall_protocol::frame::Frames;
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::wire::{ToMaster, ToSlave, to_master, to_slave};

use crate::examples::{self, Either, Example};
use crate::{describe, hex};

/// Set to 1, files that are missing are written. Those that exist never are.
const WRITE_MISSING: &str = "ROLLCALL_WRITE_MISSING_GOLDEN";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1")
}

/// What the golden file of `example` holds.
pub(crate) fn golden_bytes(example: &Example) -> Vec<u8> {
    let path = folder().join(format!("{}.hex", example.name));
    if !path.exists() && std::env::var_os(WRITE_MISSING).is_some() {
        let text = format!("# {}\n{}", example.name, hex::print(&example.encode()));
        fs::write(&path, text).expect("the golden folder can be written");
    }
    let text = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}.\nAn example is new? `{WRITE_MISSING}=1 cargo test -p rollcall-protocol --test wire` writes its file; look at it before you commit it.",
            path.display()
        )
    });
    hex::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn no_byte_of_version_1_has_changed() {
    for example in examples::all() {
        let (golden, now) = (golden_bytes(&example), example.encode());
        assert!(
            golden == now,
            "the bytes of \"{}\" have changed. Slaves and masters in the field speak the golden ones.\n\
             Was a field renumbered, or its type changed? Take it back: field numbers and types are for ever.\n\
             Was a field added to the example? Leave this example as it is and add a new one.\n\
             golden:\n{}now:\n{}",
            example.name,
            hex::print(&golden),
            hex::print(&now),
        );
    }
}

#[test]
fn golden_bytes_decode_to_the_messages_they_were_made_of() {
    for example in examples::all() {
        let decoded = example.decode(&golden_bytes(&example));
        assert_eq!(
            decoded.as_ref(),
            Ok(&example.messages),
            "\"{}\" is read in another way than it was written",
            example.name
        );
    }
}

#[test]
fn every_golden_file_belongs_to_an_example() {
    let known: BTreeSet<String> = examples::all()
        .iter()
        .map(|example| format!("{}.hex", example.name))
        .collect();
    let files: BTreeSet<String> = fs::read_dir(folder())
        .expect("the golden folder")
        .map(|file| file.expect("a file").file_name().into_string())
        .collect::<Result<_, _>>()
        .expect("UTF-8");
    assert_eq!(files, known, "left: the files, right: the examples");
}

/// The golden file that shows a kind of message with every field set. A new kind does not compile
/// until it is named here.
fn full_example(message: &Either) -> &'static str {
    match message {
        Either::ToMaster(ToMaster { kind: Some(kind) }) => match kind {
            to_master::Kind::Hello(_) => "hello",
            to_master::Kind::Report(_) => "report",
            to_master::Kind::Gap(_) => "gap",
            to_master::Kind::Goodbye(_) => "slave-goodbye",
        },
        Either::ToSlave(ToSlave { kind: Some(kind) }) => match kind {
            to_slave::Kind::Welcome(_) => "welcome",
            to_slave::Kind::Ack(_) => "ack",
            to_slave::Kind::Resync(_) => "resync",
            to_slave::Kind::Goodbye(_) => "master-goodbye",
            to_slave::Kind::Error(_) => "error",
            to_slave::Kind::Answer(_) => "answer",
            to_slave::Kind::ComeBack(_) => "come-back",
        },
        _ => panic!("an example without a kind"),
    }
}

#[test]
fn each_kind_is_shown_by_the_example_of_its_name() {
    let examples = examples::all();
    for example in &examples {
        for message in &example.messages {
            let full = full_example(message);
            let shown = examples.iter().find(|example| example.name == full);
            let shown = shown.unwrap_or_else(|| panic!("no example is named \"{full}\""));
            assert_eq!(full_example(&shown.messages[0]), full);
        }
    }
}

/// A second implementation of protobuf, which reads the published `.proto` at run time, sees in the
/// golden bytes every message, every field of it, and every value of every enum.
#[test]
fn every_field_and_every_enum_value_of_the_proto_is_shown() {
    let pool = describe::pool();
    let mut seen = BTreeSet::new();
    for example in examples::all() {
        let around = match example.messages[0] {
            Either::ToMaster(_) => "rollcall.v1.ToMaster",
            Either::ToSlave(_) => "rollcall.v1.ToSlave",
        };
        let around = pool.get_message_by_name(around).expect("it is there");
        let bytes = golden_bytes(&example);
        let mut frames = Frames::new(&bytes, FRAME_PAYLOAD_BYTES_MAX);
        while let Some(frame) = frames.next_frame().expect("golden frames are frames") {
            let message = DynamicMessage::decode(around.clone(), frame.payload)
                .expect("golden payloads are messages");
            assert_eq!(message.unknown_fields().count(), 0, "{}", example.name);
            describe::note_contents(&message, &mut seen);
        }
    }
    let mut wanted = BTreeSet::new();
    for message in describe::messages(&pool) {
        for field in message.fields() {
            wanted.insert(format!("{}.{}", message.name(), field.name()));
        }
    }
    for declared in describe::enums(&pool) {
        // Zero is what a field has that is not sent.
        for value in declared.values().filter(|value| value.number() != 0) {
            wanted.insert(format!("{}.{}", declared.name(), value.name()));
        }
    }
    let missing: Vec<_> = wanted.difference(&seen).collect();
    assert!(
        missing.is_empty(),
        "no golden file shows {missing:?}: add an example that sets them"
    );
}
