//! A configuration file, key by key.

use std::fs;
use std::path::Path;

use toml::{Table, Value};

/// What differs from the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config(Table);

impl Config {
    /// Sets a key by its path, for example `set("session.hello_timeout", "1s")`.
    ///
    /// # Panics
    /// If a part of the path is a value already.
    #[track_caller]
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        let (sections, last) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.0;
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            let entry = table.entry(section).or_insert_with(|| Table::new().into());
            let Value::Table(inner) = entry else {
                panic!("{key}: {section} is no section");
            };
            table = inner;
        }
        table.insert(last.to_owned(), value.into());
        self
    }

    /// Adds an entry to an array of tables, for example a `[[check]]`.
    ///
    /// # Panics
    /// If the key is something else already.
    #[track_caller]
    pub fn push(&mut self, key: &str, entry: Table) -> &mut Self {
        let list = self
            .0
            .entry(key)
            .or_insert_with(|| Value::Array(Vec::new()));
        let Value::Array(list) = list else {
            panic!("{key} is no array");
        };
        list.push(entry.into());
        self
    }

    /// Writes the file.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn write(&self, path: &Path) {
        if let Err(error) = fs::write(path, self.0.to_string()) {
            panic!("can't write {}: {error}", path.display());
        }
    }
}
