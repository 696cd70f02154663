//! The command line as a whole. Each command has its own part, with its help.

use clap::{Parser, Subcommand};

use crate::client::url::MasterUrl;
use crate::daemons::UpChildArgs;
use crate::doctor::DoctorArgs;
use crate::drill::DrillArgs;
use crate::events::EventsArgs;
use crate::lab::LabArgs;
use crate::ls::LsArgs;
use crate::manual::{CompletionsArgs, ManArgs};
use crate::show::ShowArgs;
use crate::terminal::style::ColorChoice;
use crate::up::UpArgs;
use crate::{doctor, drill, events, lab, ls, show, up};

const EXAMPLES: &str = "\
Examples:
  rollcall up                          try it out: a master and a slave on this host
  rollcall drill                       kill and restart daemons under load, and count
  rollcall ls                          who is there, and how they are
  rollcall ls --presence late,missing  only those that are overdue
  rollcall show web-1                  one slave, with each of its checks
  rollcall events --since 1h           what has changed in the last hour
  rollcall events --follow             what changes, as it changes
  rollcall doctor                      whether this host has ports for its connections
  rollcall lab                         errors 98 and 99, made to happen and mended

The master is asked over HTTP: at 127.0.0.1:7413, unless --master or ROLLCALL_MASTER
names another. Exit codes: 0 done, 1 failed or not found, 2 wrong use, 69 the master
cannot be reached.";

/// Where help lists what all commands have in common: after the command's own options, and before
/// `--help`, which clap puts at 999.
const AFTER_OWN: usize = 900;

/// The operator's command of Rollcall, which keeps the roll of a fleet: who is there, and how they are.
#[derive(Debug, Parser)]
#[command(name = "rollcall", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Where the master answers: http://HOST:PORT, or just HOST:PORT
    #[arg(
        long,
        global = true,
        display_order = AFTER_OWN,
        value_name = "URL",
        env = "ROLLCALL_MASTER",
        default_value = "http://127.0.0.1:7413"
    )]
    pub(crate) master: MasterUrl,

    /// When to colour
    #[arg(
        long,
        global = true,
        display_order = AFTER_OWN,
        value_name = "WHEN",
        value_enum,
        default_value_t = ColorChoice::Auto
    )]
    pub(crate) color: ColorChoice,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the slaves
    #[command(visible_alias = "list", after_help = ls::HELP)]
    Ls(LsArgs),
    /// Show one slave and its checks
    #[command(after_help = show::HELP)]
    Show(ShowArgs),
    /// List what has changed, or follow it
    #[command(after_help = events::HELP)]
    Events(EventsArgs),
    /// Start a master and a slave here, to try Rollcall out
    #[command(after_help = up::HELP)]
    Up(UpArgs),
    /// Kill and restart a master and its slaves under load, and say what came of it
    #[command(after_help = drill::HELP)]
    Drill(DrillArgs),
    /// Look at this host's ports and sockets: what fails, what will, and what mends it
    #[command(after_help = doctor::HELP)]
    Doctor(DoctorArgs),
    /// Make ports fail as they are known to, and mend it: errors 98 and 99, shown on this machine
    #[command(after_help = lab::HELP)]
    Lab(LabArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Write the man pages of all programs, for packages
    #[command(hide = true)]
    Man(ManArgs),
    /// What `up` and `drill` start, to become one of their daemons.
    #[command(hide = true)]
    UpChild(UpChildArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use rollcall_protocol::api::{Health, Presence};

    use super::*;

    fn parse(words: &[&str]) -> Result<Command, clap::Error> {
        Cli::try_parse_from([&["rollcall"], words].concat()).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn filters_are_lists() {
        let Ok(Command::Ls(args)) = parse(&["ls", "--presence", "late,missing", "--health=ok"])
        else {
            panic!("not ls");
        };
        assert_eq!(args.presence, [Presence::Late, Presence::Missing]);
        assert_eq!(args.health, [Health::Ok]);
        let error = parse(&["ls", "--presence", "mising"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("missing"), "{error}");
    }

    #[test]
    fn help_lists_a_command_s_own_options_before_those_of_all() {
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let help = Cli::try_parse_from(["rollcall", name, "--help"]).unwrap_err();
            let help = help.to_string();
            let (_, options) = help.split_once("\nOptions:\n").unwrap();
            let of_all = options.find("--master <URL>").unwrap();
            let last_own = command.get_opts().filter_map(|option| {
                let name = format!("\n      --{}", option.get_long()?);
                options.find(&name)
            });
            assert!(last_own.max() < Some(of_all), "{help}");
        }
    }

    #[test]
    fn following_has_no_end() {
        assert!(parse(&["events", "-f", "--until", "1h"]).is_err());
        assert!(parse(&["events", "--limit", "0"]).is_err());
        assert!(parse(&["events", "-f", "-n", "3", "--kind", "master_start"]).is_ok());
    }
}
