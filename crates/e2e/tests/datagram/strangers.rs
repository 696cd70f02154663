//! What a master does for those that nobody knows: little, and never more than they have sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rollcall_e2e::peer::{Identity, frame};
use rollcall_e2e::skip::skip_loudly;
use rollcall_e2e::wait::{PATIENCE, watch_for};
use rollcall_e2e::wait_until;
use rollcall_protocol::datagram::open_answer;
use rollcall_protocol::wire::{
    Check, ErrorCode, Hello, Mark, Mode, Pending, Report, Status, ToSlave, to_master, to_slave,
};

use super::{master, slave};

/// Without an answer for so long, there is none.
const SILENCE: Duration = Duration::from_millis(300);

/// Somebody with a socket.
struct Asker {
    socket: UdpSocket,
}

impl Asker {
    fn new(master: SocketAddr) -> Self {
        Self::from(Ipv4Addr::LOCALHOST.into(), master)
    }

    fn from(source: IpAddr, master: SocketAddr) -> Self {
        let socket = UdpSocket::bind((source, 0)).expect("a socket");
        socket.connect(master).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        Self { socket }
    }

    fn ask(&self, question: &[u8]) {
        self.socket.send(question).expect("it is sent");
    }

    fn answer(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer).ok()?;
        buffer.truncate(length);
        Some(buffer)
    }

    /// The one answer to the question `number`.
    fn answer_to(&self, question: &[u8], number: u64) -> Vec<to_slave::Kind> {
        self.ask(question);
        let bytes = wait_until(PATIENCE, "an answer", || self.answer());
        let messages = open_answer(&bytes, number).expect("an answer to this question");
        let kinds = messages.into_iter().map(|ToSlave { kind }| kind);
        kinds.map(|kind| kind.expect("a known kind")).collect()
    }
}

fn hello(identity: &Identity, number: u64, frames: u32) -> Hello {
    Hello {
        mode: Mode::Datagram.into(),
        question: number,
        frames,
        ..identity.hello()
    }
}

fn question(hello: Hello, rest: &[to_master::Kind]) -> Vec<u8> {
    let mut bytes = frame(to_master::Kind::Hello(hello));
    for kind in rest {
        bytes.extend(frame(kind.clone()));
    }
    bytes
}

fn report(identity: &Identity, sequence: u64) -> to_master::Kind {
    to_master::Kind::Report(identity.report(sequence))
}

/// A question with one report.
fn ordinary(identity: &Identity, number: u64) -> Vec<u8> {
    question(hello(identity, number, 1), &[report(identity, 1)])
}

fn identity(name: &str) -> Identity {
    Identity {
        next: 2,
        ..Identity::new(name, 60_000)
    }
}

#[test]
fn a_question_is_taken_in_once_and_answered_every_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = master(folder.path());
    master.start();
    let asker = Asker::new(master.address());
    let known = identity("twice");
    let question = ordinary(&known, 7);
    let first = asker.answer_to(&question, 7);
    assert!(
        matches!(
            &*first,
            [to_slave::Kind::Welcome(_), to_slave::Kind::Ack(ack)] if ack.sequence == 1
        ),
        "{first:?}"
    );
    for _ in 0..3 {
        let again = asker.answer_to(&question, 7);
        let [to_slave::Kind::Welcome(welcome)] = &*again else {
            panic!("{again:?}");
        };
        let mark = Mark {
            stream: known.stream,
            sequence: 1,
        };
        assert_eq!(welcome.marks, [mark], "it acks what was taken in");
    }
    let row = master.wait_for_row("twice", "on the roll", |row| row.sequence == 1);
    assert_eq!((row.applied, row.duplicates), (1, 0));
    // A new number is a new question; what it brings again is a duplicate.
    let anew = asker.answer_to(&ordinary(&known, 8), 8);
    assert!(matches!(&*anew, [_, to_slave::Kind::Ack(_)]), "{anew:?}");
    let row = master.wait_for_row("twice", "told twice", |row| row.duplicates == 1);
    assert_eq!(row.applied, 1);
}

