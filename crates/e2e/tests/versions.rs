//! What earlier versions have written is read, and what they say is understood.
//!
//! `fixtures/vX.Y.Z/` has a store and a spool as that version's daemons left them, and what was in them.
//! `ROLLCALL_WRITE_FIXTURES=1 cargo test -p rollcall-e2e --test versions` writes those of the present
//! version if they are missing: with every release, before anything else is changed. Files that exist
//! are never written.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::thread;

use prost::Message;
use rollcall_e2e::faults::fleet::{Fleet, SCRIPT};
use rollcall_e2e::peer::Identity;
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Api, Master, Peer, Slave};
use rollcall_protocol::api::{EventKind, EventRow, Presence, SlaveRow};
use rollcall_protocol::wire::{ToMaster, to_master, to_slave};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

/// As sysexits.h and the daemons' --help have it.
const EXIT_STORE: i32 = 74;
/// The stream in all golden frames, as it is on the wire.
const GOLDEN_STREAM: [u8; 8] = 0x1122_3344_5566_7788_u64.to_le_bytes();
const SPOOLED: u32 = 5;

/// What readers saw when the daemons of the version had ended.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Content {
    slaves: Vec<Known>,
    events: Vec<Told>,
    /// The stream of the spool.
    spooled_stream: String,
    /// The reports in it.
    spooled: u32,
}

/// What of a row does not depend on when it is looked at.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    name: String,
    id: String,
    presence: String,
    health: Option<String>,
    stream: String,
    sequence: u64,
    applied: u64,
    gaps: u64,
    since_ms: i64,
    last_seen_ms: Option<i64>,
    interval_ms: u32,
}

/// The same of an event.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Told {
    id: i64,
    time_ms: i64,
    kind: String,
    slave: Option<String>,
    from: Option<String>,
    to: Option<String>,
    text: String,
}

fn known(row: SlaveRow) -> Known {
    Known {
        name: row.name,
        id: row.id,
        presence: row.presence.as_str().to_owned(),
        health: row.health.map(|health| health.as_str().to_owned()),
        stream: row.stream,
        sequence: row.sequence,
        applied: row.applied,
        gaps: row.gaps,
        since_ms: row.since_ms,
        last_seen_ms: row.last_seen_ms,
        interval_ms: row.interval_ms,
    }
}

fn told(event: EventRow) -> Told {
    Told {
        id: event.id,
        time_ms: event.time_ms,
        kind: event.kind.as_str().to_owned(),
        slave: event.slave,
        from: event.from,
        to: event.to,
        text: event.text,
    }
}

fn roll(api: &Api) -> Vec<Known> {
    let rows = api.slaves().expect("the roll");
    rows.into_iter().map(known).collect()
}

