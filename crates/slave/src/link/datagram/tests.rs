//! Against a master that is a socket of the test's: answers that come late, wrongly or never.

use std::net::SocketAddr;
use std::time::Duration;

use rollcall_protocol::datagram::{Question, answer};
use rollcall_protocol::frame::{self, Frames};
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::wire::{
    Ack, ErrorCode, Hello, Mark, MasterGoodbye, Mode, Report, Resync, ToMaster, ToSlave, Welcome,
    to_master, to_slave::Kind,
};
use tokio::net::UdpSocket;

use crate::link::LinkConfig;
use crate::link::fake::{FakeMaster, Rig, config, soon};

/// A master that takes datagrams, and connections on the same port.
struct Oracle {
    socket: UdpSocket,
    tcp: FakeMaster,
}

/// A question, as it came.
struct Asked {
    from: SocketAddr,
    bytes: Vec<u8>,
    hello: Hello,
    rest: Vec<to_master::Kind>,
}

impl Oracle {
    async fn start() -> Self {
        loop {
            let tcp = FakeMaster::start().await;
            // Somebody else may have the port for UDP.
            if let Ok(socket) = UdpSocket::bind(tcp.address()).await {
                return Self { socket, tcp };
            }
        }
    }

    fn config(&self) -> LinkConfig {
        LinkConfig {
            mode: Mode::Datagram,
            ..config(&[&self.tcp])
        }
    }

    async fn next(&self) -> Asked {
        let mut buffer = vec![0; 65_536];
        let received = soon("a question", self.socket.recv_from(&mut buffer)).await;
        let (length, from) = received.unwrap();
        let bytes = buffer[..length].to_vec();
        Question::parse(&bytes, FRAME_PAYLOAD_BYTES_MAX).unwrap();
        let mut frames = Frames::new(&bytes, FRAME_PAYLOAD_BYTES_MAX);
        let mut kinds = Vec::new();
        while let Some(frame) = frames.next_frame().unwrap() {
            kinds.push(frame.decode::<ToMaster>().unwrap().kind.unwrap());
        }
        let to_master::Kind::Hello(hello) = kinds.remove(0) else {
            panic!("the first frame is Hello");
        };
        Asked {
            from,
            bytes,
            hello,
            rest: kinds,
        }
    }

    async fn answer_as(&self, asked: &Asked, number: u64, said: &[Kind]) {
        let mut bytes = Vec::new();
        for kind in said {
            let message = ToSlave {
                kind: Some(kind.clone()),
            };
            frame::encode(&message, &mut bytes).unwrap();
        }
        let bytes = answer(number, usize::MAX, &bytes).unwrap();
        self.socket.send_to(&bytes, asked.from).await.unwrap();
    }

    async fn answer(&self, asked: &Asked, said: &[Kind]) {
        self.answer_as(asked, asked.hello.question, said).await;
    }

    /// Welcome and an ack of all that was asked.
    async fn ack(&self, asked: &Asked) {
        let mut said = vec![welcome(&asked.hello)];
        said.extend(
            asked
                .reports()
                .map(|report| ack(report.stream, report.sequence)),
        );
        self.answer(asked, &said).await;
    }

    /// Whether nothing is asked for a moment.
    async fn is_left_alone(&self) -> bool {
        let mut buffer = [0; 2048];
        let received = self.socket.recv_from(&mut buffer);
        tokio::time::timeout(Duration::from_millis(300), received)
            .await
            .is_err()
    }
}

impl Asked {
    /// The reports in their place.
    fn reports(&self) -> impl Iterator<Item = &Report> {
        self.rest.iter().filter_map(|kind| match kind {
            to_master::Kind::Report(report) if !report.preview => Some(report),
            _ => None,
        })
    }

    fn sequences(&self) -> Vec<u64> {
        self.reports().map(|report| report.sequence).collect()
    }

    fn previews(&self) -> usize {
        self.rest.len() - self.reports().count()
    }
}

