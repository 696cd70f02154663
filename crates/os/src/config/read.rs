//! Reads the raw struct from a document, again and again until every fault is known.

use std::collections::{HashMap, HashSet};

use serde::de::DeserializeOwned;
use toml::de::{DeValue, ValueDeserializer};

use super::ConfigError;
use super::document::Document;
use super::fault::{FAULTS_MAX, Fault, sorted};
use super::path::{self, Shown, Step};
use super::wording;

/// Reads `R`. The faults come along; the keys to blame are taken out of the document, which hence
/// has its defaults there.
pub(super) fn read<R: DeserializeOwned>(
    document: &mut Document<'_>,
) -> Result<(R, Vec<Fault>), ConfigError> {
    let mut reading = Reading {
        document,
        faults: Vec::new(),
        reverted: HashSet::new(),
        stand_ins: HashMap::new(),
        doomed: HashSet::new(),
    };
    loop {
        let deserializer = ValueDeserializer::from(reading.document.merged().clone());
        match serde_path_to_error::deserialize::<_, R>(deserializer) {
            Ok(raw) if reading.doomed.is_empty() => return Ok((raw, reading.faults)),
            Ok(_) => reading.remove_doomed(),
            Err(error) => {
                let path = path::of_serde(error.path());
                reading.take(&path, error.inner().message())?;
                if reading.faults.len() >= FAULTS_MAX {
                    return Err(ConfigError::Faulty(sorted(reading.faults)));
                }
            }
        }
    }
}

/// A key of a table, which goes by its offset: unlike its path, that stays when others are taken
/// out of the document.
type KeyOf = (usize, String);

struct Reading<'d, 'a> {
    document: &'d mut Document<'a>,
    faults: Vec<Fault>,
    /// Keys that were set, but faulty: they are not missing as well.
    reverted: HashSet<KeyOf>,
    /// For each missing key which of the [`STAND_INS`] is in its place.
    stand_ins: HashMap<KeyOf, usize>,
    /// The offsets of the tables with a stand-in: without the key they mean nothing, and go as
    /// soon as all other faults are known.
    doomed: HashSet<usize>,
}

/// What is put in place of a missing key until one fits, so that the reading gets past it and
/// finds the other faults of the table.
const STAND_INS: [&str; 6] = [r#""""#, r#""1s""#, "1", "true", "[]", "{}"];

impl Reading<'_, '_> {
    /// Notes what serde could not read at `path`, and changes the document so that the next
    /// reading gets further.
    fn take(&mut self, path: &[Step], message: &str) -> Result<(), ConfigError> {
        if let Some((table, key)) = self.stand_in_on(path) {
            self.next_stand_in(&table, key);
            return Ok(());
        }
        let told = wording::of_serde(message);
        if !self.document.is_from_file(path) {
            return Err(ConfigError::Defaults(format!("{}: {told}", Shown(path))));
        }
        if let (Some(key), Some(table)) =
            (wording::missing_key(message), self.document.offset(path))
        {
            let key = (table, key.to_owned());
            if !self.reverted.contains(&key) {
                self.faults.push(self.document.value_fault(path, told));
            }
            self.doomed.insert(table);
            self.next_stand_in(path, key);
            return Ok(());
        }
        self.faults.push(if wording::is_unknown_key(message) {
            self.document.key_fault(path, told)
        } else {
            self.document.value_fault(path, told)
        });
        self.revert(path);
        Ok(())
    }

    /// The table and the key of the stand-in that `path` leads to or through.
    fn stand_in_on(&self, path: &[Step]) -> Option<(Vec<Step>, KeyOf)> {
        path.iter().enumerate().find_map(|(depth, step)| {
            let Step::Key(key) = step else { return None };
            let table = path.get(..depth)?;
            let key = (self.document.offset(table)?, key.clone());
            self.stand_ins
                .contains_key(&key)
                .then(|| (table.to_vec(), key))
        })
    }

    fn next_stand_in(&mut self, table: &[Step], key: KeyOf) {
        let next = self.stand_ins.get(&key).map_or(0, |current| current + 1);
        let value = STAND_INS.get(next).map(|text| DeValue::parse(text));
        if let Some(Ok(value)) = value {
            self.document.insert(table, &key.1, value.into_inner());
            self.stand_ins.insert(key, next);
        } else {
            self.doomed.remove(&key.0);
            self.revert(table);
        }
    }

    fn remove_doomed(&mut self) {
        for table in std::mem::take(&mut self.doomed) {
            if let Some(path) = self.document.path_to_table(table) {
                self.revert(&path);
            }
        }
    }

    fn revert(&mut self, path: &[Step]) {
        let Some(path) = self.document.revert(path) else {
            return;
        };
        if let Some((Step::Key(key), table)) = path.split_last()
            && let Some(table) = self.document.offset(table)
        {
            self.reverted.insert((table, key.clone()));
        }
    }
}
