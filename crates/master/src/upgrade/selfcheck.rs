//! `--selfcheck`: can this program go on from the configuration and the store as they are? Nothing is
//! written, no lock is taken, and a master may be running.

use std::fmt;

use rollcall_os::clock;
use rollcall_os::exit::{Exit, ExitWith};

use crate::config::Config;
use crate::roll::{Durable, Roll};
use crate::store::{self, Look};

/// What was found, as one line.
#[derive(Debug)]
pub(crate) struct Found(String);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION");
        write!(f, "rollcall-master {version} can take over: {}", self.0)
    }
}

/// Reads the store as a start would, with the configuration of this start.
///
/// # Errors
/// With the exit code of a store that can't be used.
pub(crate) fn selfcheck(config: &Config) -> anyhow::Result<Found> {
    let look = store::look(&config.state_directory).exit_with(Exit::Store)?;
    let text = match look {
        Look::Nothing => format!(
            "there is no store in {} yet",
            config.state_directory.display()
        ),
        Look::HeaderOnly { version } => format!(
            "the store has layout {version}; the rest of it can't be looked at while a master runs on a file system that copies on write"
        ),
        Look::Whole { version, loaded } => {
            let groups = loaded.redo.len();
            let durable = Durable {
                records: loaded.records,
                redo: loaded.redo,
                next_group: loaded.next_group,
                next_event: loaded.next_event,
            };
            let roll = Roll::restore(durable, config.presence, config.rings, clock::boot())
                .exit_with(Exit::Store)?;
            let slaves = roll.len();
            let known = store::LAYOUT;
            let layout = if version == known {
                format!("layout {version}")
            } else {
                format!("layout {version}, which its start brings to {known}")
            };
            format!("{slaves} slaves and {groups} groups of redo in the store, {layout}")
        }
    };
    Ok(Found(text))
}