fn welcome(hello: &Hello) -> Kind {
    let marks = hello.pending.iter().map(|pending| Mark {
        stream: pending.stream,
        sequence: pending.first - 1,
    });
    welcome_with(marks.collect())
}

fn welcome_with(marks: Vec<Mark>) -> Kind {
    Kind::Welcome(Welcome {
        version: 1,
        marks,
        max_frame_bytes: 65_532,
        window: 64,
        ..Welcome::default()
    })
}

fn ack(stream: u64, sequence: u64) -> Kind {
    Kind::Ack(Ack {
        stream,
        sequence,
        ..Ack::default()
    })
}

/// A master, and a link that asks it about so many `reports`.
async fn asking(reports: usize) -> (Oracle, Rig) {
    let oracle = Oracle::start().await;
    let mut rig = Rig::with_config(oracle.config());
    rig.append(reports).await;
    rig.start();
    (oracle, rig)
}

fn mark(hello: &Hello, sequence: u64) -> Mark {
    Mark {
        stream: hello.stream,
        sequence,
    }
}

#[tokio::test]
async fn a_question_is_asked_again_byte_for_byte_until_it_is_answered() {
    let (oracle, rig) = asking(1).await;
    let first = oracle.next().await;
    assert_eq!(
        (first.hello.mode(), first.hello.frames),
        (Mode::Datagram, 1)
    );
    assert_eq!(first.sequences(), [1]);
    for _ in 0..3 {
        assert_eq!(oracle.next().await.bytes, first.bytes);
    }
    oracle.ack(&first).await;
    rig.settled().await;
    assert!(oracle.is_left_alone().await, "all is acked");
    rig.append(1).await;
    let second = oracle.next().await;
    assert_eq!(second.sequences(), [2]);
    assert!(second.hello.question > first.hello.question);
}

#[tokio::test]
async fn only_the_answer_to_this_question_counts() {
    let (oracle, rig) = asking(1).await;
    let asked = oracle.next().await;
    let ack = ack(asked.hello.stream, 1);
    let resync = Kind::Resync(Resync {
        stream: asked.hello.stream,
        sequence: 9,
    });
    // One of an older question, garbage, and a stranger's.
    oracle
        .answer_as(&asked, asked.hello.question - 1, &[resync])
        .await;
    oracle
        .answer_as(&asked, asked.hello.question + 1, std::slice::from_ref(&ack))
        .await;
    oracle.socket.send_to(&[0; 40], asked.from).await.unwrap();
    let stranger = Oracle::start().await;
    stranger.answer(&asked, &[ack]).await;
    let again = oracle.next().await;
    assert_eq!(again.bytes, asked.bytes, "it is still being asked");
    assert_eq!(rig.spool.standing().await.unwrap().backlog, 1);
    oracle.ack(&asked).await;
    rig.settled().await;
}

/// The first answer was lost; the master knows the question and says how far it is.
#[tokio::test]
async fn the_marks_of_a_known_question_are_its_acks() {
    let (oracle, rig) = asking(3).await;
    let asked = oracle.next().await;
    assert_eq!(asked.sequences(), [1, 2, 3]);
    let marks = vec![mark(&asked.hello, 3)];
    oracle.answer(&asked, &[welcome_with(marks)]).await;
    rig.settled().await;
}

/// Nothing was acked and nothing refused: this process was set back, and its numbers with it.
#[tokio::test]
async fn a_question_that_is_taken_for_an_old_one_is_followed_by_a_much_higher_one() {
    let (oracle, rig) = asking(1).await;
    let asked = oracle.next().await;
    oracle.answer(&asked, &[welcome(&asked.hello)]).await;
    let next = oracle.next().await;
    assert_eq!(next.sequences(), [1]);
    assert!(next.hello.question >= asked.hello.question + (1 << 32));
    oracle.ack(&next).await;
    rig.settled().await;
}

