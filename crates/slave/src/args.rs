//! The command line.

use std::path::PathBuf;

use clap::Parser;
use rollcall_os::log::{Level, LogFormat};

/// The Rollcall slave: reports how its host stands to a master. Each report is on this host's disk
/// before it is sent and stays there until the master has it on its own.
#[derive(Debug, Parser)]
#[command(
    name = "rollcall-slave",
    version,
    after_help = "Examples:
  rollcall-slave                                       run on /etc/rollcall/slave.toml, or the defaults
  rollcall-slave --config my.toml --check              validate a file and print what it comes to
  rollcall-slave --new-identity                        make a copied state folder one of its own
  sqlite3 /var/lib/rollcall-slave/spool.db .schema     look into the spool of a running slave

Signals:
  SIGTERM, SIGINT  send what is spooled, say goodbye to the master, exit 0
  SIGHUP           read the configuration again, losing nothing
  SIGUSR1          log level debug, and back

Exit codes: 0 ended as asked; 2 command line; 70 a bug ended a core task; 74 the spool can't be
used; 78 configuration."
)]
pub(crate) struct Args {
    /// The configuration file [default: /etc/rollcall/slave.toml if it exists, else the built-in defaults]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Validate the configuration, print it with all defaults filled in, and exit
    #[arg(long)]
    pub(crate) check: bool,

    /// Give the slave a new id, print it, and exit: the remedy after a state folder was copied. What
    /// is in the spool stays and is sent under the new id
    #[arg(long, conflicts_with = "check")]
    pub(crate) new_identity: bool,

    /// How the log looks: "json", "pretty" or "journal" [default: as configured]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,

    /// What is logged: "error", "warn", "info", "debug" or "trace" [default: as configured]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<Level>,
}

/// Parses the command line; ends the process with its help, version or an error.
pub(crate) fn parse() -> Args {
    Args::parse()
}