fn events(api: &Api) -> Vec<Told> {
    let events = api.events().expect("the events");
    events.into_iter().map(told).collect()
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The folders of all versions that are kept. Writes that of the present one if it is asked for.
fn versions() -> Vec<PathBuf> {
    let own = fixtures().join(concat!("v", env!("CARGO_PKG_VERSION")));
    if std::env::var_os("ROLLCALL_WRITE_FIXTURES").is_some() && !own.exists() {
        write(&own);
    }
    let found = fs::read_dir(fixtures()).expect("the fixtures");
    let found = found.map(|entry| entry.expect("an entry").path());
    let versions: Vec<_> = found.collect();
    assert!(versions.contains(&own), "no fixtures of this version");
    versions
}

fn content(version: &Path) -> Content {
    let text = fs::read_to_string(version.join("content.json")).expect("content.json");
    serde_json::from_str(&text).expect("content.json as it is written here")
}

/// Runs the daemons of this build and keeps what they leave.
fn write(own: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::started(folder.path());
    let mut fleet = Fleet::new();
    fleet.play(master.address(), &SCRIPT).expect("the script");
    // The next start writes the records; what comes then is redo.
    assert_eq!(master.terminate().code(), Some(0));
    master.start();
    let mut identity = Identity::new("redo", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    for _ in 0..3 {
        peer.report(&mut identity).expect("an ack");
    }
    master.wait_for_row("redo", "at 3", |row| row.sequence == 3);
    let (slaves, events) = (roll(&master.api()), events(&master.api()));
    assert_eq!(master.terminate().code(), Some(0));

    let mut slave = Slave::new(folder.path(), "spooled", &[master.address()], "100ms");
    slave.start();
    let stream = slave
        .wait_for_event("slave_ready")
        .text("stream")
        .to_owned();
    slave.wait_for_spooled(SPOOLED);
    assert_eq!(slave.terminate().code(), Some(0));
    let content = Content {
        slaves,
        events,
        spooled_stream: stream,
        spooled: slave.spooled().expect("the spool"),
    };
    fs::create_dir_all(own).expect("a folder");
    for (state, file) in [("master-state", "master.db"), ("spooled-state", "spool.db")] {
        let path = folder.path().join(state).join(file);
        fold(&path);
        fs::copy(path, own.join(file)).expect("a copy");
    }
    let text = serde_json::to_string_pretty(&content).expect("JSON");
    fs::write(own.join("content.json"), text + "\n").expect("content.json");
}

/// All of the database in one file, without what it does not use.
fn fold(path: &Path) {
    let database = Connection::open(path).expect("a database");
    let fold = "VACUUM; PRAGMA wal_checkpoint(TRUNCATE);";
    database.execute_batch(fold).expect("it can be written");
}

/// A copy of what a version left, as the state of a daemon in `folder`.
fn restore(version: &Path, file: &str, folder: &Path, state: &str) -> PathBuf {
    let state = folder.join(state);
    fs::create_dir_all(&state).expect("a folder");
    let path = state.join(file);
    fs::copy(version.join(file), &path).expect("a copy");
    path
}

#[test]
fn a_store_of_every_version_is_opened_with_all_that_is_in_it() {
    for version in versions() {
        let content = content(&version);
        let folder = tempfile::tempdir().expect("a folder");
        restore(&version, "master.db", folder.path(), "master-state");
        let mut master = Master::new(folder.path(), "master");
        master.config.set("history.keep", "3650d");
        master.start();
        let api = master.api();
        assert_eq!(roll(&api), content.slaves, "{version:?}");
        assert!(
            content.slaves.iter().any(|slave| slave.gaps > 0),
            "the fixture has a gap"
        );
        let mut events = events(&api);
        events.truncate(content.events.len());
        assert_eq!(events, content.events, "{version:?}");
        let log = master.log();
        assert_eq!(log.events("store_set_aside"), [], "{version:?}");

        // Whoever was there comes back and goes on where it was.
        let last = content.slaves.iter().find(|slave| slave.name == "redo");
        let last = last.expect("a slave called redo");
        let mut identity = Identity::new("redo", 60_000);
        identity.id = u128::from_str_radix(&last.id, 16)
            .expect("an id")
            .to_be_bytes();
        identity.stream = u64::from_str_radix(&last.stream, 16).expect("a stream");
        (identity.next, identity.unacked) = (last.sequence + 1, last.sequence + 1);
        let (mut peer, welcome) = Peer::open(master.address(), &identity).expect("a session");
        assert_eq!(welcome.marks[0].sequence, last.sequence, "{version:?}");
        peer.report(&mut identity).expect("an ack");
        master.wait_for_row("redo", "further", |row| {
            (row.sequence, row.applied, row.duplicates) == (last.sequence + 1, last.applied + 1, 0)
        });
    }
}

#[test]
fn a_spool_of_every_version_is_delivered() {
    for version in versions() {
        let content = content(&version);
        let folder = tempfile::tempdir().expect("a folder");
        restore(&version, "spool.db", folder.path(), "spooled-state");
        let mut master = Master::started(folder.path());
        let mut slave = Slave::new(folder.path(), "spooled", &[master.address()], "200ms");
        // However old the fixture is.
        slave.config.set("spool.age_max", "3650d");
        slave.start();
        let ready = slave.wait_for_event("slave_ready");
        assert_eq!(
            ready.number("backlog"),
            Some(content.spooled.into()),
            "{version:?}"
        );
        assert_eq!(slave.log().events("spool_set_aside"), [], "{version:?}");
        let own = ready.text("stream").to_owned();
        assert_ne!(own, content.spooled_stream);
        master.wait_for_row("spooled", "up to date", |row| {
            row.stream == own && row.sequence >= 2
        });
        assert_eq!(slave.terminate().code(), Some(0));
        let row = master.wait_for_row("spooled", "gone", |row| row.presence == Presence::Left);
        assert_eq!(row.applied, u64::from(content.spooled) + row.sequence);
        assert_eq!((row.gaps, slave.spooled()), (0, Ok(0)), "{version:?}");
        assert_eq!(master.terminate().code(), Some(0));
    }
}

fn newer(path: &Path) -> Vec<u8> {
    let database = Connection::open(path).expect("a database");
    database
        .execute_batch("PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE)")
        .expect("it can be written");
    drop(database);
    fs::read(path).expect("a file")
}

/// A downgrade: nothing is touched, and the message says what to do.
#[test]
fn a_store_of_a_newer_version_is_refused_and_left_alone() {
    let own = fixtures().join(concat!("v", env!("CARGO_PKG_VERSION")));
    let folder = tempfile::tempdir().expect("a folder");
    let path = restore(&own, "master.db", folder.path(), "master-state");
    let before = newer(&path);
    let mut master = Master::new(folder.path(), "master");
    master.spawn();
    assert_eq!(master.wait(PATIENCE).code(), Some(EXIT_STORE));
    let stderr = master.stderr();
    for part in [
        "schema version 99",
        "install the newer rollcall-master again",
        "[state] directory",
        &*path.to_string_lossy(),
    ] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
    assert_eq!(fs::read(&path).expect("a file"), before);
}

/// A slave must start in any case: it keeps the spool for the newer version, and says where.
#[test]
fn a_spool_of_a_newer_version_is_kept_aside_for_it() {
    let own = fixtures().join(concat!("v", env!("CARGO_PKG_VERSION")));
    let folder = tempfile::tempdir().expect("a folder");
    let path = restore(&own, "spool.db", folder.path(), "spooled-state");
    let before = newer(&path);
    let master = Master::started(folder.path());
    let mut slave = Slave::new(folder.path(), "spooled", &[master.address()], "200ms");
    slave.start();
    let line = slave.wait_for_event("spool_set_aside");
    let kept = line.text("path");
    assert!(kept.contains("spool.db.newer-"), "{line:?}");
    let reason = line.text("error");
    assert!(reason.contains("version 99"), "{line:?}");
    assert_eq!(fs::read(kept).expect("the spool"), before);
    master.wait_for_row("spooled", "up", |row| row.sequence >= 2);
}

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

/// The words of the fixtures are those of the API.
#[test]
fn a_fixture_has_every_kind_of_event_that_a_fleet_makes() {
    for version in versions() {
        let content = content(&version);
        for kind in [
            EventKind::Enrolled,
            EventKind::Presence,
            EventKind::Health,
            EventKind::Check,
            EventKind::Gap,
            EventKind::MasterStart,
        ] {
            let has = content
                .events
                .iter()
                .any(|event| event.kind == kind.as_str());
            assert!(has, "{version:?} has no {kind:?}");
        }
    }
}
