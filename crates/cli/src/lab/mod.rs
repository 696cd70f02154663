//! `rollcall lab`: the failures that TCP ports are known for, each made to happen on this machine,
//! with what mends it, and told in words.
//!
//! ```text
//!   arena        a network namespace with a hundred ports, or a hundred ports of this host
//!     namespace  makes one, without a privilege where the host allows it
//!   sockets      both ends of a connection, and errors by their names
//!   experiments  one file each: what is done, what the kernel says, the cure, what it says then
//!   tale         what happened, for people and as JSON
//! ```
//! Everything that is told was seen in this run: return values, and the kernel's own list of sockets.
//! An experiment that turns out otherwise than expected says so, and the exit code is 1.

mod arena;
mod args;
mod experiments;
mod namespace;
mod sockets;
mod tale;

use anyhow::bail;
use rollcall_os::limits;
use rustix::system::uname;
use serde::Serialize;

use self::arena::Arena;
pub(crate) use self::args::{HELP, LabArgs};
use self::experiments::{ALL, Experiment};
use self::tale::{Tale, Verdict};
use crate::terminal::output::Output;
use crate::terminal::style::Tone;
use crate::terminal::table::{self, Column, Field};
use crate::terminal::wrap::wrap;
use crate::terminal::{escape, json};

const COLUMNS: [Column; 2] = [Column::text("NAME", 0), Column::text("WHAT FAILS", 0)];
const WIDTH: usize = 96;

/// For those who have not met them.
const WORDS: &str = "The words: a connection is two addresses and two ports; the client's port is its \
                     source port, which the kernel takes from a range when the client calls connect(). bind() \
                     takes a port by name, as servers do. Of a connection that has ended, the side that closed \
                     first keeps a remnant for 60 s, so that late packets of it can't get into a new one: \
                     TIME_WAIT. A line with \"->\" is what the kernel answered in this run.";

/// Everything, for scripts.
#[derive(Debug, Serialize)]
struct Report {
    passed: bool,
    kernel: String,
    arena: &'static str,
    experiments: Vec<Tale>,
}

/// An experiment that could be run, for scripts.
#[derive(Debug, Serialize)]
struct Listed {
    name: &'static str,
    title: &'static str,
}

/// Runs experiments, or lists them.
///
/// # Errors
/// If something turned out otherwise than expected.
pub(crate) fn run(args: &LabArgs, out: &mut Output) -> anyhow::Result<()> {
    let is_wanted = |one: &&Experiment| args.all || args.names.iter().any(|name| name == one.name);
    let wanted: Vec<_> = ALL.iter().filter(is_wanted).collect();
    if args.list || wanted.is_empty() {
        return list(args, out);
    }
    // As many as the largest experiment needs; where they can't be had it says so itself.
    drop(limits::raise_open_files());
    let mut arena = Arena::find(args.on_host);
    let kernel = escape::escape(&uname().release().to_string_lossy()).into_owned();
    if !args.json {
        introduce(&kernel, &arena, out)?;
    }
    let mut tales = Vec::new();
    for experiment in wanted {
        let tale = perform(experiment, &mut arena);
        if !args.json {
            out.line("")?;
            for line in tale.lines(out.look()) {
                out.line(&line)?;
            }
        }
        tales.push(tale);
    }
    conclude(tales, kernel, &arena, args, out)
}

fn introduce(kernel: &str, arena: &Arena, out: &mut Output) -> anyhow::Result<()> {
    let look = out.look();
    let width = look.width.map_or(WIDTH, |width| width.min(WIDTH));
    for text in [&format!("Linux {kernel}. {}", arena.description()), WORDS] {
        for line in wrap(text, width, "", "") {
            out.line(&look.paint(line, Tone::Faint))?;
        }
    }
    Ok(())
}

fn perform(experiment: &Experiment, arena: &mut Arena) -> Tale {
    let mut tale = Tale::new(experiment.name, experiment.title);
    if let Err(error) = arena.renew() {
        tale.not_run(format!("There is no place for this experiment: {error:#}."));
    } else if let Err(error) = (experiment.run)(arena, &mut tale) {
        tale.broke(&error);
    }
    tale
}

fn conclude(
    tales: Vec<Tale>,
    kernel: String,
    arena: &Arena,
    args: &LabArgs,
    out: &mut Output,
) -> anyhow::Result<()> {
    let count = |verdict| tales.iter().filter(|tale| tale.verdict == verdict).count();
    let (failed, not_run, all) = (
        count(Verdict::Unexpected),
        count(Verdict::NotRun),
        tales.len(),
    );
    if args.json {
        let report = Report {
            passed: failed == 0,
            kernel,
            arena: arena.word(),
            experiments: tales,
        };
        out.line(&json::pretty(&report)?)?;
    } else if all > 1 {
        let text = format!(
            "{} of {all} as expected, {not_run} not run",
            count(Verdict::AsExpected)
        );
        out.line(&format!("\n{text}"))?;
    }
    if failed > 0 {
        bail!("{failed} of {all} experiments did not turn out as expected on this kernel");
    }
    Ok(())
}

fn list(args: &LabArgs, out: &mut Output) -> anyhow::Result<()> {
    if args.json {
        let listed = ALL.iter().map(|one| Listed {
            name: one.name,
            title: one.title,
        });
        let listed: Vec<_> = listed.collect();
        out.line(&json::pretty(&listed)?)?;
        return Ok(());
    }
    let rows: Vec<_> = ALL
        .iter()
        .map(|one| vec![Field::plain(one.name), Field::plain(one.title)])
        .collect();
    for line in table::lines(&COLUMNS, &rows, out.look()) {
        out.line(&line)?;
    }
    if !args.list {
        out.line("\nName the ones to run, or give --all.")?;
    }
    Ok(())
}
