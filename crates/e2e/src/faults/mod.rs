//! Faults that one Linux box can produce, and what checks the daemons under them.
//!
//! ```text
//!   strace     runs a daemon under strace(1), which kills it at a system call or has the call fail
//!   points     which calls: counted in an undisturbed run, then swept, all of them or a sample
//!   fleet      speaks to a master by a script, and records what it was told is durable
//!   audit      compares that record with what a master has stored
//!   collector  stands in for the master, records what a slave sends, and acks
//!   bytes      damages files: a cut, a flipped byte, garbage
//! ```
//!
//! Whoever records and compares shares no code with the daemons but the wire's messages.

pub mod audit;
pub mod bytes;
pub mod collector;
pub mod fleet;
pub mod points;
pub mod strace;
