//! What holds whatever comes: over arbitrary messages, splits, sequences and bytes.

mod backoff;
mod datagrams;
mod frames;
mod ledger;
mod master_session;
mod messages;
mod slave_session;
