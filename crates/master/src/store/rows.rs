//! The rows of the roll's tables, read with their checksums verified.

use rusqlite::{Connection, Row, params};

use super::checksum::{self, Checksum, SlaveColumns};
use super::schema::SCHEMA_VERSION;

/// The one row of the table `state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) master_id: [u8; 16],
    pub(super) listening_at_ms: Option<i64>,
    pub(super) next_group: i64,
    pub(super) next_event: i64,
    /// Whether a writer has it open, or did not end in order.
    pub(super) is_open: bool,
}

impl State {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let (state, stored): (Self, i64) = connection
            .prepare_cached(
                "SELECT master_id, listening_at_ms, next_group, next_event, is_open, checksum FROM state",
            )?
            .query_row([], |row| Ok((Self::of(row)?, row.get("checksum")?)))?;
        checksum::verify("the row of state", 1, stored, state.checksum())?;
        Ok(state)
    }

    /// What a row says, whether it is signed or not.
    pub(super) fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            master_id: row.get("master_id")?,
            listening_at_ms: row.get("listening_at_ms")?,
            next_group: row.get("next_group")?,
            next_event: row.get("next_event")?,
            is_open: row.get("is_open")?,
        })
    }

    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached(
                "UPDATE state SET master_id = ?1, listening_at_ms = ?2, next_group = ?3, next_event = ?4, is_open = ?5, checksum = ?6",
            )?
            .execute(params![
                self.master_id,
                self.listening_at_ms,
                self.next_group,
                self.next_event,
                self.is_open,
                self.checksum()
            ])?;
        Ok(())
    }

    /// It covers the layout's version, too, which stands elsewhere in the file.
    fn checksum(&self) -> i64 {
        Checksum::default()
            .number(SCHEMA_VERSION)
            .bytes(&self.master_id)
            .optional(self.listening_at_ms, Checksum::number)
            .number(self.next_group)
            .number(self.next_event)
            .number(self.is_open.into())
            .finish()
    }
}

/// A row of `slaves`.
#[derive(Debug)]
pub(super) struct SlaveRow {
    pub(super) key: i64,
    pub(super) id: [u8; 16],
    pub(super) name: String,
    pub(super) presence: String,
    pub(super) health: Option<String>,
    pub(super) last_seen_ms: Option<i64>,
    pub(super) record: Vec<u8>,
}

impl SlaveRow {
    pub(super) const SELECT: &str = "SELECT rowid AS key, id, name, presence, health, last_seen_ms, record, checksum FROM slaves NOT INDEXED";

    pub(super) fn columns(&self) -> SlaveColumns<'_> {
        SlaveColumns {
            id: &self.id,
            name: &self.name,
            presence: &self.presence,
            health: self.health.as_deref(),
            last_seen_ms: self.last_seen_ms,
            record: &self.record,
        }
    }

    /// What a row of any version says.
    pub(super) fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            key: row.get("key")?,
            id: row.get("id")?,
            name: row.get("name")?,
            presence: row.get("presence")?,
            health: row.get("health")?,
            last_seen_ms: row.get("last_seen_ms")?,
            record: row.get("record")?,
        })
    }

    pub(super) fn verified(row: &Row<'_>) -> rusqlite::Result<Self> {
        let slave = Self::of(row)?;
        let stored = row.get("checksum")?;
        checksum::verify(
            "the row of slaves",
            slave.key,
            stored,
            slave.columns().checksum(),
        )?;
        Ok(slave)
    }
}

/// A row of `redo`.
#[derive(Debug)]
pub(super) struct RedoRow {
    pub(super) key: i64,
    pub(super) reports: Vec<u8>,
}

impl RedoRow {
    pub(super) const SELECT: &str = "SELECT group_id AS key, reports, checksum FROM redo";

    pub(super) fn verified(row: &Row<'_>) -> rusqlite::Result<Self> {
        let redo = Self {
            key: row.get("key")?,
            reports: row.get("reports")?,
        };
        let stored = row.get("checksum")?;
        let right = checksum::of_redo(redo.key, &redo.reports);
        checksum::verify("the redo of group", redo.key, stored, right)?;
        Ok(redo)
    }
}
