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
  rollcall-master                                  run on /etc/rollcall/master.toml, or the defaults
  rollcall-master --config my.toml --check         validate a file and print what it comes to
  rollcall-master --config my.toml --verify-store  check the store, read only
  rollcall-master --config my.toml --keeper        connections outlive the master, without systemd
  rollcall ls                                      read the roll of a running master

Signals:
  SIGTERM  store what has arrived, exit 0; leave the connections to the next process where systemd
           or --keeper holds them, else as SIGINT
  SIGINT   say goodbye to the slaves, store what has arrived, exit 0
  SIGHUP   read the configuration again, dropping nobody
  SIGUSR1  log level debug, and back
  SIGUSR2  have the program's file, if it passes --selfcheck, take this process over with all
           connections; if it does not, go on, and say why in the log

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

    /// Where there is no systemd: hold the connections, start the master as a child, and start it again
    /// whatever ended it, but for exit codes 2 and 78, with no connection lost. SIGTERM and SIGINT are
    /// for good, other signals go on to the master
    #[arg(long, conflicts_with_all = ["check", "verify_store", "selfcheck"])]
    pub(crate) keeper: bool,

    /// Read the configuration and the store as a start would, say in a line what is there, and exit: 0 if
    /// this program can go on from it, 74 or 78 if not. It is only read, and a master may be running on
    /// it
    #[arg(long, conflicts_with_all = ["check", "verify_store"])]
    pub(crate) selfcheck: bool,

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
