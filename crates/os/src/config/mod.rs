//! Configuration files: a compiled-in document of defaults, overlaid by the operator's file.
//!
//! The documents under `config/` list every key with its default, are compiled into the daemons,
//! and *are* the defaults: the raw structs have none of their own. [`load`] takes the document as a
//! tree, lays the operator's file over it key by key, and reads the raw struct from that.
//!
//! All faults of a file are told at once. serde stops at the first, so a faulty key is noted, taken
//! out of the tree (its default comes back), and the struct is read again, until it can be read.
//! Then come the range checks of garde, and then those of the caller, who makes the resolved
//! configuration in [`load_with`]. Every value of the tree knows where in the file it stands.

mod document;
mod fault;
mod path;
mod read;
mod wording;

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use garde::Validate;
use serde::Serialize;
use serde::de::DeserializeOwned;

use document::Document;
pub use fault::{Fault, Faults, Position, Reported};

use crate::exit::{Exit, ExitError};

/// Why a configuration could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read at all.
    #[error("cannot read the configuration file {}: {source}; {}", path.display(), remedy(source))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file was read and has faults: all of them, in the order of the file, one a line.
    #[error("{}", fault::list(.0))]
    Faulty(Vec<Fault>),
    /// The compiled-in defaults do not fit the program: a bug, found by any run.
    #[error("the built-in defaults are faulty (a bug): {0}")]
    Defaults(String),
}

impl ConfigError {
    /// The faults of the file; none where it could not be read.
    pub fn faults(&self) -> &[Fault] {
        match self {
            Self::Faulty(faults) => faults,
            Self::Unreadable { .. } | Self::Defaults(_) => &[],
        }
    }
}

impl From<ConfigError> for ExitError {
    fn from(error: ConfigError) -> Self {
        let exit = match error {
            ConfigError::Unreadable { .. } | ConfigError::Faulty(_) => Exit::Config,
            ConfigError::Defaults(_) => Exit::Internal,
        };
        Self::new(exit, error)
    }
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            "give --config an existing file, or leave it out to run on the defaults"
        }
        io::ErrorKind::PermissionDenied => {
            "let the user that the daemon runs as read it, and enter all folders above it"
        }
        io::ErrorKind::IsADirectory => "give --config a file, not a folder",
        _ => "give --config a readable file",
    }
}

/// Reads the raw struct from `defaults` (a TOML document) with the file at `path` laid over it.
///
/// # Errors
/// When the file cannot be read or has faults.
pub fn load<R>(defaults: &str, path: Option<&Path>) -> Result<R, ConfigError>
where
    R: DeserializeOwned + Validate<Context = ()>,
{
    load_with(defaults, path, |raw, _| Ok(raw))
}

/// Like [`load`], and resolves the raw struct. `resolve` adds what it finds wrong to the faults,
/// by key path (`"check[2].name"`); it also runs when the file has faults of other kinds, on the
/// defaults in place of the faulty keys, so that everything is told at once.
///
/// # Errors
/// When the file cannot be read or has faults, `resolve`'s included.
pub fn load_with<R, C>(
    defaults: &str,
    path: Option<&Path>,
    resolve: impl FnOnce(R, &mut Faults<'_>) -> Result<C, Reported>,
) -> Result<C, ConfigError>
where
    R: DeserializeOwned + Validate<Context = ()>,
{
    let text = match path {
        Some(path) => read_file(path)?,
        None => String::new(),
    };
    let origin = path.map_or_else(
        || String::from("built-in defaults"),
        |path| path.display().to_string(),
    );
    let mut document = Document::parse(defaults, &text, &origin)?;
    let (raw, found) = read::read::<R>(&mut document)?;
    let mut faults = Faults::new(&document, found);
    if let Err(report) = raw.validate() {
        for (path, error) in report.iter() {
            faults.add(&path.to_string(), wording::range(error.message()));
        }
    }
    let resolved = resolve(raw, &mut faults);
    match (resolved, faults.into_sorted()) {
        (Ok(resolved), faults) if faults.is_empty() => Ok(resolved),
        (_, faults) => Err(ConfigError::Faulty(faults)),
    }
}

/// The file to load: the one that was asked for, else the usual one unless there is none. A usual one that
/// can't even be looked for is taken as well: to run on the defaults instead would be a surprise, and
/// [`load`] says why it can't be read.
pub fn choose_file<'a>(asked: Option<&'a Path>, usual: &'a Path) -> Option<&'a Path> {
    asked.or_else(|| usual.try_exists().unwrap_or(true).then_some(usual))
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let bytes = std::fs::read(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let readable = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes());
        ConfigError::Faulty(vec![Fault {
            origin: path.display().to_string(),
            position: Some(Position::of(&text, readable)),
            key: String::new(),
            message: String::from("the file is not UTF-8 from here on: save it as UTF-8"),
            excerpt: None,
        }])
    })
}

/// A range check for garde that tells both ends:
/// `#[garde(custom(within(Duration::from_secs(1), Duration::from_secs(3600))))]`.
pub fn within<T>(min: T, max: T) -> impl Fn(&T, &()) -> garde::Result
where
    T: PartialOrd + Display,
{
    move |value, ()| {
        if *value >= min && *value <= max {
            return Ok(());
        }
        Err(garde::Error::new(format!(
            "out of range: {value} is not within {min} to {max}"
        )))
    }
}

/// A configuration as a TOML document, as `--check` prints it.
///
/// # Errors
/// When the struct has something that TOML cannot express.
pub fn to_toml(config: &impl Serialize) -> Result<String, toml::ser::Error> {
    toml::to_string_pretty(config)
}

#[cfg(test)]
mod tests;
