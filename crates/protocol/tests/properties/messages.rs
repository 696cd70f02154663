//! Arbitrary messages, most of them in range and some at its edges or beyond.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use rollcall_protocol::wire::*;

/// Few streams, so that they meet each other.
pub(crate) fn stream() -> impl Strategy<Value = u64> {
    prop_oneof![9 => 1_u64..5, 1 => any::<u64>()]
}

/// Few sequences, and the edges.
pub(crate) fn sequence() -> impl Strategy<Value = u64> {
    let edges = [0, 1, i64::MAX.unsigned_abs(), u64::MAX - 1, u64::MAX];
    prop_oneof![9 => 1_u64..20, 1 => proptest::sample::select(edges.to_vec())]
}

/// Few numbers of questions, and the edges.
fn question() -> impl Strategy<Value = u64> {
    prop_oneof![9 => 0_u64..20, 1 => any::<u64>()]
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0_u32..20, 1 => any::<u32>()]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-z0-9.-]{0,12}", 1 => ".{0,200}"]
}

fn pending() -> impl Strategy<Value = Pending> {
    (stream(), sequence()).prop_map(|(stream, first)| Pending { stream, first })
}

fn mark() -> impl Strategy<Value = Mark> {
    (stream(), sequence()).prop_map(|(stream, sequence)| Mark { stream, sequence })
}

fn hello() -> impl Strategy<Value = Hello> {
    let identity = (
        0_u32..3,
        0_u32..4,
        vec(any::<u8>(), 14..18),
        text(),
        stream(),
    );
    let rest = (sequence(), number(), 0_i32..4, text(), any::<u64>());
    let lists = (
        vec(pending(), 0..5),
        number(),
        btree_map(text(), text(), 0..4),
        vec(stream(), 0..9),
        question(),
    );
    (identity, rest, lists).prop_map(|(identity, rest, lists)| Hello {
        version_min: identity.0,
        version_max: identity.1,
        slave_id: identity.2,
        name: identity.3,
        stream: identity.4,
        next_sequence: rest.0,
        interval_ms: rest.1,
        mode: rest.2,
        agent_version: rest.3,
        backlog: rest.4,
        pending: lists.0,
        frames: lists.1,
        labels: lists.2,
        previous: lists.3,
        question: lists.4,
    })
}

/// A Hello that every master accepts.
pub(crate) fn valid_hello() -> impl Strategy<Value = Hello> {
    let pending = (1_u64..5, 1_u64..20).prop_map(|(stream, first)| Pending { stream, first });
    (
        "[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?",
        vec(pending, 1..4),
        10_u32..86_400_001,
        0_i32..3,
        0_u32..17,
    )
        .prop_map(|(name, pending, interval_ms, mode, frames)| Hello {
            version_min: 1,
            version_max: 1,
            slave_id: vec![7; 16],
            name,
            stream: pending.last().map_or(0, |last| last.stream),
            next_sequence: 20,
            interval_ms,
            mode,
            pending,
            frames,
            ..Hello::default()
        })
}

fn metric() -> impl Strategy<Value = Metric> {
    (text(), any::<f64>(), text()).prop_map(|(name, value, unit)| Metric { name, value, unit })
}

fn check() -> impl Strategy<Value = Check> {
    let result = (text(), any::<i32>(), text());
    (result, vec(metric(), 0..4), any::<u32>(), any::<i64>()).prop_map(
        |((name, state, text), metrics, duration_ms, time_ms)| Check {
            name,
            state,
            text,
            metrics,
            duration_ms,
            time_ms,
        },
    )
}

