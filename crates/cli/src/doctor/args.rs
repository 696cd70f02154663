//! The command line of `rollcall doctor`.

use clap::Args;
use rollcall_os::units;

use crate::terminal::time;

/// After the options in `--help`.
pub(crate) const HELP: &str = "\
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
