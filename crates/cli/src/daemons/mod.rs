//! The daemons of this build as children of this program: what `rollcall up` and `rollcall drill`
//! share.

mod child;
mod log_tail;
mod ports;
mod programs;
mod signals;

use std::time::Duration;

pub(crate) use self::child::{Daemon, Log, UpChildArgs, become_child};
pub(crate) use self::log_tail::tail;
pub(crate) use self::ports::{Ports, Reservation};
pub(crate) use self::programs::Programs;
pub(crate) use self::signals::on_stop_signal;

/// The time that a daemon may take to end after SIGTERM; then comes SIGKILL.
pub(crate) const STOP_MAX: Duration = Duration::from_secs(15);

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Keeps the roll.
    Master,
    /// Reports.
    Slave,
}

impl Role {
    /// In messages and names of files.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Slave => "slave",
        }
    }

    /// The name of its executable.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Master => "rollcall-master",
            Self::Slave => "rollcall-slave",
        }
    }
}
