//! The Rollcall protocol: frames, messages, and the session state machines of both ends.
//!
//! The crate has no I/O and no clock: it is `no_std`, takes bytes and [`Moment`]s as arguments, and
//! returns what the caller should do. The master and the slave drive it over sockets, the tests
//! drive it over memory and a clock of their own.
//!
//! ```text
//!   slave                                              master
//!   SlaveSession ── Hello ───────────────────────────> MasterSession ── Step ──> roll
//!        │       <─────────────────────────── Welcome ──┘                         │ Ledger:
//!        ├─────── Report / Gap ──────────────────────> ...                        │ each sequence
//!        │       <─────────────────────────────── Ack ── after the group commit <─┘ applied once
//!        └─────── SlaveGoodbye ──────────────────────> ...
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod api;
pub mod backoff;
pub mod datagram;
pub mod frame;
pub mod ledger;
pub mod limits;
mod moment;
pub mod name;
pub mod session;
pub mod wire;

pub use moment::Moment;
