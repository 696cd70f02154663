//! `rollcall-slave`: the agent that reports how its host stands.
//!
//! ```text
//!   probes, check plugins ─> collector ─> spool ─> link ─> master
//!                                         └ thread   └ acks move the spool on
//! ```
#![forbid(unsafe_code)]

mod app;
mod args;
mod check;
mod collect;
mod config;
mod link;
mod liveness;
mod probe;
mod random;
mod spool;

use std::process::ExitCode;

fn main() -> ExitCode {
    rollcall_os::exit::finish("rollcall-slave", app::run(&args::parse()))
}
