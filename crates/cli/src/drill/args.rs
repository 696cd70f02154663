//! The command line of `rollcall drill`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rollcall_os::units;

use crate::terminal::time;

/// After the options in `--help`.
pub(crate) const HELP: &str = "\
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
