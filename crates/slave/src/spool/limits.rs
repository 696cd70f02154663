//! How much the spool may keep.

use std::time::Duration;

/// The bounds of the spool. When one is reached, repeats go before changes, oldest first, and what
/// went becomes a gap. The newest report always stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpoolLimits {
    /// Largest sum of the entries' sizes in bytes ([`super::entries::ENTRY_BYTES`] each, and the body).
    pub(crate) bytes_max: u64,
    /// Older reports are given up.
    pub(crate) age_max: Duration,
    /// Free space of the file system in bytes below which the spool gives way.
    pub(crate) free_bytes_min: u64,
}
