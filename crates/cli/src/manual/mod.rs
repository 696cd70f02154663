//! Completions for shells, and man pages, of all the programs of a package.
//!
//! The daemons do not carry the code for it: their command lines are compiled in here.

#[path = "../../../master/src/args.rs"]
#[expect(dead_code, reason = "nothing is parsed here, only described")]
mod master;
#[path = "../../../slave/src/args.rs"]
#[expect(dead_code, reason = "nothing is parsed here, only described")]
mod slave;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::terminal::output::Output;

/// `rollcall completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,

    /// The program that is completed
    #[arg(long = "for", value_name = "PROGRAM", value_enum, default_value_t = Program::Cli)]
    program: Program,
}

/// `rollcall man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder that the pages are written to; made if it is missing.
    folder: PathBuf,
}

/// What people and systemd start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Program {
    /// The operator's command.
    #[value(name = "rollcall")]
    Cli,
    /// The master.
    #[value(name = "rollcall-master")]
    Master,
    /// The slave.
    #[value(name = "rollcall-slave")]
    Slave,
}

impl Program {
    /// Its command line; `own` is this program's.
    fn command(self, own: &Command) -> Command {
        match self {
            Self::Cli => own.clone(),
            Self::Master => master::Args::command(),
            Self::Slave => slave::Args::command(),
        }
    }

    /// Of the manual: 1 for commands, 8 for daemons.
    const fn section(self) -> &'static str {
        match self {
            Self::Cli => "1",
            Self::Master | Self::Slave => "8",
        }
    }
}

/// Writes the completions to stdout.
pub(crate) fn complete(
    args: &CompletionsArgs,
    own: &Command,
    out: &mut Output,
) -> anyhow::Result<()> {
    let mut command = args.program.command(own);
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    out.write(&String::from_utf8(script)?)?;
    Ok(())
}

/// Writes a page for each program, and for each command of `rollcall`.
pub(crate) fn write_pages(args: &ManArgs, own: &Command) -> anyhow::Result<()> {
    fs::create_dir_all(&args.folder)
        .with_context(|| format!("can't make {}", args.folder.display()))?;
    for program in Program::value_variants() {
        let mut command = program.command(own).disable_help_subcommand(true);
        command.build();
        write_with_subcommands(&command, program.section(), &args.folder)?;
    }
    Ok(())
}

fn write_with_subcommands(command: &Command, section: &str, folder: &Path) -> anyhow::Result<()> {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        write_with_subcommands(sub, section, folder)?;
    }
    // "rollcall ls" is rollcall-ls(1).
    let name = command.get_display_name().unwrap_or(command.get_name());
    let path = folder.join(format!("{name}.{section}"));
    let man = Man::new(command.clone()).section(section);
    let mut page = Vec::new();
    man.render(&mut page)?;
    fs::write(&path, page).with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;

    #[test]
    fn each_program_and_each_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("man");
        write_pages(
            &ManArgs {
                folder: folder.clone(),
            },
            &Cli::command(),
        )
        .unwrap();
        let page = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        for (name, word) in [
            ("rollcall.1", "rollcall\\-ls(1)"),
            ("rollcall-ls.1", "presence"),
            ("rollcall-master.8", "verify\\-store"),
            ("rollcall-slave.8", "new\\-identity"),
        ] {
            assert!(page(name).contains(word), "{name}: {}", page(name));
        }
        assert!(page("rollcall-master.8").contains(".TH rollcall-master 8"));
        assert!(!folder.join("rollcall-up-child.1").exists());
        let commands = Cli::command();
        for command in commands.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let name = format!("rollcall-{}.1", command.get_name());
            assert!(folder.join(&name).exists(), "{name}");
        }
    }
}