#[test]
fn nobody_gets_more_than_was_sent_in_his_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = master(folder.path());
    master.start();
    // Each with a socket of its own: silence is waited for once.
    let asked = corpus().into_iter().map(|(what, bytes, is_answered)| {
        let asker = Asker::new(master.address());
        asker.ask(&bytes);
        (asker, what, bytes.len(), is_answered)
    });
    let asked: Vec<_> = asked.collect();
    for (asker, what, length, _) in asked.iter().filter(|(.., is_answered)| *is_answered) {
        let answer = wait_until(PATIENCE, what, || asker.answer()).len();
        assert!(answer <= *length, "{what}: {answer} for {length}");
    }
    let more = watch_for(SILENCE, || {
        let mut answers = asked.iter();
        answers.find_map(|(asker, what, ..)| asker.answer().map(|_| *what))
    });
    assert_eq!(more, None, "more than one answer, or any at all");
    let shortened = master
        .api()
        .metric("rollcall_datagram_answers_shortened_total");
    assert!(
        shortened.expect("a metric") >= 1.0,
        "none had to be shortened"
    );
    let slaves = master.api().slaves().expect("a roll");
    let names: Vec<_> = slaves.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(
        names,
        ["good", "holed", "many", "nothing-to-say"],
        "what is no question leaves nothing behind"
    );
}

/// What is sent, and whether it is answered.
fn corpus() -> Vec<(&'static str, Vec<u8>, bool)> {
    let good = identity("good");
    let valid = ordinary(&good, 1);
    let mut corpus = vec![
        ("nothing", Vec::new(), false),
        ("one byte", vec![0], false),
        ("zeros", vec![0; 1000], false),
        ("ones", vec![0xff; 1000], false),
        (
            "a claimed length",
            vec![0x7f, 0xff, 0xff, 0xff, 1, 2],
            false,
        ),
        ("a valid one", valid.clone(), true),
        ("cut off", valid[..valid.len() - 1].to_vec(), false),
        ("one byte more", [&valid[..], &[0]].concat(), false),
        ("no Hello", frame(report(&good, 1)), false),
        (
            "a frame less than announced",
            question(hello(&good, 2, 2), &[report(&good, 1)]),
            false,
        ),
        (
            "for a connection",
            question(
                Hello {
                    mode: Mode::PerMessage.into(),
                    ..hello(&good, 3, 1)
                },
                &[report(&good, 1)],
            ),
            false,
        ),
        ("without a number", ordinary(&good, 0), false),
        (
            "the least that can be answered",
            question(hello(&identity("nothing-to-say"), 4, 0), &[]),
            true,
        ),
        (
            "next to nothing",
            question(
                Hello {
                    mode: Mode::Datagram.into(),
                    question: 5,
                    ..Hello::default()
                },
                &[],
            ),
            false,
        ),
    ];
    // Refused with a text that is longer than the question.
    let holed = identity("holed");
    let pending = |stream, first| Pending { stream, first };
    let tiny = |stream| {
        to_master::Kind::Report(Report {
            stream,
            sequence: 9,
            ..Report::default()
        })
    };
    corpus.push((
        "a hole",
        question(hello(&holed, 6, 1), &[tiny(holed.stream)]),
        true,
    ));
    let unnamed = Hello {
        name: "Ä".to_owned(),
        ..hello(&identity("unnamed"), 7, 0)
    };
    corpus.push(("a bad name", question(unnamed, &[]), true));
    // An ack of each is longer than the report.
    let many = Identity {
        stream: 16,
        ..identity("many")
    };
    let streams: Vec<_> = (1..=16).map(|stream| pending(stream, 9)).collect();
    let reports: Vec<_> = (1..=16).map(tiny).collect();
    let hello = Hello {
        pending: streams,
        next_sequence: 10,
        ..hello(&many, 8, 16)
    };
    corpus.push(("many streams", question(hello, &reports), true));
    let mut rng = fastrand::Rng::with_seed(98);
    for _ in 0..20 {
        let length = rng.usize(1..1400);
        let noise = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
        corpus.push(("noise", noise, false));
    }
    corpus
}

