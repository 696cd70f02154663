//! The session state machines of both ends.
//!
//! They see messages and moments, never bytes of a socket nor a clock, and hold nothing of the
//! spool and nothing of the roll: what must happen next is what they return.

pub mod master;
mod refusal;
pub mod slave;

pub use master::MasterSession;
pub use refusal::Refusal;
pub use slave::SlaveSession;
