//! Faults that one Linux box can produce, and what checks the daemons under them.
//!
//! ```text
//!   strace     runs a daemon under strace(1), which kills it at a system call or has the call fail
//!   points     which calls: counted in an undisturbed run, then swept, all of them or a sample
//!   fleet      speaks to a master by a script, and records what it was told is durable
//!   audit      compares that record with what a master has stored
//!   collector  stands in for the master, records what a slave sends, and acks
//!   bytes      damages files: a cut, a flipped byte, garbage
//!   stage      a master with a fleet, through a fault, to the check after it
//!   slave_run  the same for a slave at a collector
//! ```
//!
//! Whoever records and compares shares no code with the daemons but the wire's messages.

pub mod audit;
pub mod bytes;
pub mod collector;
pub mod fleet;
pub mod points;
pub mod slave_run;
pub mod stage;
pub mod strace;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use anyhow::bail;

/// The exit code for a disk that fails.
const STORE: i32 = 74;

/// How a daemon took a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was killed.
    Killed,
    /// It went on, and ended when it was told to.
    Unmoved,
    /// It went on, and its peers had to come again.
    Reconnected,
    /// It gave up its store, with the exit code for that.
    GaveUp,
}

impl End {
    fn of(status: ExitStatus, played: bool) -> anyhow::Result<Self> {
        Ok(match (status.signal(), status.code()) {
            (Some(9), _) => Self::Killed,
            (_, Some(0)) if played => Self::Unmoved,
            (_, Some(0)) => Self::Reconnected,
            (_, Some(STORE)) => Self::GaveUp,
            _ => bail!("it ended with {status}"),
        })
    }
}