#[test]
fn an_address_that_floods_is_dropped_unread_and_others_notice_nothing() {
    const FLOOD: u32 = 2000;
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = master(folder.path());
    master
        .config
        .set("limits.datagram_rate", 10)
        .set("limits.datagram_burst", 20);
    master.start();
    let mut slave = slave(folder.path(), "web-1", master.address(), "200ms");
    // What the flood has overflown comes again.
    slave.start();
    master.wait_for_row("web-1", "up", |row| row.sequence >= 2);
    let began = rollcall_os::clock::boot();
    let flooder = Asker::from(Ipv4Addr::new(127, 0, 0, 2).into(), master.address());
    for number in 0..FLOOD {
        let stranger = identity(&format!("stranger-{number}"));
        flooder.ask(&ordinary(&stranger, 1));
    }
    // What the kernel's buffer had no room for is told, too.
    let dropped = wait_until(PATIENCE, "the flood to be dropped", || {
        let count = |what: &str| {
            let metric = format!("rollcall_datagrams_{what}_total");
            master.api().metric(&metric).ok()
        };
        let dropped = count("limited")? + count("overflowed")?;
        (dropped >= f64::from(FLOOD) * 0.9).then_some(dropped)
    });
    let seen = master.wait_for_row("web-1", "up", |_| true).sequence;
    let row = master.wait_for_row("web-1", "reporting", |row| row.sequence >= seen + 5);
    assert_eq!((row.duplicates, row.gaps), (0, 0), "{row:#?}");
    let slaves = master.api().slaves().expect("a roll").len();
    let took = rollcall_os::clock::boot().saturating_since(began);
    let most = 20.0 + 10.0 * took.as_secs_f64();
    assert!(
        f64::from(u32::try_from(slaves).expect("few")) <= most + 1.0,
        "{slaves} slaves enrolled in {took:?}; {dropped} datagrams were dropped"
    );
    let line = master.wait_for_event("datagrams_dropped");
    assert!(line.text("peer").starts_with("127.0.0.2:"), "{line:?}");
    assert!(slave.terminate().success());
}

#[test]
fn a_wildcard_answers_from_the_address_that_was_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = master(folder.path());
    let port = master.address().port();
    master
        .config
        .set("listen.datagram", vec![format!("0.0.0.0:{port}")])
        .set("tls.mode", "off");
    master.start();
    for host in [1, 2, 77] {
        let asked = SocketAddr::from(([127, 0, 0, host], port));
        // Connected: it takes nothing from another address.
        let asker = Asker::new(asked);
        let answer = asker.answer_to(&ordinary(&identity(&format!("host-{host}")), 3), 3);
        assert_eq!(answer.len(), 2, "{answer:?}");
    }
}

/// "[::]" for both families: an IPv4 peer is shown as one.
#[test]
fn a_dual_stack_wildcard_answers_both_families() {
    if UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return skip_loudly("datagrams over IPv6", "this host has no IPv6");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = master(folder.path());
    let port = master.address().port();
    master
        .config
        .set("listen.datagram", vec![format!("[::]:{port}")])
        .set("listen.ipv6_only", false)
        .set("tls.mode", "off");
    master.start();
    for (name, asked, source) in [
        ("six", "::1", IpAddr::from(Ipv6Addr::LOCALHOST)),
        ("four", "127.0.0.9", Ipv4Addr::LOCALHOST.into()),
    ] {
        let asked: IpAddr = asked.parse().expect("an address");
        let asker = Asker::from(source, (asked, port).into());
        let answer = asker.answer_to(&ordinary(&identity(name), 3), 3);
        assert_eq!(answer.len(), 2, "{answer:?}");
        let row = master.wait_for_row(name, "on the roll", |row| row.peer.is_some());
        let peer: SocketAddr = row.peer.expect("a peer").parse().expect("an address");
        assert_eq!(peer.ip(), source);
    }
}

/// A second process with the id of a slave that is up.
#[test]
fn a_refusal_is_an_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = master(folder.path());
    master.start();
    let asker = Asker::new(master.address());
    let known = identity("web-1");
    asker.answer_to(&ordinary(&known, 1), 1);
    let other = identity("web-1");
    let check = Check {
        name: "x".to_owned(),
        text: "a report that leaves room for the whole of the refusal ".repeat(8),
        ..Check::default()
    };
    let long = Report {
        status: Some(Status {
            checks: vec![check],
        }),
        ..other.report(1)
    };
    let long = question(hello(&other, 2, 1), &[to_master::Kind::Report(long)]);
    let answer = asker.answer_to(&long, 2);
    let [to_slave::Kind::Error(error)] = &*answer else {
        panic!("{answer:?}");
    };
    assert_eq!(error.code(), ErrorCode::NameConflict);
    assert!(error.text.contains("give one of them another"), "{error:?}");
}
