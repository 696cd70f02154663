//! `rollcall-master`: the daemon that keeps the roll.
//!
//! ```text
//!   socket ─> connection ─> roll ─> store ─> ack        one report's way (docs/architecture.md)
//!             └──── reactor thread ───┘   └ thread
//!                          └─ snapshot ─> http thread ─> readers
//! ```
#![forbid(unsafe_code)]

mod admission;
mod adoption;
mod app;
mod args;
mod config;
mod connection;
mod datagram;
mod http;
mod keeper;
mod listener;
mod liveness;
mod reactor;
mod roll;
mod stats;
mod store;
#[cfg(test)]
mod testing;
mod upgrade;
mod view;

use std::process::ExitCode;

fn main() -> ExitCode {
    rollcall_os::exit::finish("rollcall-master", app::run(&args::parse()))
}
