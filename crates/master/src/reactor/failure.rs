//! Why the daemon can't go on.

use rollcall_os::exit::Exit;

use crate::store::StoreError;

/// A core task has ended: the daemon ends with it, so that no half of it lives on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CoreFailure {
    /// The owner of the roll panicked.
    #[error("the owner of the roll panicked; the panic is reported above")]
    Roll,
    /// A task of the reactor panicked.
    #[error("the task \"{task}\" panicked; the panic is reported above")]
    Task {
        /// Its name.
        task: &'static str,
    },
    /// The thread of the HTTP server ended.
    #[error("the HTTP server ended: {reason}")]
    Http {
        /// Why.
        reason: String,
    },
    /// The store can't be written any more.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CoreFailure {
    /// The exit code that tells of it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Store(StoreError::Panicked) => Exit::Internal,
            Self::Store(_) => Exit::Store,
            Self::Roll | Self::Task { .. } | Self::Http { .. } => Exit::Internal,
        }
    }
}
