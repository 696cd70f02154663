//! How the database is opened, whatever state it is in.

use std::collections::BTreeMap;

use rusqlite::Connection;

use super::{BEFORE_ALL, Queue, State, identity, random_stream};
use crate::spool::{Folder, SpoolError, SpoolLimits, database, entries};

impl Queue {
    /// Opens the database of the folder and begins a new stream. A database that can't be used is
    /// set aside first.
    ///
    /// # Errors
    /// [`SpoolError`]
    pub(in crate::spool) fn open(
        folder: Folder,
        limits: SpoolLimits,
        now_ms: i64,
    ) -> Result<Self, SpoolError> {
        match database::open(&folder.database()) {
            Ok(connection) => Self::begin_stream(folder, limits, connection, None, Vec::new()),
            Err(database::OpenError::Other(error)) => Err(error),
            Err(database::OpenError::Unusable { why, reason }) => {
                Self::set_aside(folder, limits, now_ms, why, &reason, Vec::new())
            }
        }
    }

    /// Sets the database aside, which was found damaged while it was in use, and opens a new one.
    /// New entries go on from the ids of the old one: readers remember up to where they have come.
    ///
    /// # Errors
    /// [`SpoolError`]
    pub(in crate::spool) fn replace(
        self,
        now_ms: i64,
        damage: &rusqlite::Error,
    ) -> Result<Self, SpoolError> {
        let Self {
            folder,
            limits,
            introduced,
            state: State { next_id, .. },
            ..
        } = self;
        let damage = damage.to_string();
        let mut new = Self::set_aside(folder, limits, now_ms, "damaged", &damage, introduced)?;
        new.state.next_id = new.state.next_id.max(next_id);
        Ok(new)
    }

    fn set_aside(
        folder: Folder,
        limits: SpoolLimits,
        now_ms: i64,
        why: &str,
        reason: &str,
        introduced: Vec<u64>,
    ) -> Result<Self, SpoolError> {
        let aside = folder.set_aside(why, now_ms)?;
        tracing::error!(
            event = "spool_set_aside",
            path = %aside.display(),
            error = reason,
            "the spool can't be used and was set aside; a new one takes its place"
        );
        let connection = database::open(&folder.database()).map_err(|error| match error {
            database::OpenError::Other(error) => error,
            database::OpenError::Unusable { .. } => SpoolError::Replaced,
        })?;
        let old = database::open_set_aside(&aside);
        Self::begin_stream(folder, limits, connection, old.as_ref(), introduced)
    }

    fn begin_stream(
        folder: Folder,
        limits: SpoolLimits,
        connection: Connection,
        old: Option<&Connection>,
        introduced: Vec<u64>,
    ) -> Result<Self, SpoolError> {
        let path = folder.database();
        let failed = |source| SpoolError::Database {
            path: path.clone(),
            source,
        };
        if let Some(old) = old {
            note_remains(old, &connection).map_err(failed)?;
        }
        let slave_id = identity::of(&folder, &connection, old, failed)?;
        let introduced = identity::introduced(&connection, old, introduced).map_err(failed)?;
        let state = State::read(&connection, random_stream()?).map_err(failed)?;
        database::keep_log_at_close(&connection, false).map_err(failed)?;
        Ok(Self {
            folder,
            connection,
            limits,
            slave_id,
            introduced,
            state,
            cleared: BTreeMap::new(),
            cleared_reports: 0,
            reader: BEFORE_ALL,
        })
    }
}

/// The reports of a database that was set aside, as gaps, as far as it can still be read.
fn note_remains(old: &Connection, new: &Connection) -> rusqlite::Result<()> {
    for (id, gap) in (1..).zip(&entries::remains(old)) {
        entries::insert_gap(new, id, gap)?;
    }
    Ok(())
}
