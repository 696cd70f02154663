//! How exchanges end, and what comes after.

use std::io;
use std::time::Duration;

use rollcall_protocol::frame::FrameError;
use rollcall_protocol::session::slave::Silence;
use rollcall_protocol::wire;

use super::dial::ConnectError;
use crate::spool::SpoolError;

/// Why a session could not be had or has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The master closed it without a word.
    #[error("the master closed the connection")]
    Closed,
    /// What came is not this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The master speaks a version that was not offered.
    #[error("the master chose protocol version {0}, which was not offered")]
    Version(u32),
    /// No answer in time.
    #[error(transparent)]
    Silence(#[from] Silence),
    /// A question was answered, and nothing of it acked or refused.
    #[error("the master took a question for a copy of an older one; it is asked anew")]
    NotTaken,
    /// The spool can't be read at the moment.
    #[error("{0}")]
    Spool(SpoolError),
}

/// How an exchange ended.
#[derive(Debug)]
pub(super) enum End {
    /// Connect again at once: there is more to send, or the configuration has changed.
    Again,
    /// All was acked, and nothing is left to do on this connection.
    Done,
    /// Per-message mode: the budget of ports is used up.
    NoRoom,
    /// Nothing was sent for a while: connect again when there is something to send.
    Idle,
    /// The most preferred master is to be tried again.
    Return,
    /// What is not acked of this stream is to be moved, and was moved, to a new one.
    Resync(u64),
    /// The master is going away.
    Told(wire::MasterGoodbye),
    /// The master does not want this slave.
    Refused(wire::Error),
    /// Anything else; told apart by whether the session was open.
    Lost {
        /// What went wrong.
        error: LinkError,
        /// Whether the master had said Welcome.
        open: bool,
    },
    /// This slave has said goodbye, or there was no time left to.
    Stopped,
}

impl End {
    /// Whether there is no master to report to after it.
    pub(super) const fn is_without_master(&self) -> bool {
        match self {
            Self::Resync(_) | Self::Told(_) | Self::Refused(_) | Self::Lost { .. } => true,
            Self::Again | Self::Done | Self::NoRoom | Self::Idle | Self::Return | Self::Stopped => {
                false
            }
        }
    }
}

/// What comes after an exchange.
pub(super) enum Next {
    /// Another one.
    Now,
    /// Another one after a pause.
    Pause(Duration),
    /// Nothing.
    Finish,
}