pub(crate) fn report() -> impl Strategy<Value = Report> {
    let status = option::of(vec(check(), 0..4).prop_map(|checks| Status { checks }));
    let place = (stream(), sequence(), any::<i64>());
    let flags = (any::<bool>(), any::<bool>(), any::<i32>());
    (place, flags, status, option::of(any::<i64>())).prop_map(
        |(place, flags, status, clock_offset_ms)| Report {
            stream: place.0,
            sequence: place.1,
            time_ms: place.2,
            live: flags.0,
            preview: flags.1,
            health: flags.2,
            status,
            clock_offset_ms,
        },
    )
}

pub(crate) fn gap() -> impl Strategy<Value = Gap> {
    let range = (stream(), sequence(), sequence());
    (range, any::<i32>(), any::<i64>(), any::<i64>()).prop_map(
        |((stream, first, last), reason, from_ms, to_ms)| Gap {
            stream,
            first,
            last,
            reason,
            from_ms,
            to_ms,
        },
    )
}

/// Any message to the master, now and then of a kind that is not known.
pub(crate) fn to_master() -> impl Strategy<Value = ToMaster> {
    use to_master::Kind;
    let goodbye =
        (any::<i32>(), any::<u32>()).prop_map(|(reason, back_ms)| SlaveGoodbye { reason, back_ms });
    prop_oneof![
        3 => hello().prop_map(|hello| Some(Kind::Hello(hello))),
        3 => valid_hello().prop_map(|hello| Some(Kind::Hello(hello))),
        8 => report().prop_map(|report| Some(Kind::Report(report))),
        4 => gap().prop_map(|gap| Some(Kind::Gap(gap))),
        1 => goodbye.prop_map(|goodbye| Some(Kind::Goodbye(goodbye))),
        1 => Just(None),
    ]
    .prop_map(|kind| ToMaster { kind })
}

fn welcome() -> impl Strategy<Value = Welcome> {
    let limits = (number(), number(), number(), number());
    let name = (vec(any::<u8>(), 0..20), text());
    (number(), name, vec(mark(), 0..4), limits).prop_map(|(version, name, marks, limits)| Welcome {
        version,
        master_id: name.0,
        master_version: name.1,
        marks,
        max_frame_bytes: limits.0,
        window: limits.1,
        back_min_ms: limits.2,
        back_max_ms: limits.3,
    })
}

/// Any message to the slave, now and then of a kind that is not known.
pub(crate) fn to_slave() -> impl Strategy<Value = ToSlave> {
    use to_slave::Kind;
    let come_back = any::<(u32, u32)>().prop_map(|(back_min_ms, back_max_ms)| ComeBack {
        back_min_ms,
        back_max_ms,
    });
    let ack = (mark(), any::<i64>(), any::<i64>()).prop_map(|(mark, received_ms, sent_ms)| Ack {
        stream: mark.stream,
        sequence: mark.sequence,
        received_ms,
        sent_ms,
    });
    let resync = mark().prop_map(|Mark { stream, sequence }| Resync { stream, sequence });
    let goodbye =
        (vec(mark(), 0..4), number(), number()).prop_map(|(marks, min, max)| MasterGoodbye {
            marks,
            back_min_ms: min,
            back_max_ms: max,
        });
    let error = (any::<i32>(), text(), any::<bool>(), number()).prop_map(
        |(code, text, retry, retry_after_ms)| Error {
            code,
            text,
            retry,
            retry_after_ms,
        },
    );
    prop_oneof![
        2 => welcome().prop_map(|welcome| Some(Kind::Welcome(welcome))),
        4 => ack.prop_map(|ack| Some(Kind::Ack(ack))),
        1 => resync.prop_map(|resync| Some(Kind::Resync(resync))),
        1 => goodbye.prop_map(|goodbye| Some(Kind::Goodbye(goodbye))),
        1 => error.prop_map(|error| Some(Kind::Error(error))),
        1 => question().prop_map(|question| Some(Kind::Answer(Answer { question }))),
        1 => come_back.prop_map(|come_back| Some(Kind::ComeBack(come_back))),
        1 => Just(None),
    ]
    .prop_map(|kind| ToSlave { kind })
}
