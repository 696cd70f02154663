//! `rollcall`: the operator's command.
//!
//! ```text
//!   ls, show, events    ask a master over HTTP (client/)
//!   up, drill           start daemons of this build (daemons/): to try Rollcall out, to prove what it promises
//!   doctor, lab         ask nobody but the kernel: what is wrong with ports here, what can go wrong with them
//!   manual              man pages and completions
//! ```
//! What is printed goes through terminal/.

mod args;
mod client;
mod daemons;
mod doctor;
mod drill;
mod events;
mod lab;
mod ls;
mod manual;
mod show;
mod terminal;
#[cfg(test)]
mod testing;
mod up;

use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser};
use rollcall_os::exit::{Exit, ExitError};

use crate::args::{Cli, Command};
use crate::client::{Client, Patience};
use crate::terminal::escape::escape;
use crate::terminal::output::{self, Output, OutputError};

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => Exit::Ok.into(),
        Err(error) if is_reader_gone(&error) => Exit::Ok.into(),
        Err(error) => {
            let mut text = error.to_string();
            for cause in error.chain().skip(1) {
                text.push_str("\n  caused by: ");
                text.push_str(&escape(&cause.to_string()));
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
        Command::Completions(args) => manual::complete(args, &Cli::command(), &mut out),
        Command::Man(args) => manual::write_pages(args, &Cli::command()),
        Command::UpChild(args) => daemons::become_child(args),
    }
}

fn is_reader_gone(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<OutputError>()
        .is_some_and(OutputError::is_reader_gone)
}
