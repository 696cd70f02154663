//! From one layout to the next, in one transaction.

use prost::Message;
use rollcall_protocol::wire;
use rusqlite::{Connection, params};

use super::database::SCHEMA;
use super::entries::{sign, unsigned};

/// By which a body has grown.
const CHECKSUM_BYTES: i64 = 4;

/// Takes the layout from the version found to [`SCHEMA`].
pub(super) fn migrate(connection: &Connection, found: i32) -> rusqlite::Result<()> {
    if found == SCHEMA {
        return Ok(());
    }
    let transaction = connection.unchecked_transaction()?;
    if !is_signed(&transaction)? {
        sign_all(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()?;
    tracing::info!(
        event = "spool_migrated",
        path = connection.path(),
        from = found,
        to = SCHEMA,
        "the spool has a new layout; what was in it is still to be sent"
    );
    Ok(())
}

/// Version 1 stands for two layouts: the later one has a checksum in the bodies of reports. One that is
/// right tells that it is the later one, in which a body without is a damaged one.
fn is_signed(connection: &Connection) -> rusqlite::Result<bool> {
    let mut read = connection.prepare("SELECT body FROM entries WHERE gap IS NULL")?;
    let mut rows = read.query([])?;
    while let Some(row) = rows.next()? {
        if unsigned(row.get_ref(0)?.as_blob()?).is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn sign_all(connection: &Connection) -> rusqlite::Result<()> {
    let mut list = connection.prepare("SELECT id FROM entries WHERE gap IS NULL")?;
    let mut read = connection.prepare("SELECT body FROM entries WHERE id = ?1")?;
    let mut write =
        connection.prepare("UPDATE entries SET size = size + ?2, body = ?3 WHERE id = ?1")?;
    let ids: Vec<i64> = list
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for id in ids {
        let body: Vec<u8> = read.query_row([id], |row| row.get(0))?;
        // What is no report stays as it is, and is found damaged when it is to be sent.
        if wire::Report::decode(&*body).is_ok() {
            write.execute(params![id, CHECKSUM_BYTES, sign(body)])?;
        }
    }
    Ok(())
}
