//! Starting a master.

use std::env;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Command;

use rollcall_os::systemd::manager::{self, Held, NotifySocket};
use rustix::process::Pid;

use super::watch::SILENCE_MAX;

/// What makes a keeper; its masters do not have it.
const FLAG: &str = "--keeper";

/// This program's arguments for a master.
pub(super) fn arguments() -> Vec<OsString> {
    let arguments = env::args_os().skip(1);
    arguments.filter(|argument| argument != FLAG).collect()
}

/// Starts a master with all that is held for it. The file is looked up anew each time: after an upgrade
/// it is the new one.
pub(super) fn start(
    program: &Path,
    arguments: &[OsString],
    held: &Held,
    socket: &NotifySocket,
) -> io::Result<Pid> {
    let mut command = Command::new(program);
    held.pass_to(&mut command, socket)?;
    manager::be_parent_of(&mut command);
    command
        .args(arguments)
        .env("WATCHDOG_USEC", SILENCE_MAX.as_micros().to_string())
        .env_remove("WATCHDOG_PID");
    let child = command.spawn()?;
    Ok(Pid::from_child(&child))
}
