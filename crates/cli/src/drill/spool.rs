//! Reads the spool of a slave that is down, as `sqlite3` would: read-only, and past the slave's own
//! code.

use std::path::{Path, PathBuf};

use prost::Message;
use rollcall_protocol::wire::Report;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use super::witness::{SlaveId, Spooled};

/// A spool or a store can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// SQLite refuses.
    #[error("can't read {}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A row is not what this build writes.
    #[error("{what} in {} is not what this build writes", path.display())]
    Content {
        /// What.
        what: String,
        /// The database.
        path: PathBuf,
        /// Why.
        #[source]
        source: prost::DecodeError,
    },
}

/// What a spool holds.
#[derive(Debug, PartialEq)]
pub(super) struct Held {
    /// Whose it is.
    pub(super) slave: SlaveId,
    /// What was not acked, in order.
    pub(super) entries: Vec<Spooled>,
}

/// The spool at `path`; none if the slave has not come as far as to make it.
///
/// # Errors
/// [`ReadError`]
pub(super) fn read(path: &Path) -> Result<Option<Held>, ReadError> {
    let fault = |source| ReadError::Sqlite {
        path: path.to_owned(),
        source,
    };
    let Some(connection) = open(path, "entries")? else {
        return Ok(None);
    };
    let sql = "SELECT value FROM meta WHERE key = 'slave_id'";
    let id = connection
        .query_row(sql, [], |row| row.get::<_, SlaveId>(0))
        .optional()
        .map_err(fault)?;
    let Some(slave) = id else {
        return Ok(None);
    };
    let sql = "SELECT stream, first, last, gap IS NOT NULL, body FROM entries ORDER BY id";
    let rows = connection.prepare(sql).and_then(|mut statement| {
        statement
            .query_map([], entry)?
            .collect::<Result<Vec<_>, _>>()
    });
    let entries = rows.map_err(fault)?.into_iter().map(|entry| {
        entry.map_err(|source| ReadError::Content {
            what: "a report".to_owned(),
            path: path.to_owned(),
            source,
        })
    });
    Ok(Some(Held {
        slave,
        entries: entries.collect::<Result<_, _>>()?,
    }))
}

/// A database for reading; none if it is not there or has no such table yet.
///
/// # Errors
/// [`ReadError::Sqlite`]
pub(super) fn open(path: &Path, table: &str) -> Result<Option<Connection>, ReadError> {
    if !path.exists() {
        return Ok(None);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let look = || {
        let connection = Connection::open_with_flags(path, flags)?;
        let sql = "SELECT count(*) > 0 FROM sqlite_schema WHERE name = ?1";
        let is_there: bool = connection.query_row(sql, [table], |row| row.get(0))?;
        Ok(is_there.then_some(connection))
    };
    look().map_err(|source| ReadError::Sqlite {
        path: path.to_owned(),
        source,
    })
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Result<Spooled, prost::DecodeError>> {
    let stream = row.get::<_, i64>(0)?.cast_unsigned();
    let first = row.get::<_, i64>(1)?.cast_unsigned();
    let last = row.get::<_, i64>(2)?.cast_unsigned();
    if row.get(3)? {
        return Ok(Ok(Spooled::Gap {
            stream,
            first,
            last,
        }));
    }
    let body: Vec<u8> = row.get(4)?;
    // A report's bytes end with a CRC-32 of those before it.
    let bytes = body.len().saturating_sub(CHECKSUM_BYTES);
    let report = Report::decode(&body[..bytes]).map(|report| {
        Spooled::Report(Box::new(Report {
            stream,
            sequence: last,
            ..report
        }))
    });
    Ok(report)
}

/// At the end of a spooled report.
const CHECKSUM_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slave_that_was_killed_early_has_no_spool_yet() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("spool.db");
        assert_eq!(read(&path).unwrap(), None);
        Connection::open(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn reports_and_gaps_come_in_order_under_their_places() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("spool.db");
        let writer = Connection::open(&path).unwrap();
        let report = Report {
            time_ms: 5,
            ..Report::default()
        };
        writer
            .execute_batch(
                "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB);
                 CREATE TABLE entries (id INTEGER PRIMARY KEY, stream, first, last, gap, body);
                 INSERT INTO meta VALUES ('slave_id', x'09090909090909090909090909090909');
                 INSERT INTO entries VALUES (1, -2, 1, 3, 1, x'');",
            )
            .unwrap();
        let insert = "INSERT INTO entries VALUES (2, -2, 4, 4, NULL, ?1)";
        let mut body = report.encode_to_vec();
        body.extend([7; CHECKSUM_BYTES]);
        writer.execute(insert, [body]).unwrap();
        let held = read(&path).unwrap().unwrap();
        assert_eq!(held.slave, [9; 16]);
        let gap = Spooled::Gap {
            stream: u64::MAX - 1,
            first: 1,
            last: 3,
        };
        let report = Report {
            stream: u64::MAX - 1,
            sequence: 4,
            ..report
        };
        assert_eq!(held.entries, [gap, Spooled::Report(report.into())]);
    }
}
