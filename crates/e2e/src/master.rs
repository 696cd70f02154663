//! A master with ports, state and configuration of its own, over any number of starts.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;

use rollcall_protocol::api::SlaveRow;

use crate::api::Api;
use crate::binaries;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::ports::Reservation;
use crate::supervisor::Supervisor;
use crate::wait::{PATIENCE, poll_until, wait_until};

/// A master. Dropping it kills it.
#[derive(Debug)]
pub struct Master {
    /// What differs from the defaults; read at each start.
    pub config: Config,
    name: String,
    folder: PathBuf,
    slaves: Reservation,
    http: Reservation,
    /// Of another build, if it is not the one under test.
    programs: Option<PathBuf>,
    daemon: Option<Daemon>,
}

impl Master {
    /// A master that does not run yet and keeps its files in `folder` under `name`.
    pub fn new(folder: &Path, name: &str) -> Self {
        let (slaves, http) = (Reservation::new(), Reservation::new());
        let mut config = Config::default();
        let state = folder.join(format!("{name}-state"));
        config
            .set("listen.addresses", vec![slaves.address().to_string()])
            .set("http.address", http.address().to_string())
            .set("state.directory", state.to_string_lossy().into_owned());
        Self {
            config,
            name: name.to_owned(),
            folder: folder.to_owned(),
            slaves,
            http,
            programs: None,
            daemon: None,
        }
    }

    /// The same, running on the defaults.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn started(folder: &Path) -> Self {
        let mut master = Self::new(folder, "master");
        master.start();
        master
    }

    /// Has the next start take the program of another build, that in `folder`, or with `None` again the
    /// one under test.
    pub fn use_programs(&mut self, folder: Option<&Path>) {
        self.programs = folder.map(Path::to_owned);
    }

    fn program(&self) -> PathBuf {
        binaries::path_in(self.programs.as_deref(), binaries::MASTER)
    }

    /// Where slaves connect.
    pub fn address(&self) -> SocketAddr {
        self.slaves.address()
    }

    /// Its HTTP side.
    pub fn api(&self) -> Api {
        Api::new(self.http.address())
    }

    /// Its configuration file; written at each start.
    pub fn config_file(&self) -> PathBuf {
        self.folder.join(format!("{}.toml", self.name))
    }

    /// Starts it and returns at once. What ran before is waited for, and must have been ended.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn spawn(&mut self) {
        let command = Command::new(self.program());
        self.spawn_by(command);
    }

    /// The same under a `supervisor`, which holds descriptors for it. What ran before is waited for
    /// first, as a service manager does.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn spawn_under(&mut self, supervisor: &Supervisor) {
        drop(self.daemon.take());
        self.spawn_by(supervisor.command(&self.program()));
    }

    /// The same with a keeper, which starts the master; what is running here is the keeper then, and the
    /// log is that of both.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn spawn_kept(&mut self) {
        let mut command = Command::new(self.program());
        command.arg("--keeper");
        self.spawn_by(command);
    }

    /// The same with a program of the test's own choice.
    ///
    /// # Panics
    /// If it can't be started.
    #[track_caller]
    pub fn spawn_command(&mut self, command: Command) {
        self.spawn_by(command);
    }

    fn spawn_by(&mut self, mut command: Command) {
        let before = self.daemon.take();
        self.config.write(&self.config_file());
        command
            .arg("--config")
            .arg(self.config_file())
            .args(["--log-format", "json"]);
        self.daemon = Some(Daemon::spawn_command(&self.name, command, &self.folder));
        // Only now: the successor comes while the old process may still be dying.
        drop(before);
    }

    /// Starts it and waits until slaves and readers are welcome.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        self.wait_until_ready();
    }

    /// Waits until slaves and readers are welcome.
    ///
    /// # Panics
    /// If it ends instead, or hangs.
    #[track_caller]
    pub fn wait_until_ready(&mut self) {
        self.wait_for_event("master_ready");
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

    /// Waits until a slave has a row on the roll that `is_as_wanted`, and returns it.
    ///
    /// # Panics
    /// If it does not come, with the last row that was seen.
    #[track_caller]
    pub fn wait_for_row(
        &self,
        slave: &str,
        what: &str,
        is_as_wanted: impl Fn(&SlaveRow) -> bool,
    ) -> SlaveRow {
        let api = self.api();
        let mut last = None;
        let found = poll_until(PATIENCE, || {
            let row = api.slave(slave).map(|detail| detail.row);
            let found = row.as_ref().ok().filter(|row| is_as_wanted(row)).cloned();
            last = Some(row);
            found
        });
        match found {
            Some(row) => row,
            None => panic!("waited {PATIENCE:?} for {slave} to be {what}; it is {last:#?}"),
        }
    }

    /// Waits until these are the new states of a slave's presence, oldest first. That a slave has left
    /// is told an interval after its goodbye.
    ///
    /// # Panics
    /// If they are not, with those that were seen last.
    #[track_caller]
    pub fn wait_for_presences(&self, slave: &str, presences: &[&str]) {
        let api = self.api();
        let mut last = None;
        let found = poll_until(PATIENCE, || {
            last = Some(api.presences(slave));
            let seen = last.as_ref()?.as_ref().ok()?;
            (seen == presences).then_some(())
        });
        assert!(
            found.is_some(),
            "waited {PATIENCE:?} for {slave} to have been {presences:?}; it was {last:?}"
        );
    }

    /// Waits until `/readyz` has this status, and returns the reason that it gives.
    ///
    /// # Panics
    /// If it does not get it.
    #[track_caller]
    pub fn wait_for_readiness(&self, status: u16) -> Option<String> {
        let api = self.api();
        wait_until(PATIENCE, &format!("/readyz to answer {status}"), || {
            let (found, body) = api.ready().ok()?;
            (found == status).then_some(body.reason)
        })
    }
}

impl Deref for Master {
    type Target = Daemon;

    /// The running process.
    ///
    /// # Panics
    /// If it was never started.
    fn deref(&self) -> &Daemon {
        match &self.daemon {
            Some(daemon) => daemon,
            None => panic!("the {} was not started", self.name),
        }
    }
}

impl DerefMut for Master {
    fn deref_mut(&mut self) -> &mut Daemon {
        match &mut self.daemon {
            Some(daemon) => daemon,
            None => panic!("the {} was not started", self.name),
        }
    }
}
