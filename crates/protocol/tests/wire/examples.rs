//! The messages whose bytes are kept: each with every field set, and what lies at the edges.

use std::collections::BTreeMap;

use rollcall_protocol::frame::{self, Frames};
use rollcall_protocol::limits::{FRAME_PAYLOAD_BYTES_MAX, PER_MESSAGE_FRAMES_MAX};
use rollcall_protocol::wire::*;

/// One message of either direction.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Either {
    ToMaster(ToMaster),
    ToSlave(ToSlave),
}

/// What one golden file holds.
pub(crate) struct Example {
    /// The file's name without its ending.
    pub(crate) name: &'static str,
    pub(crate) messages: Vec<Either>,
}

impl Example {
    /// The messages as frames, one after another.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in &self.messages {
            let encoded = match message {
                Either::ToMaster(message) => frame::encode(message, &mut bytes),
                Either::ToSlave(message) => frame::encode(message, &mut bytes),
            };
            encoded.expect("an example fits into a frame");
        }
        bytes
    }

    /// What `bytes` hold, read in the direction of this example.
    pub(crate) fn decode(&self, bytes: &[u8]) -> Result<Vec<Either>, String> {
        let to_master = matches!(self.messages[0], Either::ToMaster(_));
        let mut frames = Frames::new(bytes, FRAME_PAYLOAD_BYTES_MAX);
        let mut messages = Vec::new();
        while let Some(frame) = frames.next_frame().map_err(|error| error.to_string())? {
            let message = if to_master {
                frame.decode().map(Either::ToMaster)
            } else {
                frame.decode().map(Either::ToSlave)
            };
            messages.push(message.map_err(|error| error.to_string())?);
        }
        match bytes.len() - frames.taken() {
            0 => Ok(messages),
            left => Err(format!("{left} bytes are left after the last whole frame")),
        }
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Example> {
    [hellos(), reports(), gaps(), goodbyes(), answers(), ends()]
        .into_iter()
        .flatten()
        .collect()
}

const SLAVE_ID: [u8; 16] = *b"\x01\x23\x45\x67\x89\xab\xcd\xef\x00\x11\x22\x33\x44\x55\x66\x77";
const MASTER_ID: [u8; 16] = *b"\xf0\xe1\xd2\xc3\xb4\xa5\x96\x87\x78\x69\x5a\x4b\x3c\x2d\x1e\x0f";
const STREAM: u64 = 0x1122_3344_5566_7788;
const OLD_STREAM: u64 = 0x99aa_bbcc_ddee_ff00;
const SEQUENCE_MAX: u64 = i64::MAX.unsigned_abs();
/// The number of a datagram's question.
const QUESTION: u64 = 0x1a2b_3c4d_5e6f_7081;
/// 2026-11-22T04:00:00Z.
const TIME_MS: i64 = 1_795_320_000_000;

fn example(name: &'static str, messages: impl IntoIterator<Item = Either>) -> Example {
    let messages = messages.into_iter().collect();
    Example { name, messages }
}

fn to_master(kind: to_master::Kind) -> Either {
    Either::ToMaster(ToMaster { kind: Some(kind) })
}

fn to_slave(kind: to_slave::Kind) -> Either {
    Either::ToSlave(ToSlave { kind: Some(kind) })
}

fn hello(hello: Hello) -> Either {
    to_master(to_master::Kind::Hello(hello))
}

fn report(report: Report) -> Either {
    to_master(to_master::Kind::Report(report))
}

fn ack(stream: u64, sequence: u64, received_ms: i64, sent_ms: i64) -> Either {
    to_slave(to_slave::Kind::Ack(Ack {
        stream,
        sequence,
        received_ms,
        sent_ms,
    }))
}

fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    labels.iter().map(owned).collect()
}

fn pending(stream: u64, first: u64) -> Pending {
    Pending { stream, first }
}

fn mark(stream: u64, sequence: u64) -> Mark {
    Mark { stream, sequence }
}

