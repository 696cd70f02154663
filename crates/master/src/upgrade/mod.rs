//! The upgrade in place: at SIGUSR2 another version of the program takes the process over, with every
//! connection and every listener.
//!
//! ```text
//!   SIGUSR2 ── Check: the program's file, with --selfcheck ──┬─ refused: told, and all goes on
//!                                                            └─ can take over
//!   drain as before a restart, the store is closed ── execute ──> the same process, another program
//! ```
//! What is passed on is what a service manager would pass to the next process: both ends of the shards
//! in which connections are parked, and the listeners, under their names. So the program that takes
//! over starts as ever; nothing else is said between the two.

mod check;
mod execute;
mod program;
mod selfcheck;

pub(crate) use check::Check;
pub(crate) use execute::{Passed, execute, tell_failure};
pub(crate) use program::Program;
pub(crate) use selfcheck::selfcheck;
