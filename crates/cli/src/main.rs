//! `rollcall`: the operator's command. It asks a master over HTTP and prints what it says, and
//! `rollcall up` starts a master and a slave to try Rollcall out, and `rollcall drill` kills and
//! restarts them to see what comes of it. `rollcall lab` and `rollcall
//! doctor` ask nobody but the kernel.

mod args;
mod client;
mod daemons;
mod doctor;
mod drill;
mod escape;
mod events;
mod follow;
mod frame;
mod json;
mod lab;
mod ls;
mod manual;
mod metric;
mod output;
mod past;
mod show;
mod sse;
mod style;
mod table;
#[cfg(test)]
mod testing;
mod time;
mod up;
mod url;
mod words;
mod wrap;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use rollcall_os::exit::{Exit, ExitError};

use crate::args::{Cli, Command};
use crate::client::{Client, Patience};
use crate::output::{Output, OutputError};

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => Exit::Ok.into(),
        Err(error) if is_reader_gone(&error) => Exit::Ok.into(),
        Err(error) => {
            let mut text = error.to_string();
            for cause in error.chain().skip(1) {
                text.push_str("\n  caused by: ");
                text.push_str(&escape::escape(&cause.to_string()));
            }
            output::complain(&text);
            let exit = error.chain().find_map(|cause| cause.downcast_ref());
            exit.map_or(Exit::Failure, |error: &ExitError| error.exit)
                .into()
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let mut out = Output::new(cli.color);
    let client = || Arc::new(Client::new(cli.master.clone(), Patience::USUAL));
    match &cli.command {
        Command::Ls(args) => ls::run(&client(), args, &mut out),
        Command::Show(args) => show::run(&client(), args, &mut out),
        Command::Events(args) => events::run(client(), args, &mut out),
        Command::Up(args) => up::run(args, &mut out),
        Command::Drill(args) => drill::run(args, &mut out),
        Command::Lab(args) => lab::run(args, &mut out),
        Command::Doctor(args) => doctor::run(args, &mut out),
        Command::Completions(args) => manual::complete(args, &mut out),
        Command::Man(args) => manual::write_pages(args),
        Command::UpChild(args) => daemons::become_child(args),
    }
}

fn is_reader_gone(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<OutputError>()
        .is_some_and(OutputError::is_reader_gone)
}
