//! Who the slave is: its id, and the streams by which the master has known its processes.

use rollcall_protocol::limits::PREVIOUS_MAX;
use rusqlite::Connection;

use super::Queue;
use crate::spool::{Folder, SpoolError, Standing, database, entries};

/// Keys of the meta table.
const ID: &str = "slave_id";
/// Eight big-endian bytes each, newest first.
const INTRODUCED: &str = "introduced";

/// What [`Queue::renew_identity`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewIdentity {
    /// The id until now.
    pub(crate) old: [u8; 16],
    /// The id from now on.
    pub(crate) new: [u8; 16],
    /// Number of reports that are not acked and will be sent under the new id.
    pub(crate) backlog: u64,
}

impl Queue {
    /// What Hello has to say; from now on the stream counts as one that has said it.
    ///
    /// # Errors
    /// Those of SQLite. That the stream can't be noted is no error unless the database is damaged:
    /// on a full disk the slave still says Hello.
    pub(in crate::spool) fn introduce(&mut self) -> rusqlite::Result<Standing> {
        let own = self.state.stream;
        if self.introduced.first() != Some(&own) {
            let others = self.introduced.iter().take(PREVIOUS_MAX);
            let streams: Vec<u64> = std::iter::once(&own).chain(others).copied().collect();
            match note(&self.connection, &streams) {
                Ok(()) => self.introduced = streams,
                Err(error) if database::is_damage(&error) => return Err(error),
                Err(error) => {
                    tracing::debug!(event = "hello_not_noted", error = %error, "can't note that this stream says Hello");
                }
            }
        }
        self.standing()
    }

    /// The streams of this folder's earlier processes that have said Hello, newest first.
    pub(super) fn previous(&self) -> Vec<u64> {
        let own = self.state.stream;
        let others = self.introduced.iter().filter(|stream| **stream != own);
        others.take(PREVIOUS_MAX).copied().collect()
    }

    /// Draws a new id. What is in the spool stays there, and goes under the new id from now on.
    ///
    /// # Errors
    /// [`SpoolError`]; nothing has changed then.
    pub(in crate::spool) fn renew_identity(&mut self) -> Result<NewIdentity, SpoolError> {
        let new = random_id()?;
        let old = self.slave_id;
        // The database decides: if it can't be written, the next start puts the old id back here.
        self.folder.write_id(new)?;
        let write = || {
            let transaction = self.begin()?;
            entries::set_meta(&transaction, ID, &new)?;
            note(&transaction, &[])?;
            transaction.commit()
        };
        write().map_err(|source| SpoolError::Database {
            path: self.folder.database(),
            source,
        })?;
        self.slave_id = new;
        self.introduced.clear();
        Ok(NewIdentity {
            old,
            new,
            backlog: self.state.totals.reports,
        })
    }
}

/// The streams that have said Hello: those in the database, or those of the one that was set aside.
pub(super) fn introduced(
    connection: &Connection,
    old: Option<&Connection>,
    known: Vec<u64>,
) -> rusqlite::Result<Vec<u64>> {
    if let Some(streams) = read(connection)? {
        return Ok(streams);
    }
    let remains = old.and_then(|old| read(old).ok().flatten());
    let streams = if known.is_empty() {
        remains.unwrap_or_default()
    } else {
        known
    };
    if !streams.is_empty() {
        note(connection, &streams)?;
    }
    Ok(streams)
}

fn read(connection: &Connection) -> rusqlite::Result<Option<Vec<u64>>> {
    let bytes = entries::meta(connection, INTRODUCED)?;
    Ok(bytes.map(|bytes| decode(&bytes)))
}

fn note(connection: &Connection, streams: &[u64]) -> rusqlite::Result<()> {
    let bytes: Vec<u8> = streams
        .iter()
        .flat_map(|stream| stream.to_be_bytes())
        .collect();
    entries::set_meta(connection, INTRODUCED, &bytes)
}

fn decode(bytes: &[u8]) -> Vec<u64> {
    let (streams, _rest) = bytes.as_chunks();
    streams.iter().copied().map(u64::from_be_bytes).collect()
}

fn random_id() -> Result<[u8; 16], getrandom::Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)?;
    Ok(id)
}

