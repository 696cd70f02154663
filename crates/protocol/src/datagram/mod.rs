//! Datagram mode: a question in one datagram, its answer in another.
//!
//! ```text
//!   slave                                                      master
//!   Hello (question 17), Report … ── may be lost, late, doubled ──> Question::parse, Seen
//!         <── may be lost, late, doubled ── Answer 17, Welcome, Ack …  answer()
//!   the same bytes again, after a pause that grows
//! ```
//!
//! The network may lose a datagram, deliver it twice, or long after the ones that followed it. A
//! connection does none of that, and the rules for Hello rest on it. What makes up for it is the
//! number of the question: an answer counts for the question that it names, so that an old one says
//! nothing about a new question; and the master takes a question in once, so that an old copy of one
//! is not mistaken for a slave that runs on an older state of its disk, nor for another process.

mod answer;
mod question;
mod resend;

pub use answer::{ANSWER_BYTES, NoAnswer, answer, open_answer};
pub use question::{Malformed, Numbers, Question, Seen};
pub use resend::{Resend, ResendLimits};
