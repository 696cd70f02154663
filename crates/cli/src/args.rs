//! The command line, and its help.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use rollcall_os::units;
use rollcall_protocol::api::{EventKind, Health, Presence};

use crate::manual::{CompletionsArgs, ManArgs};
use crate::style::ColorChoice;
use crate::url::MasterUrl;
use crate::{lab, time};

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

const LS_HELP: &str = "\
Examples:
  rollcall ls --health critical,warning
  rollcall ls --json | jq -r '.slaves[] | select(.presence == \"missing\") | .name'

PRESENCE is what the master sees: up, late, missing, left (it said goodbye) or expected
(never seen). HEALTH is what the slave said last: a missing slave keeps it. Columns that
do not fit the terminal are left out, the least important first; a pipe gets them all.";

const SHOW_HELP: &str = "\
Examples:
  rollcall show web-1
  rollcall show web-1 --metrics
  rollcall show web-1 --history
  rollcall show web-1 --history 2h --metrics
  rollcall show web-1 --json | jq '.checks[] | select(.state != \"ok\")'

The history is what changed, by the time at which it happened, and the newest reports, of
which the master remembers some ([history] reports); gaps stand in their place.";

const EVENTS_HELP: &str = "\
Examples:
  rollcall events --slave web-1 --since 2d
  rollcall events --kind presence --since '2026-06-01 08:00' --until '2026-06-01 09:00'
  rollcall events --follow --json | jq -r .text

TIME is a length of time before now (90s, 1h 30m, 2d), a time of today (10:30), a local
date and time (2026-06-01 10:30) or a full time stamp (2026-06-01T10:30:00Z).
With --follow the newest events come first, then each new one as it happens; when the
master restarts, the stream is taken up where it ended, and no event is shown twice.";

const UP_HELP: &str = "\
Examples:
  rollcall up
  rollcall up --interval 200ms
  rollcall up --check 'disk=/usr/lib/nagios/plugins/check_disk -w 10% -c 5% -p /'
  rollcall up --check 'demo=cat /tmp/demo; test ! -s /tmp/demo || exit 2'
  rollcall up --for 30s --dir /tmp/trial | tee trial.log

Starts the rollcall-master and rollcall-slave that lie beside this program, on loopback,
and ends both on Ctrl-C. Configuration, state and logs stay in one folder, which it
names; a second run goes on with what is there. Where port 7412 or 7413 is taken it uses
another and says so. --master and ROLLCALL_MASTER do not matter here.";

const DRILL_HELP: &str = "\
Examples:
  rollcall drill
  rollcall drill --for 10m --kill master --every 500ms
  rollcall drill --slaves 50 --mode per-message --dir /var/tmp/drill
  rollcall drill --for 5s --json | jq .lost

Starts a rollcall-master and N rollcall-slave that lie beside this program, on loopback,
with state of their own: nothing that runs here is touched. For the given time they are
killed (SIGKILL; one time of five ended with SIGTERM) and started again; then everything
is delivered, and what was sent and acked is compared with what is stored, report by
report. What was sent and acked is read on the wire and in the slaves' spools, what is
stored in the master's database: docs/reliability.md tells how, and what it proves.
Ctrl-C ends it early with a verdict on what was seen. Exit codes: 0 all is as promised,
1 it is not. The default folder may be one in memory: name one on a disk with --dir.";

const LAB_HELP: &str = "\
Examples:
  rollcall lab                    what there is
  rollcall lab 99-connect-loop
  rollcall lab --all
  rollcall lab --all --json | jq '.experiments[] | {name, verdict, facts}'

The names with 98 end in \"Address already in use\" (EADDRINUSE), those with 99 in \"Cannot
assign requested address\" (EADDRNOTAVAIL). Each experiment makes the failure happen, says
what the kernel answered, applies the cure, and says what it answered then; all figures
are of this run. Each takes a second or two, in a network namespace of its own: as root,
or as any user where the host allows user namespaces. Elsewhere this host's loopback is
used, with a hundred of its ports, and what can't be shown there is said. Neither a master
nor a slave is needed. Exit codes: 0 all as expected, 1 not, which an unusual kernel or
setting explains, or a bug.";

const DOCTOR_HELP: &str = "\
Examples:
  rollcall doctor
  rollcall doctor --destination master.example:7412
  rollcall doctor --watch
  rollcall doctor --json | jq '.findings[] | select(.severity != \"ok\")'

