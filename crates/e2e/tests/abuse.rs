//! Peers that are no slaves: the master's memory stays flat, others are served, and the log has a
//! few lines.

use std::io;
use std::time::Duration;

use rollcall_e2e::peer::{Identity, frame};
use rollcall_e2e::skip::skip_loudly;
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Peer, wait_until};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::wire::{ErrorCode, to_master};
use rustix::process::Signal;

/// How long a peer may be silent in these tests, in milliseconds.
const HELLO_TIMEOUT_MS: u64 = 5000;
/// By how much the resident memory of the master may grow for abuse of any number of connections
/// one after another: what the allocator keeps.
const GROWTH_MAX_KIB: u64 = 6 * 1024;
/// By how much for each connection that is open: its task, its socket's registration, its timer.
const PER_CONNECTION_MAX_BYTES: u64 = 4 * 1024;
/// What the master writes about one address in a minute at most.
const LINES_MAX: usize = 10;
/// The longest that an honest slave may wait for an ack meanwhile, on a machine that is very busy.
const LATENCY_MAX: Duration = Duration::from_secs(10);

/// An honest slave and an honest reader, which must not notice any of it.
struct Honest {
    identity: Identity,
    peer: Peer,
    latencies: Vec<Duration>,
}

impl Honest {
    fn new(master: &Master) -> Self {
        let identity = Identity::new("honest", 1000);
        let (peer, _) = Peer::open(master.address(), &identity).expect("a session");
        Self {
            identity,
            peer,
            latencies: Vec::new(),
        }
    }

    fn is_served(&mut self, master: &Master) {
        let latency = self.peer.report(&mut self.identity).expect("an ack");
        self.latencies.push(latency);
        assert_eq!(master.api().health().expect("an answer"), 200);
    }

    /// It was served all the time, and the roll has all of it.
    fn finish(mut self, master: &Master) {
        let sent = self.identity.unacked - 1;
        let row = master.wait_for_row("honest", "up to date", |row| row.sequence == sent);
        assert_eq!((row.applied, row.duplicates, row.reconnects), (sent, 0, 0));
        assert_eq!(master.api().presences("honest").expect("events"), ["up"]);
        self.latencies.sort();
        let [median, longest] = [self.latencies.len() / 2, self.latencies.len() - 1];
        let [median, longest] = [median, longest].map(|at| self.latencies[at]);
        println!("acks of the honest slave: median {median:?}, longest {longest:?}");
        assert!(longest < LATENCY_MAX, "{longest:?}");
    }
}

fn master(folder: &tempfile::TempDir) -> Master {
    let mut master = Master::new(folder.path(), "master");
    let timeout = format!("{HELLO_TIMEOUT_MS}ms");
    master.config.set("session.hello_timeout", timeout);
    // "up" for as long as the test takes, whatever the machine is busy with.
    master.config.set("presence.late_after", 60.0);
    master.config.set("presence.missing_after", 120.0);
    master.start();
    master
}