/// The id in the database, or the one beside it, or that of the database that was set aside; a new
/// one if there is none.
pub(super) fn of(
    folder: &Folder,
    connection: &Connection,
    old: Option<&Connection>,
    failed: impl Fn(rusqlite::Error) -> SpoolError,
) -> Result<[u8; 16], SpoolError> {
    let as_id = |value: Vec<u8>| <[u8; 16]>::try_from(value).ok();
    let in_database = entries::meta(connection, ID)
        .map_err(&failed)?
        .and_then(as_id);
    let beside = folder.read_id();
    let in_old = || entries::meta(old?, ID).ok().flatten().and_then(as_id);
    let id = match in_database.or(beside).or_else(in_old) {
        Some(id) => id,
        None => random_id()?,
    };
    if in_database != Some(id) {
        entries::set_meta(connection, ID, &id).map_err(&failed)?;
    }
    if beside != Some(id) {
        folder.write_id(id)?;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rollcall_protocol::wire;

    use super::*;
    use crate::spool::renew_identity;
    use crate::spool::tests::{NOW_MS, ROOMY, UNBOUNDED};

    fn open(directory: &Path) -> Queue {
        Queue::open(Folder::lock(directory).unwrap(), UNBOUNDED, NOW_MS).unwrap()
    }

    #[test]
    fn the_streams_that_have_said_hello_are_named_newest_first() {
        let directory = tempfile::tempdir().unwrap();
        let mut said = Vec::new();
        for start in 0..22 {
            let mut queue = open(directory.path());
            // A process that ends before its Hello leaves no trace.
            if start % 2 == 0 {
                for _ in 0..2 {
                    let standing = queue.introduce().unwrap();
                    let newest: Vec<u64> = said.iter().rev().take(8).copied().collect();
                    assert_eq!(standing.previous, newest);
                }
                said.push(queue.state.stream);
            }
        }
        // A stream that was moved is an earlier one, too.
        let mut queue = open(directory.path());
        let old = queue.introduce().unwrap().stream;
        queue.restream(old).unwrap();
        assert_eq!(queue.introduce().unwrap().previous[0], old);
        assert_eq!(queue.introduce().unwrap().previous.len(), 8);
    }

    #[test]
    fn the_streams_outlive_a_damaged_database() {
        let directory = tempfile::tempdir().unwrap();
        let mut queue = open(directory.path());
        let first = queue.introduce().unwrap().stream;
        let damage = rusqlite::Error::IntegralValueOutOfRange(0, -1);
        let mut queue = queue.replace(NOW_MS, &damage).unwrap();
        let second = queue.introduce().unwrap();
        assert_eq!(second.previous, [first]);
        drop(queue);
        // Not a spool any more, but its tables can be read.
        let path = directory.path().join("spool.db");
        let connection = Connection::open(path).unwrap();
        connection
            .execute_batch("PRAGMA user_version = 99")
            .unwrap();
        drop(connection);
        let mut queue = open(directory.path());
        assert_eq!(queue.introduce().unwrap().previous, [second.stream, first]);
    }

    #[test]
    fn a_new_id_keeps_the_backlog_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let mut queue = open(directory.path());
        queue.introduce().unwrap();
        queue.append(&[wire::Report::default()], ROOMY).unwrap();
        let before = queue.standing().unwrap();
        let in_use = renew_identity(directory.path(), UNBOUNDED).unwrap_err();
        assert!(matches!(in_use, SpoolError::InUse { .. }), "{in_use}");
        drop(queue);

        let renewed = renew_identity(directory.path(), UNBOUNDED).unwrap();
        assert_eq!((renewed.old, renewed.backlog), (before.slave_id, 1));
        assert_ne!(renewed.new, renewed.old);
        // The file beside the database says so too; if it is lost or old, the database is right.
        let id = directory.path().join("slave-id");
        let text = format!("{:032x}\n", u128::from_be_bytes(renewed.new));
        assert_eq!(fs::read_to_string(&id).unwrap(), text);
        fs::write(&id, format!("{:032x}\n", u128::from_be_bytes(renewed.old))).unwrap();
        let standing = open(directory.path()).introduce().unwrap();
        assert_eq!((standing.slave_id, standing.backlog), (renewed.new, 1));
        assert_eq!(standing.pending[0], before.pending[0]);
        assert_eq!(standing.previous, [0; 0]);
        assert_eq!(fs::read_to_string(&id).unwrap(), text);
    }

    #[test]
    fn a_folder_that_is_not_there_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nobody");
        let error = renew_identity(&path, UNBOUNDED).unwrap_err();
        assert!(matches!(error, SpoolError::NoFolder { .. }), "{error}");
        assert!(!path.exists());
    }
}
