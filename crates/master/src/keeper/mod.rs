//! The keeper: a small service manager for where there is none that keeps descriptors.
//!
//! ```text
//!   rollcall-master --keeper ─┬─ holds: listeners, shards of parked connections
//!                             └─ starts the same program without --keeper, its only child, again and again
//! ```
//! To the master it is what systemd is (`crates/os/src/systemd`), so restart, upgrade and crash take one
//! way whoever keeps. It has one thread, because the kernel takes the end of the thread that has started
//! the master for the end of its parent.

mod child;
mod service;
#[cfg(test)]
mod tests;
mod watch;

use anyhow::{Context, anyhow};
use rollcall_os::exit::{Exit, ExitError};
use rollcall_os::log;
use rollcall_os::systemd::manager;
use rollcall_os::systemd::notify::Manager;
use rustix::process::Signal;

use crate::args::Args;
use crate::config::Config;
use service::Keeper;

/// Runs masters until it is asked to end, or a person must change something.
///
/// # Errors
/// With the exit code of the last master.
pub(crate) fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    if Manager::find().is_there() {
        let error = anyhow!(
            "--keeper is for where there is no service manager, and one has started this process \
             (NOTIFY_SOCKET): leave --keeper out, and have the manager keep descriptors \
             (FileDescriptorStoreMax=), as rollcall-master.service does"
        );
        return Err(ExitError::new(Exit::Usage, error).into());
    }
    let level = args.log_level.unwrap_or(config.log_level);
    let log = log::init(args.log_format.or(config.log_format), level)?;
    log::log_panics();
    let mut keeper = Keeper::new(args, config, log)?;
    keeper.tell();
    keeper.run()
}

/// Called by a master: if a keeper has started it, it says goodbye and ends when the keeper does.
/// Nobody would keep its connections any more, and another keeper would start another master.
///
/// # Errors
/// The keeper has ended already.
pub(crate) fn follow() -> anyhow::Result<()> {
    manager::follow_parent(Signal::INT).context("nobody keeps the connections of this master")?;
    Ok(())
}
