//! The bytes of version 1: what is on the wire, what is written down about it, and what hostile
//! bytes do.

mod describe;
mod document;
mod examples;
mod golden;
mod hex;
mod hostile;
mod newer;