fn hellos() -> Vec<Example> {
    let pooled = Hello {
        version_min: 1,
        version_max: 1,
        slave_id: SLAVE_ID.to_vec(),
        name: "web-1".into(),
        stream: STREAM,
        next_sequence: 8,
        interval_ms: 10_000,
        mode: Mode::Pooled.into(),
        agent_version: "0.1.0".into(),
        backlog: 3,
        pending: vec![pending(STREAM, 5)],
        ..Hello::default()
    };
    let per_message = Hello {
        mode: Mode::PerMessage.into(),
        backlog: 1,
        pending: vec![pending(STREAM, 7)],
        frames: 1,
        ..pooled.clone()
    };
    let datagram = Hello {
        mode: Mode::Datagram.into(),
        question: QUESTION,
        ..per_message.clone()
    };
    let full = Hello {
        version_max: 3,
        mode: Mode::PerMessage.into(),
        pending: vec![pending(OLD_STREAM, 41), pending(STREAM, 1)],
        frames: PER_MESSAGE_FRAMES_MAX,
        labels: labels(&[("rack", "b7"), ("role", "web"), ("", "")]),
        ..pooled.clone()
    };
    let successor = Hello {
        previous: vec![OLD_STREAM, u64::MAX],
        ..pooled.clone()
    };
    let extremes = Hello {
        version_max: u32::MAX,
        name: "a".repeat(63),
        stream: u64::MAX,
        next_sequence: SEQUENCE_MAX,
        interval_ms: 86_400_000,
        agent_version: "ä".repeat(32),
        backlog: u64::MAX,
        pending: vec![pending(u64::MAX, SEQUENCE_MAX)],
        ..pooled.clone()
    };
    vec![
        example("hello", [hello(full)]),
        example("hello-pooled", [hello(pooled)]),
        example("hello-per-message", [hello(per_message)]),
        example("hello-successor", [hello(successor)]),
        example("hello-datagram", [hello(datagram)]),
        example("hello-extremes", [hello(extremes)]),
        example("hello-default", [hello(Hello::default())]),
    ]
}

fn status() -> Status {
    let load = Check {
        name: "load".into(),
        state: Health::Ok.into(),
        text: "0.42 0.40 0.38".into(),
        metrics: vec![Metric {
            name: "load1".into(),
            value: 0.42,
            unit: String::new(),
        }],
        duration_ms: 1,
        time_ms: TIME_MS - 5,
    };
    let disk = Check {
        name: "disk /".into(),
        state: Health::Critical.into(),
        text: "98 % used, 2 GB free".into(),
        metrics: vec![
            Metric {
                name: "used".into(),
                value: 98.25,
                unit: "%".into(),
            },
            Metric {
                name: "free".into(),
                value: 2_147_483_648.0,
                unit: "B".into(),
            },
        ],
        duration_ms: 250,
        time_ms: TIME_MS - 300,
    };
    Status {
        checks: vec![load, disk],
    }
}

fn reports() -> Vec<Example> {
    let simple = Report {
        stream: STREAM,
        sequence: 7,
        time_ms: TIME_MS,
        live: true,
        health: Health::Warning.into(),
        status: Some(Status {
            checks: vec![Check {
                name: "swap".into(),
                state: Health::Warning.into(),
                text: "61 % used".into(),
                time_ms: TIME_MS,
                ..Check::default()
            }],
        }),
        ..Report::default()
    };
    let full = Report {
        sequence: 1_000_000,
        health: Health::Critical.into(),
        status: Some(status()),
        clock_offset_ms: Some(-37),
        preview: true,
        ..simple.clone()
    };
    let preview = Report {
        preview: true,
        ..simple.clone()
    };
    let backlog = |sequence, time_ms: i64| Report {
        sequence,
        time_ms,
        live: false,
        health: Health::Ok.into(),
        status: Some(Status::default()),
        ..simple.clone()
    };
    let extremes = Report {
        stream: 1,
        sequence: SEQUENCE_MAX,
        time_ms: i64::MIN,
        health: 77,
        status: Some(Status {
            checks: vec![Check {
                name: "ünïcode\n\u{0}".into(),
                state: Health::Unknown.into(),
                metrics: [f64::INFINITY, f64::MIN_POSITIVE, -1e308]
                    .map(metric)
                    .into(),
                duration_ms: u32::MAX,
                time_ms: i64::MAX,
                ..Check::default()
            }],
        }),
        clock_offset_ms: Some(i64::MAX),
        ..Report::default()
    };
    vec![
        example("report", [report(full)]),
        example("report-live", [report(simple.clone())]),
        example("report-preview", [report(preview)]),
        example(
            "report-backlog",
            [
                report(backlog(5, TIME_MS - 20_000)),
                report(backlog(6, TIME_MS - 10_000)),
                report(backlog(7, TIME_MS)),
            ],
        ),
        example("report-extremes", [report(extremes)]),
        example("report-default", [report(Report::default())]),
    ]
}

fn metric(value: f64) -> Metric {
    Metric {
        name: "m".into(),
        value,
        unit: String::new(),
    }
}

fn gaps() -> Vec<Example> {
    let gap = |reason: GapReason, first, last, from_ms, to_ms| {
        to_master(to_master::Kind::Gap(Gap {
            stream: STREAM,
            first,
            last,
            reason: reason.into(),
            from_ms,
            to_ms,
        }))
    };
    vec![
        example(
            "gap",
            [
                gap(GapReason::SpoolFull, 5, 12, TIME_MS - 80_000, TIME_MS),
                gap(GapReason::Expired, 13, 13, TIME_MS, TIME_MS),
                gap(GapReason::Damaged, 14, SEQUENCE_MAX, 0, 0),
                gap(GapReason::Unknown, 1, 1, 0, 0),
            ],
        ),
        example(
            "gap-acked-before",
            [gap(GapReason::AckedBefore, 3, 4, 0, 0)],
        ),
        example(
            "gap-default",
            [to_master(to_master::Kind::Gap(Gap::default()))],
        ),
    ]
}

