//! The command line.

use std::path::PathBuf;

use clap::Parser;
use rollcall_os::log::{Level, LogFormat};

/// The Rollcall master: keeps the roll of a fleet. Slaves connect and report to it; it acks a report
/// when it is on disk, knows who is late or missing, and answers readers over HTTP.
#[derive(Debug, Parser)]
#[command(
    name = "rollcall-master",
    version,
    after_help = "Examples:
  rollcall-master                                       run on /etc/rollcall/master.toml, or the defaults
  rollcall-master --config my.toml --check              validate a file and print what it comes to
  rollcall-master --config my.toml --verify-store       check the store, read only
  rollcall ls                                           read the roll of a running master

Signals:
  SIGTERM, SIGINT  say goodbye to the slaves, store what has arrived, exit 0
  SIGHUP           read the configuration again, dropping nobody
  SIGUSR1          log level debug, and back

Exit codes: 0 ended as asked; 2 command line; 69 address or port not to be had; 70 a bug ended a
core task; 74 the store can't be used; 78 configuration."
)]
pub(crate) struct Args {
    /// The configuration file [default: /etc/rollcall/master.toml if it exists, else the built-in defaults]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Validate the configuration, print it with all defaults filled in, and exit
    #[arg(long)]
    pub(crate) check: bool,

    /// Check the whole store, say what is in it, and exit: 0 if it is sound, 74 if not. It is only read,
    /// and a master may be running on it
    #[arg(long, conflicts_with = "check")]
    pub(crate) verify_store: bool,

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