Looks at source ports and what holds them, at TIME_WAIT, listeners and their queues, files,
memory, the firewall's table, and at settings that are advised and wrong. Each finding is
ok, notice, warning or critical, with what it means and the command that mends it; it runs
none of them. PORTS LEFT are those that the next connections to a destination may have,
besides those REUSABLE, which are in TIME_WAIT. Whose the sockets of other users are is
seen by root only. Neither a master nor a configuration is needed.
Exit codes: 0 nothing worse than a notice, 1 a warning or worse (with --watch: at the last
look), or it could not look.";

/// The operator's command of Rollcall, which keeps the roll of a fleet: who is there, and how they are.
#[derive(Debug, Parser)]
#[command(name = "rollcall", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Where the master answers: http://HOST:PORT, or just HOST:PORT
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "ROLLCALL_MASTER",
        default_value = "http://127.0.0.1:7413"
    )]
    pub(crate) master: MasterUrl,

    /// When to colour
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = ColorChoice::Auto)]
    pub(crate) color: ColorChoice,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the slaves
    #[command(visible_alias = "list", after_help = LS_HELP)]
    Ls(LsArgs),
    /// Show one slave and its checks
    #[command(after_help = SHOW_HELP)]
    Show(ShowArgs),
    /// List what has changed, or follow it
    #[command(after_help = EVENTS_HELP)]
    Events(EventsArgs),
    /// Start a master and a slave here, to try Rollcall out
    #[command(after_help = UP_HELP)]
    Up(UpArgs),
    /// Kill and restart a master and its slaves under load, and say what came of it
    #[command(after_help = DRILL_HELP)]
    Drill(DrillArgs),
    /// Look at this host's ports and sockets: what fails, what will, and what mends it
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Make ports fail as they are known to, and mend it: errors 98 and 99, shown on this machine
    #[command(after_help = LAB_HELP)]
    Lab(LabArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Write the man pages of all programs, for packages.
    #[command(hide = true)]
    Man(ManArgs),
    /// What `up` and `drill` start, to become one of their daemons.
    #[command(hide = true)]
    UpChild(UpChildArgs),
}

/// `rollcall ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only slaves of these presences
    #[arg(long, value_name = "PRESENCE", value_delimiter = ',', value_parser = presences())]
    pub(crate) presence: Vec<Presence>,

    /// Only slaves of these healths
    #[arg(long, value_name = "HEALTH", value_delimiter = ',', value_parser = healths())]
    pub(crate) health: Vec<Health>,

    /// As JSON: {"slaves": [...]}, one slave a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `rollcall show`.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The slave's name
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: String,

    /// Every metric of every check, not just the first few
    #[arg(long)]
    pub(crate) metrics: bool,

    /// What it went through instead of how it is, for so long back [without a value: 24h]
    #[arg(long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "24h", value_parser = time::parse_length)]
    pub(crate) history: Option<units::Duration>,

    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `rollcall events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with each new event as it happens
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// At most this many: the newest ones [default: 100, with --follow 10, with --since all]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: Option<u32>,

    /// Only events since then
    #[arg(long, value_name = "TIME", value_parser = time::parse_moment)]
    pub(crate) since: Option<i64>,

    /// Only events before then
    #[arg(long, value_name = "TIME", value_parser = time::parse_moment, conflicts_with = "follow")]
    pub(crate) until: Option<i64>,

    /// Only events of this slave
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) slave: Option<String>,

    /// Only events of this kind
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    pub(crate) kind: Option<EventKind>,

    /// As JSON, one event a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `rollcall up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Folder of configuration, state and logs [default: rollcall/up in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,

    /// How often the slave reports [default: 1s, or what --slave-config says]
    #[arg(long, value_name = "DURATION", value_parser = time::parse_length)]
    pub(crate) interval: Option<units::Duration>,

    /// Configuration of the master; its addresses, state folder and log format are replaced
    #[arg(long, value_name = "FILE")]
    pub(crate) master_config: Option<PathBuf>,

    /// Configuration of the slave; its master, state folder and log format are replaced
    #[arg(long, value_name = "FILE")]
    pub(crate) slave_config: Option<PathBuf>,

    /// Add a check: a shell command that exits 0 (ok), 1 (warning), 2 (critical) or 3 (unknown)
    #[arg(long, value_name = "NAME=COMMAND", value_parser = parse_check)]
    pub(crate) check: Vec<NewCheck>,

    /// Take ports that are free even if 7412 and 7413 are
    #[arg(long)]
    pub(crate) free_ports: bool,

    /// End by itself, this long after the slave is up
    #[arg(long = "for", value_name = "DURATION", value_parser = time::parse_length)]
    pub(crate) duration: Option<units::Duration>,
}

/// A check from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewCheck {
    /// Its name.
    pub(crate) name: String,
    /// What the shell runs.
    pub(crate) command: String,
}

/// `rollcall drill`.
#[derive(Debug, Args)]
pub(crate) struct DrillArgs {
    /// Number of slaves
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub(crate) slaves: u16,