/// Each kind of nonsense, many times over: an Error frame that says what was wrong, then the end.
#[test]
fn nonsense_is_refused_by_name_and_costs_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = master(&folder);
    let mut honest = Honest::new(&master);
    honest.is_served(&master);
    let before_kib = master.rss_kib();

    // A frame by its length, and no message.
    let garbage = [&[0, 0, 16, 0], &[0xff; 4096][..]].concat();
    let mut hello = Identity::new("Not A Name", 1000).hello();
    let bad_name = frame(to_master::Kind::Hello(hello.clone()));
    hello.name = "from-the-future".to_owned();
    (hello.version_min, hello.version_max) = (900, 901);
    let bad_version = frame(to_master::Kind::Hello(hello));
    let report = Identity::new("early", 1000).report(1);
    let early = frame(to_master::Kind::Report(report));
    let http = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
    let kinds: [(&str, Vec<u8>, ErrorCode, &str); 7] = [
        (
            "garbage",
            garbage,
            ErrorCode::Protocol,
            "not a message of this protocol",
        ),
        (
            "4 GiB",
            u32::MAX.to_be_bytes().to_vec(),
            ErrorCode::FrameLength,
            "4294967295",
        ),
        (
            "zero length",
            vec![0; 4],
            ErrorCode::FrameLength,
            "a frame of 0 bytes",
        ),
        ("HTTP", http, ErrorCode::FrameLength, "1195725856"),
        ("a bad name", bad_name, ErrorCode::Invalid, "Not A Name"),
        (
            "no version in common",
            bad_version,
            ErrorCode::Version,
            "900",
        ),
        ("a report before Hello", early, ErrorCode::Protocol, "Hello"),
    ];
    let mut refused = 0;
    for (what, bytes, code, text) in &kinds {
        for _ in 0..100 {
            let mut peer = Peer::connect(master.address()).expect("a connection");
            peer.send_bytes(bytes).expect("room in the kernel");
            let error = peer
                .await_refusal()
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(error.code(), *code, "{what}: {error:?}");
            assert!(error.text.contains(text), "{what}: {error:?}");
            assert!(!error.retry, "{what}: {error:?}");
            refused += 1;
        }
        honest.is_served(&master);
    }
    let growth_kib = master.rss_kib().saturating_sub(before_kib);
    println!("{refused} refusals cost {growth_kib} KiB");
    assert!(growth_kib < GROWTH_MAX_KIB, "{growth_kib} KiB");
    assert_few_lines(&master, refused);
    honest.finish(&master);
    assert_eq!(
        master.api().slaves().expect("the roll").len(),
        1,
        "nobody else is on it"
    );
}

/// A frame that is announced and never whole, and a frame that is cut by the end of the stream.
#[test]
fn a_cut_frame_ends_and_is_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = master(&folder);
    let mut honest = Honest::new(&master);
    let hello = frame(to_master::Kind::Hello(Identity::new("cut", 1000).hello()));
    for length in [1, 3, 4, 5, hello.len() - 1] {
        let mut peer = Peer::connect(master.address()).expect("a connection");
        peer.send_bytes(&hello[..length])
            .expect("room in the kernel");
        peer.finish().expect("a connection");
        peer.await_close()
            .unwrap_or_else(|error| panic!("{length} bytes: {error}"));
    }
    honest.is_served(&master);
    // The same without the end of the stream: the time for Hello runs out.
    let began = clock::boot();
    let mut peer = Peer::connect(master.address()).expect("a connection");
    peer.send_bytes(&hello[..hello.len() - 1])
        .expect("room in the kernel");
    assert_timed_out(&mut peer, began);
    // In the middle of a session there is no such time; what was whole is acked.
    let mut identity = Identity::new("half", 1000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    let next = frame(to_master::Kind::Report(identity.report(2)));
    peer.send_bytes(&next[..next.len() / 2])
        .expect("room in the kernel");
    honest.is_served(&master);
    peer.send_bytes(&next[next.len() / 2..])
        .expect("room in the kernel");
    identity.next = 3;
    peer.await_ack(&mut identity).expect("an ack");
    honest.finish(&master);
    assert_eq!(master.api().slaves().expect("the roll").len(), 2);
}

#[test]
fn a_peer_that_says_nothing_is_closed_in_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = master(&folder);
    let mut honest = Honest::new(&master);
    let began = clock::boot();
    let mut peers: Vec<Peer> = (0..50)
        .map(|_| Peer::connect(master.address()).expect("a connection"))
        .collect();
    honest.is_served(&master);
    for peer in &mut peers {
        assert_timed_out(peer, began);
    }
    assert_few_lines(&master, 50);
    honest.finish(&master);
}

