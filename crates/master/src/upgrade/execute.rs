//! Becoming another program: execve(2), with what it is to go on with.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rollcall_os::systemd::store;

use super::Program;

/// The program that runs, whatever has become of its file.
const ITSELF: &str = "/proc/self/exe";
/// Tells the old program, which had to go on, why. Its log may be in the way of the descriptors by then.
const FAILED: &str = "ROLLCALL_UPGRADE_FAILED";

/// Descriptors and their names.
pub(crate) type Passed = Vec<(String, OwnedFd)>;

/// Has the program take this process over. If it can't be executed, the one that runs goes on from the
/// same point, so that somebody serves. Returns only why neither could be.
pub(crate) fn execute(program: &Program, passed: &Passed) -> anyhow::Error {
    let path = program.path();
    // Both are made before the first attempt: where it has put descriptors, others were before.
    let commands = prepare(program, path, passed)
        .and_then(|first| Ok((first, prepare(program, Path::new(ITSELF), passed)?)));
    let (mut first, mut second) = match commands {
        Ok(commands) => commands,
        Err(error) => return anyhow::Error::new(error).context("cannot pass descriptors on"),
    };
    let reason = format!("cannot execute {}: {}", path.display(), first.exec());
    let error = second.env(FAILED, &reason).exec();
    anyhow::anyhow!("{reason}; and the program that runs cannot be executed again: {error}")
}

/// A command that runs `file` as the program, and goes on with what is passed.
fn prepare(program: &Program, file: &Path, passed: &Passed) -> io::Result<Command> {
    let mut command = program.command(file);
    command.env_remove(FAILED);
    store::pass_on(&mut command, passed)?;
    Ok(command)
}

/// At a start: tells if another program was to take over, and could not.
pub(crate) fn tell_failure() {
    if let Some(reason) = env::var_os(FAILED) {
        let reason = reason.to_string_lossy();
        tracing::error!(event = "upgrade_failed", reason = %reason, "the program that was to take over could not be executed; the old one goes on");
    }
}