/// Part of the answer did not fit.
#[tokio::test]
async fn what_an_answer_leaves_out_is_asked_anew() {
    let (oracle, rig) = asking(3).await;
    let asked = oracle.next().await;
    let ack = ack(asked.hello.stream, 2);
    oracle.answer(&asked, &[ack]).await;
    let next = oracle.next().await;
    assert_eq!(next.sequences(), [3]);
    oracle.ack(&next).await;
    rig.settled().await;
}

#[tokio::test]
async fn the_newest_goes_first_and_once_while_a_backlog_drains() {
    let (oracle, rig) = asking(40).await;
    let mut sequences = Vec::new();
    let mut previews = Vec::new();
    while sequences.len() < 40 {
        let asked = oracle.next().await;
        sequences.extend(asked.sequences());
        previews.push(asked.previews());
        oracle.ack(&asked).await;
    }
    assert_eq!(sequences, (1..=40).collect::<Vec<_>>());
    assert_eq!(previews, [1, 0, 0], "it was told once");
    rig.settled().await;
}

#[tokio::test]
async fn a_gap_that_is_owed_goes_with_the_next_question_at_once() {
    let oracle = Oracle::start().await;
    let mut config = oracle.config();
    // Who is refused waits; who is told what is missing does not.
    config.backoff.base = Duration::from_secs(3600);
    config.backoff.cap = Duration::from_secs(3600);
    let mut rig = Rig::with_config(config);
    rig.append(2).await;
    rig.start();
    let asked = oracle.next().await;
    oracle.ack(&asked).await;
    rig.settled().await;
    rig.append(1).await;
    // A master that has lost its state.
    let asked = oracle.next().await;
    let hole = rollcall_protocol::wire::Error {
        code: ErrorCode::Hole.into(),
        retry: true,
        ..rollcall_protocol::wire::Error::default()
    };
    let marks = vec![mark(&asked.hello, 0)];
    oracle
        .answer(&asked, &[Kind::Error(hole), welcome_with(marks)])
        .await;
    let mut next = oracle.next().await;
    if next.bytes == asked.bytes {
        next = oracle.next().await;
    }
    match next.rest.as_slice() {
        [to_master::Kind::Gap(gap), to_master::Kind::Report(report)] => {
            assert_eq!((gap.first, gap.last, report.sequence), (1, 2, 3));
            assert!(report.live, "what was refused has told nothing");
        }
        other => panic!("{other:?}"),
    }
    let said = [
        welcome_with(vec![mark(&next.hello, 0)]),
        ack(next.hello.stream, 3),
    ];
    oracle.answer(&next, &said).await;
    rig.settled().await;
}

#[tokio::test]
async fn a_resync_begins_a_new_stream() {
    let (oracle, rig) = asking(2).await;
    let asked = oracle.next().await;
    let resync = Kind::Resync(Resync {
        stream: asked.hello.stream,
        sequence: 9,
    });
    oracle.answer(&asked, &[resync]).await;
    let next = oracle.next().await;
    assert_ne!(next.hello.stream, asked.hello.stream);
    assert_eq!(next.sequences(), [1, 2]);
    oracle.ack(&next).await;
    rig.settled().await;
}

#[tokio::test]
async fn a_stop_sends_what_is_left_and_says_goodbye() {
    let (oracle, mut rig) = asking(1).await;
    let asked = oracle.next().await;
    rig.stop.cancel();
    rig.append(1).await;
    oracle.ack(&asked).await;
    let last = oracle.next().await;
    assert_eq!(last.sequences(), [2]);
    assert!(matches!(
        last.rest.last(),
        Some(to_master::Kind::Goodbye(_))
    ));
    let said = [
        welcome(&last.hello),
        Kind::Goodbye(MasterGoodbye {
            marks: vec![mark(&last.hello, 2)],
            back_min_ms: 0,
            back_max_ms: 200,
        }),
    ];
    oracle.answer(&last, &said).await;
    rig.ended().await;
    assert!(rig.spool.standing().await.unwrap().is_empty());
}
