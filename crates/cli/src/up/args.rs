//! The command line of `rollcall up`.

use std::path::PathBuf;

use clap::Args;
use rollcall_os::units;

use crate::terminal::time;

/// After the options in `--help`.
pub(crate) const HELP: &str = "\
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
