//! The daemons of a drill: one master and some slaves, ended and started again and again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rollcall_protocol::api::Mode;

use super::args::{DrillArgs, DrillMode};
use super::configs::{self, SlaveConfig};
use super::relay::Relay;
use super::witness::Blow;
use crate::client::url::MasterUrl;
use crate::client::{Client, Patience};
use crate::daemons::{Daemon, Log, Programs, Reservation, Role, STOP_MAX};

/// The master is near and the roll short.
const LOOPBACK: Patience = Patience {
    answer: Duration::from_secs(2),
    ..Patience::USUAL
};
/// More faults than this tell nothing new, in number of lines for people.
const FAULTS_MAX: usize = 20;

/// See the module's documentation. Dropping it ends all at once.
#[derive(Debug)]
pub(super) struct Fleet {
    programs: Programs,
    pub(super) slaves: Vec<Seat>,
    pub(super) master: Seat,
    pub(super) client: Client,
    pub(super) relay: Relay,
    /// What went wrong that the drill did not do.
    pub(super) faults: Vec<String>,
    _ports: [Reservation; 2],
}

/// A daemon's place: it stays, whoever runs in it.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) name: String,
    role: Role,
    folder: PathBuf,
    daemon: Option<Daemon>,
    /// How often it was killed, and restarted as planned.
    pub(super) killed: u64,
    pub(super) planned: u64,
}

impl Fleet {
    /// Writes the configurations into `folder`. Nothing runs yet.
    ///
    /// # Errors
    /// Those of the system, and programs that are not there.
    pub(super) fn new(args: &DrillArgs, folder: &Path) -> anyhow::Result<Self> {
        let programs = Programs::find()?;
        let ports = [Reservation::new()?, Reservation::new()?];
        let [slaves, http] = [ports[0].address(), ports[1].address()];
        let relay = Relay::start(slaves).context("can't start the relay")?;
        let master = Seat::new(folder, "master", Role::Master)?;
        configs::master(
            &master.config(),
            slaves,
            http,
            &master.state(),
            args.interval,
        )?;
        let seats = (1..=args.slaves).map(|number| {
            let seat = Seat::new(folder, &format!("drill-{number:03}"), Role::Slave)?;
            let config = SlaveConfig {
                name: &seat.name,
                interval: args.interval,
                mode: mode(args.mode, number),
                master: relay.address(),
                state: &seat.state(),
                counter: &seat.folder.join("counter"),
            };
            configs::slave(&seat.config(), &config)?;
            Ok(seat)
        });
        Ok(Self {
            slaves: seats.collect::<anyhow::Result<_>>()?,
            master,
            client: Client::new(MasterUrl::from(http), LOOPBACK),
            relay,
            programs,
            faults: Vec::new(),
            _ports: ports,
        })
    }

    /// Starts whoever does not run.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn start_all(&mut self) -> anyhow::Result<()> {
        self.master.start(&self.programs)?;
        for slave in &mut self.slaves {
            slave.start(&self.programs)?;
        }
        Ok(())
    }

    /// Starts some slaves.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn start_slaves(&mut self, which: &[usize]) -> anyhow::Result<()> {
        for at in which {
            self.slaves[*at].start(&self.programs)?;
        }
        Ok(())
    }

    /// All of them.
    pub(super) fn all_slaves(&self) -> Vec<usize> {
        (0..self.slaves.len()).collect()
    }

    /// Notes who has ended without having been asked to. They stay down until they are started.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn look_for_deaths(&mut self) -> anyhow::Result<bool> {
        let mut any = false;
        for seat in self.slaves.iter_mut().chain([&mut self.master]) {
            let is_gone = seat.daemon.as_ref().map_or(Ok(false), Daemon::is_gone)?;
            if is_gone && let Some(mut daemon) = seat.daemon.take() {
                any = true;
                note(&mut self.faults, || {
                    format!("{} ended by itself: {}", seat.name, daemon.obituary())
                });
            }
        }
        Ok(any)
    }

    /// Ends the master, and waits until it has ended.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn end_master(&mut self, blow: Blow) -> anyhow::Result<()> {
        let faults = &mut self.faults;
        self.master.end(blow, |text| note(faults, || text))
    }

    /// Ends some slaves, all at once, and waits until they have ended.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn end_slaves(&mut self, blow: Blow, which: &[usize]) -> anyhow::Result<()> {
        for at in which {
            if let (Blow::Planned, Some(daemon)) = (blow, &self.slaves[*at].daemon) {
                daemon.ask_to_end()?;
            }
        }
        let faults = &mut self.faults;
        for at in which {
            self.slaves[*at].end(blow, |text| note(faults, || text))?;
        }
        Ok(())
    }

    /// Something that should not be.
    pub(super) fn fault(&mut self, text: String) {
        note(&mut self.faults, || text);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Usually all have ended by now. If not, there is no more to learn from them.
        for seat in self.slaves.iter_mut().chain([&mut self.master]) {
            if let Some(daemon) = &mut seat.daemon {
                drop(daemon.kill());
            }
        }
    }
}

fn note(faults: &mut Vec<String>, text: impl FnOnce() -> String) {
    if faults.len() < FAULTS_MAX {
        faults.push(text());
    }
}

impl Seat {
    fn new(folder: &Path, name: &str, role: Role) -> anyhow::Result<Self> {
        let folder = folder.join(name);
        fs::create_dir(&folder)
            .with_context(|| format!("can't make the folder {}", folder.display()))?;
        Ok(Self {
            name: name.to_owned(),
            role,
            folder,
            daemon: None,
            killed: 0,
            planned: 0,
        })
    }

    fn config(&self) -> PathBuf {
        self.folder.join(format!("{}.toml", self.role.word()))
    }

    fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The database that it keeps.
    pub(super) fn database(&self) -> PathBuf {
        self.state().join(match self.role {
            Role::Master => "master.db",
            Role::Slave => "spool.db",
        })
    }

    fn start(&mut self, programs: &Programs) -> anyhow::Result<()> {
        if self.daemon.is_none() {
            self.daemon = Some(Daemon::start(
                self.role,
                programs.path(self.role),
                &self.config(),
                &self.folder.join("log"),
                Log::Continued,
            )?);
        }
        Ok(())
    }

    fn end(&mut self, blow: Blow, fault: impl FnOnce(String)) -> anyhow::Result<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        let ended =
            |result: io::Result<()>| result.with_context(|| format!("can't end {}", self.name));
        match blow {
            Blow::Killed => {
                ended(daemon.kill())?;
                self.killed += 1;
            }
            Blow::Planned => {
                let ending = daemon.stop(STOP_MAX);
                self.planned += 1;
                match ending {
                    Ok(ending) if ending.is_clean() => {}
                    Ok(_) => fault(format!(
                        "{} did not end well when asked to: {}",
                        self.name,
                        daemon.obituary()
                    )),
                    Err(error) => ended(Err(error))?,
                }
            }
        }
        Ok(())
    }
}

fn mode(mode: DrillMode, number: u16) -> Mode {
    match mode {
        DrillMode::Pooled => Mode::Pooled,
        DrillMode::PerMessage => Mode::PerMessage,
        DrillMode::Mixed if number.is_multiple_of(2) => Mode::PerMessage,
        DrillMode::Mixed => Mode::Pooled,
    }
}