fn goodbyes() -> Vec<Example> {
    let goodbye = |reason: GoodbyeReason, back_ms| {
        to_master(to_master::Kind::Goodbye(SlaveGoodbye {
            reason: reason.into(),
            back_ms,
        }))
    };
    vec![
        example("slave-goodbye", [goodbye(GoodbyeReason::Restart, 90_000)]),
        // Nothing but defaults: an empty message inside.
        example("slave-goodbye-stop", [goodbye(GoodbyeReason::Stop, 0)]),
    ]
}

fn answers() -> Vec<Example> {
    let welcome = |marks, max_frame_bytes, window, back_ms: [u32; 2]| {
        to_slave(to_slave::Kind::Welcome(Welcome {
            version: 1,
            master_id: MASTER_ID.to_vec(),
            master_version: "0.1.0".into(),
            marks,
            max_frame_bytes,
            window,
            back_min_ms: back_ms[0],
            back_max_ms: back_ms[1],
        }))
    };
    let two = vec![mark(OLD_STREAM, 40), mark(STREAM, 4)];
    vec![
        example("welcome", [welcome(two, 65_532, 64, [50, 5_000])]),
        example(
            "welcome-pooled",
            [welcome(vec![mark(STREAM, 4)], 65_532, 64, [0, 200])],
        ),
        example(
            "welcome-behind",
            [welcome(vec![mark(STREAM, 2)], 65_532, 64, [0, 200])],
        ),
        example(
            "welcome-per-message",
            [
                welcome(vec![mark(STREAM, 6)], 65_532, 64, [0, 200]),
                ack(STREAM, 7, TIME_MS + 40, TIME_MS + 42),
            ],
        ),
        example(
            "come-back",
            [to_slave(to_slave::Kind::ComeBack(ComeBack {
                back_min_ms: 0,
                back_max_ms: 2_000,
            }))],
        ),
        example(
            "come-back-extremes",
            [to_slave(to_slave::Kind::ComeBack(ComeBack {
                back_min_ms: u32::MAX,
                back_max_ms: u32::MAX,
            }))],
        ),
        example("answer", [answer(QUESTION)]),
        example("answer-extremes", [answer(u64::MAX), answer(0)]),
        example(
            "welcome-default",
            [to_slave(to_slave::Kind::Welcome(Welcome::default()))],
        ),
        example("ack", [ack(STREAM, 7, TIME_MS + 40, TIME_MS + 42)]),
        example(
            "ack-extremes",
            [
                ack(u64::MAX, SEQUENCE_MAX, i64::MIN, i64::MAX),
                ack(0, 0, 0, 0),
            ],
        ),
    ]
}

fn answer(question: u64) -> Either {
    to_slave(to_slave::Kind::Answer(Answer { question }))
}

fn ends() -> Vec<Example> {
    let resync = Resync {
        stream: STREAM,
        sequence: 20,
    };
    let goodbye = MasterGoodbye {
        marks: vec![mark(OLD_STREAM, 40), mark(STREAM, 7)],
        back_min_ms: 100,
        back_max_ms: 2_000,
    };
    let error = |code: ErrorCode, text: &str, retry_after_ms: Option<u32>| {
        to_slave(to_slave::Kind::Error(Error {
            code: code.into(),
            text: text.into(),
            retry: retry_after_ms.is_some(),
            retry_after_ms: retry_after_ms.unwrap_or_default(),
        }))
    };
    vec![
        example("resync", [to_slave(to_slave::Kind::Resync(resync))]),
        example(
            "master-goodbye",
            [to_slave(to_slave::Kind::Goodbye(goodbye))],
        ),
        example(
            "error",
            [error(ErrorCode::Busy, "come back later", Some(30_000))],
        ),
        example(
            "error-codes",
            [
                error(ErrorCode::Unknown, "", None),
                error(ErrorCode::Protocol, "a second Hello", None),
                error(ErrorCode::FrameLength, "0 bytes", None),
                error(ErrorCode::Version, "2 to 3, this master 1 to 1", None),
                error(ErrorCode::Invalid, "Hello.name", None),
                error(ErrorCode::IdConflict, "two slaves", Some(10_000)),
                error(ErrorCode::NameConflict, "two slaves", Some(u32::MAX)),
                error(ErrorCode::Hole, "sequence 9 came where 7", Some(0)),
                error(ErrorCode::Timeout, "no Hello in time", None),
                error(ErrorCode::Busy, "too many connections", Some(1)),
            ],
        ),
        example(
            "error-source-port",
            [error(ErrorCode::SourcePort, "source port 40000", None)],
        ),
    ]
}
