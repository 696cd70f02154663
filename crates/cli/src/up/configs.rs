//! The configuration files that `rollcall up` writes: the user's files, or none, with the
//! addresses and folders of this run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rollcall_os::units;
use toml::{Table, Value};

use super::args::{NewCheck, UpArgs};
use super::folder::Folder;
use crate::daemons::{Ports, Role};

/// How often the slave reports unless something else is said: often enough to watch it turn late.
const INTERVAL: units::Duration = units::Duration::from_secs(1);
/// What runs the command of a check.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A configuration can't be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigsError {
    /// The user's file can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The user's file is no TOML.
    #[error("{} is no TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The user's file has something else where a section or a list must be.
    #[error("{key} is no {expected} in the given configuration")]
    Shape {
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// The new file can't be written.
    #[error("can't write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The new file can't be put into words.
    #[error("can't write TOML")]
    Serialize(#[from] toml::ser::Error),
}

/// The slave's configuration.
#[derive(Debug)]
pub(super) struct SlaveConfig {
    /// The file.
    pub(super) path: PathBuf,
    /// How often it reports, as the file says it.
    pub(super) interval: String,
}

/// Writes the master's configuration.
pub(super) fn master(
    args: &UpArgs,
    folder: &Folder,
    ports: &Ports,
) -> Result<PathBuf, ConfigsError> {
    let mut config = base(args.master_config.as_deref())?;
    let slaves = Value::Array(vec![ports.slaves.to_string().into()]);
    section(&mut config, "listen")?.insert("addresses".to_owned(), slaves);
    section(&mut config, "http")?.insert("address".to_owned(), ports.http.to_string().into());
    common(&mut config, Role::Master, folder)?;
    write(
        &folder.config(Role::Master),
        &config,
        args.master_config.as_deref(),
    )
}

/// Writes the slave's configuration.
pub(super) fn slave(
    args: &UpArgs,
    folder: &Folder,
    ports: &Ports,
) -> Result<SlaveConfig, ConfigsError> {
    let mut config = base(args.slave_config.as_deref())?;
    let masters = Value::Array(vec![ports.slaves.to_string().into()]);
    section(&mut config, "connection")?.insert("masters".to_owned(), masters);
    if args.interval.is_some() || !config.contains_key("interval") {
        let interval = args.interval.unwrap_or(INTERVAL);
        config.insert("interval".to_owned(), interval.to_string().into());
    }
    let interval = match config.get("interval") {
        Some(Value::String(text)) => text.clone(),
        other => other.map(Value::to_string).unwrap_or_default(),
    };
    add_checks(&mut config, &args.check, &interval)?;
    common(&mut config, Role::Slave, folder)?;
    let path = write(
        &folder.config(Role::Slave),
        &config,
        args.slave_config.as_deref(),
    )?;
    Ok(SlaveConfig { path, interval })
}

fn common(config: &mut Table, role: Role, folder: &Folder) -> Result<(), ConfigsError> {
    let state = folder.state(role).to_string_lossy().into_owned();
    section(config, "state")?.insert("directory".to_owned(), state.into());
    section(config, "log")?.insert("format".to_owned(), "json".into());
    Ok(())
}

fn add_checks(config: &mut Table, checks: &[NewCheck], interval: &str) -> Result<(), ConfigsError> {
    if checks.is_empty() {
        return Ok(());
    }
    let list = config
        .entry("check")
        .or_insert_with(|| Value::Array(Vec::new()))
        .as_array_mut()
        .ok_or(ConfigsError::Shape {
            key: "check",
            expected: "list",
        })?;
    for check in checks {
        let command = SHELL.into_iter().chain([check.command.as_str()]);
        let mut entry = Table::new();
        entry.insert("name".to_owned(), check.name.clone().into());
        entry.insert(
            "command".to_owned(),
            command.map(Value::from).collect::<Vec<_>>().into(),
        );
        entry.insert("interval".to_owned(), interval.into());
        list.push(entry.into());
    }
    Ok(())
}

fn base(path: Option<&Path>) -> Result<Table, ConfigsError> {
    let Some(path) = path else {
        return Ok(Table::new());
    };
    let text = fs::read_to_string(path).map_err(|source| ConfigsError::Read {
        path: path.to_owned(),
        source,
    })?;
    text.parse().map_err(|source| ConfigsError::Syntax {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

fn section<'a>(config: &'a mut Table, key: &'static str) -> Result<&'a mut Table, ConfigsError> {
    config
        .entry(key)
        .or_insert_with(|| Table::new().into())
        .as_table_mut()
        .ok_or(ConfigsError::Shape {
            key,
            expected: "section",
        })
}

fn write(path: &Path, config: &Table, origin: Option<&Path>) -> Result<PathBuf, ConfigsError> {
    let origin = origin.map_or_else(String::new, |path| format!(" from {}", path.display()));
    let text = format!(
        "# Written by `rollcall up`{origin}, anew at each start: changes here are lost.\n\n{}",
        toml::to_string(config)?
    );
    fs::write(path, text).map_err(|source| ConfigsError::Write {
        path: path.to_owned(),
        source,
    })?;
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(words: &[&str]) -> UpArgs {
        match Cli::parse_from([&["rollcall", "up"], words].concat()).command {
            Command::Up(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn read(path: &Path) -> Table {
        fs::read_to_string(path).unwrap().parse().unwrap()
    }

    #[test]
    fn without_files_only_what_this_run_needs_is_written() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder::open(Some(scratch.path())).unwrap();
        let ports = Ports::pick(true).unwrap();
        let args = args(&["--check", "demo=exit 2"]);
        let master = read(&master(&args, &folder, &ports).unwrap());
        assert_eq!(
            master["listen"]["addresses"][0].as_str(),
            Some(&*ports.slaves.to_string())
        );
        assert_eq!(
            master["http"]["address"].as_str(),
            Some(&*ports.http.to_string())
        );
        let state = folder.state(Role::Master);
        assert_eq!(master["state"]["directory"].as_str(), state.to_str());
        assert_eq!(master.len(), 4);

        let config = slave(&args, &folder, &ports).unwrap();
        let slave = read(&config.path);
        assert_eq!(config.interval, "1s");
        assert_eq!(slave["interval"].as_str(), Some("1s"));
        assert_eq!(
            slave["connection"]["masters"][0].as_str(),
            Some(&*ports.slaves.to_string())
        );
        let command = slave["check"][0]["command"].as_array().unwrap();
        assert_eq!(command[2].as_str(), Some("exit 2"));
    }

    #[test]
    fn the_user_s_files_are_the_base() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder::open(Some(scratch.path())).unwrap();
        let ports = Ports::pick(true).unwrap();
        let own = scratch.path().join("own.toml");
        let text = "interval = \"5s\"\n[log]\nlevel = \"debug\"\nformat = \"pretty\"\n\
                    [connection]\nmode = \"per-message\"\nmasters = [\"10.0.0.1:1\"]\n\
                    [[check]]\nname = \"a\"\ncommand = [\"true\"]\n";
        fs::write(&own, text).unwrap();
        let own = own.to_str().unwrap();

        let kept = slave(
            &args(&["--slave-config", own, "--check", "b=true"]),
            &folder,
            &ports,
        );
        let kept = kept.unwrap();
        let config = read(&kept.path);
        assert_eq!(kept.interval, "5s");
        assert_eq!(config["log"]["level"].as_str(), Some("debug"));
        assert_eq!(config["log"]["format"].as_str(), Some("json"));
        assert_eq!(config["connection"]["mode"].as_str(), Some("per-message"));
        assert_ne!(
            config["connection"]["masters"][0].as_str(),
            Some("10.0.0.1:1")
        );
        assert_eq!(config["check"].as_array().map(Vec::len), Some(2));

        let faster = slave(
            &args(&["--slave-config", own, "--interval", "200ms"]),
            &folder,
            &ports,
        );
        assert_eq!(faster.unwrap().interval, "200ms");
    }

    #[test]
    fn a_bad_file_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder::open(Some(scratch.path())).unwrap();
        let ports = Ports::pick(true).unwrap();
        let own = scratch.path().join("own.toml");
        let error = |text: &str| {
            fs::write(&own, text).unwrap();
            let args = args(&["--master-config", own.to_str().unwrap()]);
            master(&args, &folder, &ports).unwrap_err().to_string()
        };
        assert!(error("interval =").contains("own.toml is no TOML"));
        assert_eq!(
            error("listen = 1"),
            "listen is no section in the given configuration"
        );
    }
}