    /// How long daemons are ended and started
    #[arg(long = "for", value_name = "DURATION", default_value = "30s", value_parser = time::parse_length)]
    pub(crate) duration: units::Duration,

    /// How often each slave reports
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = time::parse_length)]
    pub(crate) interval: units::Duration,

    /// How the slaves connect
    #[arg(long, value_name = "MODE", value_enum, default_value_t = DrillMode::Mixed)]
    pub(crate) mode: DrillMode,

    /// Who is killed
    #[arg(long, value_name = "WHO", value_enum, default_value_t = Victims::Both)]
    pub(crate) kill: Victims,

    /// How often somebody is killed: each time after half to one and a half times this
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = time::parse_length)]
    pub(crate) every: units::Duration,

    /// An empty folder for configuration, state and logs, which stays [default: a temporary one, which stays if the drill fails]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,

    /// Who is killed when, again as in the drill that had this seed [default: a random one]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// The verdict as JSON, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

/// How the slaves of a drill connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DrillMode {
    /// One connection that stays.
    Pooled,
    /// A connection for each report.
    PerMessage,
    /// Every other slave per-message.
    Mixed,
}

/// Who is killed in a drill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Victims {
    /// The master only.
    Master,
    /// Slaves only.
    Slaves,
    /// Now the master, now slaves, now both at once.
    Both,
}

/// `rollcall doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Look again and again, until Ctrl-C; counters tell what has grown between two looks
    #[arg(long)]
    pub(crate) watch: bool,

    /// How often to look
    #[arg(long, value_name = "DURATION", default_value = "2s", requires = "watch", value_parser = time::parse_length)]
    pub(crate) every: units::Duration,

    /// End the watch by itself, after so long
    #[arg(long = "for", value_name = "DURATION", requires = "watch", value_parser = time::parse_length)]
    pub(crate) duration: Option<units::Duration>,

    /// Only this destination, also when nobody is connected to it
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) destination: Option<String>,

    /// As JSON; with --watch one line a look
    #[arg(long)]
    pub(crate) json: bool,
}

/// `rollcall lab`.
#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    /// The experiments to run
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(lab::names()))]
    pub(crate) names: Vec<String>,

    /// Run all of them
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,

    /// List them, and run none
    #[arg(long, conflicts_with_all = ["names", "all"])]
    pub(crate) list: bool,

    /// Use this host's loopback even where a network namespace can be had
    #[arg(long)]
    pub(crate) on_host: bool,

    /// What happened as JSON: {"passed": ..., "experiments": [...]}
    #[arg(long)]
    pub(crate) json: bool,
}

/// See [`crate::daemons::become_child`].
#[derive(Debug, Args)]
pub(crate) struct UpChildArgs {
    /// The process whose end ends the daemon.
    #[arg(long)]
    pub(crate) parent: i32,
    /// The daemon and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

fn parse_check(text: &str) -> Result<NewCheck, String> {
    match text.split_once('=') {
        Some((name, command)) if !name.trim().is_empty() && !command.trim().is_empty() => {
            Ok(NewCheck {
                name: name.trim().to_owned(),
                command: command.trim().to_owned(),
            })
        }
        _ => Err("write it as NAME=COMMAND, for example 'ping=ping -c 1 192.0.2.1'".to_owned()),
    }
}

fn presences() -> impl TypedValueParser<Value = Presence> {
    one_of(&Presence::ALL, Presence::as_str)
}

fn healths() -> impl TypedValueParser<Value = Health> {
    one_of(&Health::ALL, Health::as_str)
}

fn kinds() -> impl TypedValueParser<Value = EventKind> {
    one_of(&EventKind::ALL, EventKind::as_str)
}

fn one_of<T: Copy + Send + Sync + 'static>(
    values: &'static [T],
    word: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(values.iter().map(|value| word(*value))).try_map(move |text| {
        values
            .iter()
            .copied()
            .find(|value| word(*value) == text)
            .ok_or("not one of the values")
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

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
    fn a_check_is_a_name_and_a_command() {
        assert_eq!(
            parse_check("web=curl -f http://a/?b=c"),
            Ok(NewCheck {
                name: "web".to_owned(),
                command: "curl -f http://a/?b=c".to_owned()
            })
        );
        for bad in ["web", "=true", "web=", " = "] {
            assert!(parse_check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn following_has_no_end() {
        assert!(parse(&["events", "-f", "--until", "1h"]).is_err());
        assert!(parse(&["events", "--limit", "0"]).is_err());
        assert!(parse(&["events", "-f", "-n", "3", "--kind", "master_start"]).is_ok());
    }
}
