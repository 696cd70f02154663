//! What may happen to a master.

use proptest::prelude::*;

use super::SLAVES;

#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Report {
        slave: usize,
        live: bool,
    },
    /// One that was applied comes again.
    Again(usize),
    /// One comes before its predecessor.
    Hole(usize),
    Preview(usize),
    /// The first of the range may have been applied.
    Gap {
        slave: usize,
        count: u64,
        overlap: bool,
    },
    Reconnect(usize),
    /// The slave's process starts anew, with a new stream.
    Restart(usize),
    /// The slave runs on an older state of its disk.
    Restored(usize),
    /// A copy of the slave comes while it is connected.
    Clone(usize),
    Commit,
    /// The disk is full for the first attempt.
    FullDisk,
    /// kill -9: what was not committed is gone.
    Crash,
}

pub(super) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let slave = || 0..SLAVES;
    let op = prop_oneof![
        8 => (slave(), any::<bool>()).prop_map(|(slave, live)| Op::Report { slave, live }),
        2 => slave().prop_map(Op::Again),
        1 => slave().prop_map(Op::Hole),
        2 => slave().prop_map(Op::Preview),
        2 => (slave(), 1..9_u64, any::<bool>())
            .prop_map(|(slave, count, overlap)| Op::Gap { slave, count, overlap }),
        1 => slave().prop_map(Op::Reconnect),
        1 => slave().prop_map(Op::Restart),
        1 => slave().prop_map(Op::Restored),
        1 => slave().prop_map(Op::Clone),
        6 => Just(Op::Commit),
        1 => Just(Op::FullDisk),
        3 => Just(Op::Crash),
    ];
    prop::collection::vec(op, 1..80)
}