/// 10,000 connections that each send one byte.
#[test]
fn ten_thousand_half_open_connections_leave_memory_flat_and_others_served() {
    const WANTED: u64 = 10_000;
    let files = rollcall_os::limits::raise_open_files().expect("a limit of open files");
    // The master's limit is the same one, and has to hold a few more.
    let count = WANTED.min(files.saturating_sub(1000));
    if count < WANTED {
        let why = format!("only {count} connections fit into the limit of {files} open files");
        skip_loudly("10,000 connections that send one byte", &why);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    // They all stay until it was measured.
    master.config.set("session.hello_timeout", "5m");
    master.config.set("presence.late_after", 60.0);
    master.config.set("presence.missing_after", 120.0);
    master.start();
    let mut honest = Honest::new(&master);
    honest.is_served(&master);
    let before_kib = master.rss_kib();
    let began = clock::boot();
    let mut peers = Vec::new();
    for number in 1..=count {
        let mut peer = Peer::connect(master.address()).expect("a connection");
        peer.send_bytes(&[0]).expect("room in the kernel");
        peers.push(peer);
        if number % 500 == 0 {
            honest.is_served(&master);
        }
    }
    let open = f64::from(u32::try_from(count).expect("few"));
    wait_until(PATIENCE, "all connections to be accepted", || {
        (master.api().metric("rollcall_connections").ok()? > open).then_some(())
    });
    let growth = 1024 * master.rss_kib().saturating_sub(before_kib) / count;
    println!(
        "{count} connections in {:?}: {growth} bytes each",
        clock::boot().saturating_since(began)
    );
    assert!(
        growth < PER_CONNECTION_MAX_BYTES,
        "{growth} bytes a connection"
    );
    honest.is_served(&master);
    let full_kib = master.rss_kib();

    // They end without a word.
    peers.clear();
    wait_until_gone(&master);
    // They come again, and this time the master ends them.
    master.config.set("session.hello_timeout", "1s");
    master.config.write(&master.config_file());
    master.signal(Signal::HUP);
    master.wait_for_event("reloaded");
    for _ in 0..count {
        let mut peer = Peer::connect(master.address()).expect("a connection");
        ignore_reset(peer.send_bytes(&[0]));
        peers.push(peer);
    }
    honest.is_served(&master);
    wait_until_gone(&master);
    honest.is_served(&master);
    let growth_kib = master.rss_kib().saturating_sub(full_kib);
    println!("the second time cost {growth_kib} KiB");
    assert!(
        growth_kib < GROWTH_MAX_KIB,
        "{growth_kib} KiB more than with all of them open"
    );
    assert_few_lines(&master, usize::try_from(count).expect("few"));
    honest.finish(&master);
}

/// Waits until only the honest slave is connected.
fn wait_until_gone(master: &Master) {
    wait_until(PATIENCE, "the connections to be gone", || {
        (master.api().metric("rollcall_connections").ok()? < 2.0).then_some(())
    });
}

/// A peer that is refused may be reset while it still sends.
fn ignore_reset(sent: io::Result<()>) {
    if let Err(error) = sent {
        let kind = error.kind();
        assert!(
            matches!(
                kind,
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ),
            "{error}"
        );
    }
}

fn assert_timed_out(peer: &mut Peer, began: Moment) {
    let error = peer.await_refusal().expect("an Error frame");
    assert_eq!(error.code(), ErrorCode::Timeout, "{error:?}");
    assert!(error.text.contains("no Hello in time"), "{error:?}");
    let took = clock::boot().saturating_since(began);
    let timeout = Duration::from_millis(HELLO_TIMEOUT_MS);
    assert!(took >= timeout, "too early: {took:?}");
    assert!(took < timeout + LATENCY_MAX, "too late: {took:?}");
}

/// All of it came from one address: a few lines a minute, and the metrics have the rest.
fn assert_few_lines(master: &Master, refused: usize) {
    let lines = master.log().events("session_refused");
    assert!(
        (1..=LINES_MAX).contains(&lines.len()),
        "{} lines",
        lines.len()
    );
    for line in &lines {
        assert_eq!(line.text("level"), "WARN");
        assert!(line.text("peer").starts_with("127.0.0.1:"), "{line:?}");
        assert!(line.text("code").starts_with("ERROR_CODE_"), "{line:?}");
        assert!(!line.text("error").is_empty(), "{line:?}");
        assert!(line.number("suppressed").is_some(), "{line:?}");
    }
    let api = master.api();
    let metric = |name| api.metric(name).expect("a metric");
    let count = |number: usize| f64::from(u32::try_from(number).expect("few"));
    assert!(metric("rollcall_connections_refused_total") >= count(refused));
    assert!(metric("rollcall_log_lines_suppressed_total") >= count(refused - LINES_MAX));
}
