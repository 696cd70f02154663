//! One master to a state directory.

use std::path::Path;

use rollcall_os::lock::{Lock, LockError};

use super::StoreError;

const LOCK: &str = "master.lock";

/// Takes the directory's lock, or says who holds it.
pub(super) fn take(directory: &Path) -> Result<Lock, StoreError> {
    Lock::take(&directory.join(LOCK)).map_err(|error| match error {
        LockError::Held { holder, .. } => StoreError::InUse {
            path: directory.to_owned(),
            holder,
        },
        LockError::File { verb, path, source } => StoreError::File {
            what: verb,
            path,
            source,
        },
    })
}
