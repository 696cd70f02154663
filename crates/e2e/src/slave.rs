//! A slave with state and configuration of its own, over any number of starts.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use toml::{Table, Value};

use crate::binaries;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::wait::{PATIENCE, wait_until};

/// A slave. Dropping it kills it.
#[derive(Debug)]
pub struct Slave {
    /// What differs from the defaults; read at each start.
    pub config: Config,
    name: String,
    folder: PathBuf,
    /// Of another build, if it is not the one under test.
    programs: Option<PathBuf>,
    daemon: Option<Daemon>,
}

impl Slave {
    /// A slave called `name` that does not run yet, keeps its files in `folder`, and reports to
    /// `masters` every `interval`. It comes back quickly after a failure.
    pub fn new(folder: &Path, name: &str, masters: &[SocketAddr], interval: &str) -> Self {
        let masters: Vec<_> = masters.iter().map(ToString::to_string).collect();
        let state = folder.join(format!("{name}-state"));
        let mut config = Config::default();
        config
            .set("name", name)
            .set("interval", interval)
            .set("connection.masters", masters)
            .set("connection.retry_longest", "1s")
            .set("state.directory", state.to_string_lossy().into_owned());
        // What this host is busy with is no business of the tests.
        for probe in ["load", "cpu", "memory", "swap", "processes", "disk"] {
            for threshold in ["warning", "critical"] {
                config.set(&format!("probe.{probe}.{threshold}"), "off");
            }
        }
        for threshold in ["inodes_warning", "inodes_critical"] {
            config.set(&format!("probe.disk.{threshold}"), "off");
        }
        Self {
            config,
            name: name.to_owned(),
            folder: folder.to_owned(),
            programs: None,
            daemon: None,
        }
    }

    /// Adds a check plugin that is started every `interval`.
    pub fn add_check(&mut self, name: &str, command: &[&str], interval: &str) {
        let mut check = Table::new();
        let command: Vec<_> = command.iter().map(|word| Value::from(*word)).collect();
        check.insert("name".to_owned(), name.into());
        check.insert("command".to_owned(), command.into());
        check.insert("interval".to_owned(), interval.into());
        self.config.push("check", check);
    }

    /// Has the next start take the program of another build, that in `folder`, or with `None` again the
    /// one under test.
    pub fn use_programs(&mut self, folder: Option<&Path>) {
        self.programs = folder.map(Path::to_owned);
    }

    /// Its name on the roll.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its configuration file; written at each start.
    pub fn config_file(&self) -> PathBuf {
        self.folder.join(format!("{}.toml", self.name))
    }

    /// Starts it. What ran before is waited for, and must have been ended.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn start(&mut self) {
        drop(self.daemon.take());
        let path = self.config_file();
        self.config.write(&path);
        let arguments = [
            "--config".as_ref(),
            path.as_os_str(),
            "--log-format".as_ref(),
            "json".as_ref(),
        ];
        let program = binaries::path_in(self.programs.as_deref(), binaries::SLAVE);
        self.daemon = Some(Daemon::spawn(&self.name, &program, arguments, &self.folder));
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.join(format!("{}-state", self.name))
    }

    /// How many entries are in its spool, as its file says it.
    ///
    /// # Errors
    /// If there is no spool yet, or it can't be read now.
    pub fn spooled(&self) -> rusqlite::Result<u32> {
        let path = self.state().join("spool.db");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(path, flags)?;
        database.query_row("SELECT count(*) FROM entries", [], |row| row.get(0))
    }

    /// Waits until its spool has this many entries.
    ///
    /// # Panics
    /// If it does not get them.
    #[track_caller]
    pub fn wait_for_spooled(&self, count: u32) {
        let what = format!("{count} reports in the spool of {}", self.name);
        wait_until(PATIENCE, &what, || {
            (self.spooled().ok()? >= count).then_some(())
        });
    }

    /// kill -9, and waits for the end.
    ///
    /// # Panics
    /// If it does not run.
    #[track_caller]
    pub fn kill_and_wait(&mut self) {
        self.kill();
        self.wait(PATIENCE);
    }
}

impl Deref for Slave {
    type Target = Daemon;

    /// The running process.
    ///
    /// # Panics
    /// If it was never started.
    fn deref(&self) -> &Daemon {
        match &self.daemon {
            Some(daemon) => daemon,
            None => panic!("the slave {} was not started", self.name),
        }
    }
}

impl DerefMut for Slave {
    fn deref_mut(&mut self) -> &mut Daemon {
        match &mut self.daemon {
            Some(daemon) => daemon,
            None => panic!("the slave {} was not started", self.name),
        }
    }
}
