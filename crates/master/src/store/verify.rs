//! `--verify-store`: reads every page and every row, and says what is there and what is wrong with it.
//!
//! Nothing is written, and a master may be running: all is read as of one moment.

use std::fmt;
use std::path::{Path, PathBuf};

use rollcall_os::units::Bytes;
use rusqlite::{Connection, Row, TransactionBehavior};

use super::events;
use super::files;
use super::load;
use super::rows::{RedoRow, SlaveRow, State};
use super::schema::{self, SCHEMA_VERSION};
use super::{Store, StoreError};

/// Faults that are told one by one; further ones are counted.
const FAULTS_TOLD_MAX: usize = 50;

/// How the owner of the roll reads what it has stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inspect {
    /// The group of a record, or why it can't be read.
    pub(crate) record: fn(&[u8]) -> Result<u64, String>,
    /// The number of inputs in a group's redo, or why it can't be read.
    pub(crate) redo: fn(&[u8]) -> Result<usize, String>,
}

/// What is in a store, and what is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    path: PathBuf,
    bytes: u64,
    log_bytes: u64,
    version: i64,
    state: Option<State>,
    slaves: usize,
    redo_groups: usize,
    redo_inputs: usize,
    events: usize,
    set_aside: usize,
    faults: Vec<String>,
    faults_untold: usize,
}

impl Verdict {
    /// Whether everything could be read and fits.
    pub(crate) fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }

    fn fault(&mut self, what: impl fmt::Display) {
        if self.faults.len() < FAULTS_TOLD_MAX {
            self.faults.push(what.to_string());
        } else {
            self.faults_untold += 1;
        }
    }

    /// Reads all rows of a query; those that can't be read are faults.
    fn rows<T>(
        &mut self,
        connection: &Connection,
        query: &str,
        of: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        let mut statement = match connection.prepare(query) {
            Ok(statement) => statement,
            Err(error) => return self.fault(error),
        };
        let mut rows = statement.raw_query();
        loop {
            match rows.next() {
                Ok(Some(row)) => match of(row) {
                    Ok(row) => each(self, row),
                    Err(error) => self.fault(error),
                },
                Ok(None) => return,
                Err(error) => return self.fault(error),
            }
        }
    }

    fn read(&mut self, connection: &Connection, inspect: Inspect) {
        self.rows(
            connection,
            "PRAGMA integrity_check",
            |row| row.get(0),
            |verdict, line: String| {
                if line != "ok" {
                    verdict.fault(line);
                }
            },
        );
        match State::read(connection) {
            Ok(state) => self.state = Some(state),
            Err(error) => self.fault(error),
        }
        let (next_group, next_event) = self.next();
        self.rows(
            connection,
            SlaveRow::SELECT,
            SlaveRow::verified,
            |verdict, row| {
                verdict.slaves += 1;
                match (inspect.record)(&row.record) {
                    Ok(group) if group < next_group => {}
                    Ok(group) => verdict.fault(format!(
                        "the record of {:?} is of group {group}, and the next one is {next_group}",
                        row.name
                    )),
                    Err(error) => {
                        verdict.fault(format!("the record of {:?}: {error}", row.name));
                    }
                }
            },
        );
        self.rows(
            connection,
            RedoRow::SELECT,
            RedoRow::verified,
            |verdict, row| {
                verdict.redo_groups += 1;
                if u64::try_from(row.key).is_ok_and(|group| group >= next_group) {
                    verdict.fault(format!(
                        "redo of group {} is there, and the next one is {next_group}",
                        row.key
                    ));
                }
                match (inspect.redo)(&row.reports) {
                    Ok(inputs) => verdict.redo_inputs += inputs,
                    Err(error) => verdict.fault(format!("the redo of group {}: {error}", row.key)),
                }
            },
        );
        self.rows(
            connection,
            "SELECT * FROM events NOT INDEXED",
            events::verified,
            |verdict, event| {
                verdict.events += 1;
                if event.id >= next_event {
                    verdict.fault(format!(
                        "event {} is there, and the next one is {next_event}",
                        event.id
                    ));
                }
            },
        );
    }

    /// The numbers of the next group and the next event; beyond all if they are not known.
    fn next(&self) -> (u64, i64) {
        let Some(state) = &self.state else {
            return (u64::MAX, i64::MAX);
        };
        (
            u64::try_from(state.next_group).unwrap_or(0),
            state.next_event,
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        writeln!(
            f,
            "  size       {}, and {} in its log",
            Bytes::new(self.bytes),
            Bytes::new(self.log_bytes)
        )?;
        writeln!(f, "  version    {}", self.version)?;
        if let Some(state) = &self.state {
            writeln!(
                f,
                "  next       group {}, event {}",
                state.next_group, state.next_event
            )?;
        }
        if self.version == SCHEMA_VERSION {
            writeln!(f, "  slaves     {}", self.slaves)?;
            writeln!(
                f,
                "  redo       {} groups with {} inputs",
                self.redo_groups, self.redo_inputs
            )?;
            writeln!(f, "  events     {}", self.events)?;
        } else {
            writeln!(
                f,
                "  rows       not looked at: the next start brings them to version {SCHEMA_VERSION}"
            )?;
        }
        if self.set_aside > 0 {
            writeln!(
                f,
                "  set aside  {} damaged databases lie beside it",
                self.set_aside
            )?;
        }
        if self.is_sound() {
            return writeln!(f, "verdict: sound");
        }
        writeln!(
            f,
            "verdict: DAMAGED, {} faults",
            self.faults.len() + self.faults_untold
        )?;
        for fault in &self.faults {
            writeln!(f, "  - {}", fault.replace('\n', "\n    "))?;
        }
        if self.faults_untold > 0 {
            writeln!(f, "  - and {} more", self.faults_untold)?;
        }
        writeln!(
            f,
            "remedy: `touch {}{}`, then restart the master: it sets the database aside, whole, and goes on with what can be read",
            self.path.display(),
            files::SUSPECT_SUFFIX
        )
    }
}

/// Verifies the store of a state directory.
///
/// # Errors
/// If there is none, if it can't be opened, or if it is of another program or a newer build. What is
/// wrong inside is in the verdict.
pub(crate) fn verify(directory: &Path, inspect: Inspect) -> Result<Verdict, StoreError> {
    schema::assert_sqlite()?;
    let path = Store::database(directory);
    let Some(bytes) = files::length(&path) else {
        return Err(StoreError::Missing { path });
    };
    let mut verdict = Verdict {
        bytes,
        log_bytes: files::log_length(&path),
        set_aside: files::set_aside_files(&path),
        ..Verdict::default()
    };
    match look(&path, inspect, &mut verdict) {
        Err(StoreError::Sqlite { source, .. }) if !super::fault::is_environment(&source) => {
            verdict.fault(source);
        }
        Err(error) => return Err(error),
        Ok(()) => {}
    }
    verdict.path = path;
    Ok(verdict)
}

fn look(path: &Path, inspect: Inspect, verdict: &mut Verdict) -> Result<(), StoreError> {
    let fault = |source| StoreError::Sqlite {
        what: "read",
        path: path.to_owned(),
        source,
    };
    files::refuse_disguised(path)?;
    let mut connection = schema::open_read_only(path).map_err(fault)?;
    let moment = connection
        .transaction_with_behavior(TransactionBehavior::Deferred)
        .map_err(fault)?;
    verdict.version = schema::version(&moment, path)?;
    if verdict.version == SCHEMA_VERSION {
        verdict.read(&moment, inspect);
    } else {
        let checked = load::check(&moment, "");
        checked.map_err(fault)?;
    }
    Ok(())
}
