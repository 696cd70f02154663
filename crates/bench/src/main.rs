//! The load generator: simulates a fleet of slaves, measures a master, and compares it with bare
//! servers in the same run.

mod app;
mod args;
mod baseline;
mod connect_loop;
mod descriptors;
mod inbox;
mod load;
mod ports;
mod process;
mod ratio;
mod report;
mod template;

use std::process::ExitCode;

use clap::Parser;
use rollcall_os::exit;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    exit::finish("rollcall-bench", app::run(&cli))
}
