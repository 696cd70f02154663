//! `rollcall up`: a master and a slave of this build on loopback, for as long as this program runs.
//!
//! ```text
//!   main thread            owns both daemons: starts them, watches, prints, ends them
//!     <- signals           SIGINT, SIGTERM, SIGHUP
//!     <- one per daemon    its end (poll on its pidfd)
//!     <- roll, events      what the master says, once the slave is up
//! ```
//! Everything arrives on one channel, so there is one place that decides. The daemons can't
//! outlive this program: see [`crate::daemons`].

mod args;
mod configs;
mod folder;
mod screen;
mod watch;

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use anyhow::{Context, bail};
use rollcall_os::clock;
use rollcall_os::exit::Exit;
use rollcall_protocol::Moment;
use rollcall_protocol::api::{Presence, SlaveRow};

pub(crate) use self::args::{HELP, UpArgs};
use self::folder::Folder;
use self::screen::Screen;
use self::watch::Happening;
use crate::client::{Client, Patience};
use crate::daemons::{self, Daemon, Log, Ports, Programs, Role, STOP_MAX};
use crate::terminal::output::Output;

/// The time that both daemons together may take until the slave is on the roll.
const START_MAX: Duration = Duration::from_secs(30);
/// How often a starting daemon is asked.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// A signal must not wait long for an answer of a master that hangs.
const LOOPBACK: Patience = Patience {
    answer: Duration::from_secs(2),
    ..Patience::USUAL
};
/// Starts of the master that may fail because another process took the port in between.
const START_ATTEMPTS: u32 = 3;

/// Starts both daemons, shows the roll until a signal or the end of `--for`, and ends them.
pub(crate) fn run(args: &UpArgs, out: &mut Output) -> anyhow::Result<()> {
    let programs = Programs::find()?;
    let folder = Folder::open(args.dir.as_deref())?;
    let (tell, happenings) = mpsc::channel();
    let signals = tell.clone();
    daemons::on_stop_signal(move |name| signals.send(Happening::Stop(name)).is_ok())
        .context("can't listen to signals")?;
    let mut up = Up {
        args,
        programs,
        folder,
        tell,
        happenings,
        started: clock::boot(),
        started_ms: clock::wall_ms(),
        out,
    };
    up.run()
}

/// Why a wait was over.
#[derive(Debug, PartialEq, Eq)]
enum Waited {
    /// What was waited for is there.
    Ready,
    /// A signal came first.
    Stopped(&'static str),
    /// A daemon ended first.
    Ended(Role),
}

struct Up<'a> {
    args: &'a UpArgs,
    programs: Programs,
    folder: Folder,
    tell: Sender<Happening>,
    happenings: Receiver<Happening>,
    started: Moment,
    started_ms: i64,
    out: &'a mut Output,
}

/// The daemons that run. Fields are dropped in this order: the slave says goodbye to a master
/// that still listens.
struct Pair {
    slave: Option<Daemon>,
    master: Daemon,
}

impl Up<'_> {
    fn run(&mut self) -> anyhow::Result<()> {
        self.out
            .line(&format!("folder  {}", self.folder.path().display()))?;
        let Some((mut pair, ports)) = self.start_master()? else {
            return Ok(());
        };
        let result = self.with_master(&mut pair, ports);
        let stopped = self.stop(pair);
        result.and(stopped)
    }

    /// The master, answering; none if a signal came first.
    fn start_master(&mut self) -> anyhow::Result<Option<(Pair, Ports)>> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let ports = Ports::pick(self.args.free_ports)?;
            for note in ports.notes() {
                self.out.line(&format!("note    {note}"))?;
            }
            let config = configs::master(self.args, &self.folder, &ports)?;
            let mut pair = Pair {
                master: self.start(Role::Master, &config)?,
                slave: None,
            };
            self.out.line(&format!(
                "master  pid {}, slaves on {}, HTTP on {}",
                pair.master.pid(),
                ports.slaves,
                ports.url()
            ))?;
            let client = Client::new(ports.url(), LOOPBACK);
            // Any answer will do: one that can't store is told of when the slave is not acked.
            match self.wait_until(|| client.readiness().is_ok())? {
                Waited::Ready => return Ok(Some((pair, ports))),
                Waited::Stopped(signal) => {
                    self.out.line(&stop_notice(signal))?;
                    return self.stop(pair).map(|()| None);
                }
                Waited::Ended(_) => {
                    let status = pair.master.wait()?;
                    let is_port_lost = status.code() == Some(i32::from(Exit::Bind.code()));
                    if !is_port_lost || attempt == START_ATTEMPTS {
                        bail!(pair.master.obituary());
                    }
                    self.out
                        .line("note    another process took the port meanwhile; trying again")?;
                }
            }
        }
    }

    fn with_master(&mut self, pair: &mut Pair, ports: Ports) -> anyhow::Result<()> {
        let config = configs::slave(self.args, &self.folder, &ports)?;
        let slave = pair.slave.insert(self.start(Role::Slave, &config.path)?);
        self.out.line(&format!(
            "slave   pid {}, reports every {}",
            slave.pid(),
            config.interval
        ))?;
        let slave_pid = slave.pid();
        let client = Arc::new(Client::new(ports.url(), LOOPBACK));
        let started_ms = self.started_ms;
        let is_up = || {
            client.readiness().is_ok_and(|readiness| readiness.ready)
                && client
                    .slaves()
                    .is_ok_and(|roll| roll.slaves.iter().any(|row| is_up_since(row, started_ms)))
        };
        match self.wait_until(is_up)? {
            Waited::Ready => {}
            Waited::Stopped(signal) => return Ok(self.out.line(&stop_notice(signal))?),
            Waited::Ended(role) => bail!(pair.get(role).obituary()),
        }
        let took = clock::boot().saturating_since(self.started);
        self.out.line(&format!("up in {} ms", took.as_millis()))?;
        self.out.line(&advice(slave_pid, ports))?;
        self.show(pair, client)
    }

    /// Shows what happens until it is time to end.
    fn show(&mut self, pair: &mut Pair, client: Arc<Client>) -> anyhow::Result<()> {
        let mut screen = Screen::new(self.out.is_terminal());
        screen.roll(watch::look(&client), self.out)?;
        watch::roll(Arc::clone(&client), self.tell.clone())?;
        watch::events(client, self.started_ms, self.tell.clone())?;
        let end = self
            .args
            .duration
            .map(|length| clock::boot() + length.get());
        loop {
            match self.next(end)? {
                None => return Ok(self.out.line("time is over: ending both")?),
                Some(Happening::Stop(signal)) => return Ok(self.out.line(&stop_notice(signal))?),
                Some(Happening::Ended(role)) => bail!(pair.get(role).obituary()),
                Some(Happening::Roll(roll)) => screen.roll(roll, self.out)?,
                Some(Happening::Event(event)) => screen.event(*event, self.out)?,
                Some(Happening::Notice(text)) => screen.notice(&text, self.out)?,
            }
        }
    }

    /// The next happening; none at `end`.
    fn next(&self, end: Option<Moment>) -> anyhow::Result<Option<Happening>> {
        let Some(end) = end else {
            return Ok(Some(self.happenings.recv()?));
        };
        let left = end.saturating_since(clock::boot());
        match self.happenings.recv_timeout(left) {
            Ok(happening) => Ok(Some(happening)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(gone @ RecvTimeoutError::Disconnected) => Err(gone.into()),
        }
    }

    /// Asks until `is_there`, and takes notice of signals and of the end of a daemon meanwhile.
    fn wait_until(&mut self, is_there: impl Fn() -> bool) -> anyhow::Result<Waited> {
        let deadline = clock::boot() + START_MAX;
        while clock::boot() < deadline {
            match self.next(Some(clock::boot() + ASK_EVERY))? {
                Some(Happening::Stop(signal)) => return Ok(Waited::Stopped(signal)),
                Some(Happening::Ended(role)) => return Ok(Waited::Ended(role)),
                Some(_) => {}
                None if is_there() => return Ok(Waited::Ready),
                None => {}
            }
        }
        bail!(
            "not up after {} s; the logs say why:\n{}",
            START_MAX.as_secs(),
            [Role::Master, Role::Slave]
                .map(|role| daemons::tail(&self.folder.log(role)))
                .join("\n")
        )
    }

    fn start(&self, role: Role, config: &std::path::Path) -> anyhow::Result<Daemon> {
        let daemon = Daemon::start(
            role,
            self.programs.path(role),
            config,
            &self.folder.log(role),
            Log::Fresh,
        )?;
        let tell = self.tell.clone();
        // Nobody listens any more when this program ends.
        daemon.watch(move |role| drop(tell.send(Happening::Ended(role))))?;
        Ok(daemon)
    }

    /// Ends the slave, then the master.
    fn stop(&mut self, pair: Pair) -> anyhow::Result<()> {
        let mut faults = Vec::new();
        for mut daemon in pair.slave.into_iter().chain([pair.master]) {
            if daemon.has_ended() {
                continue;
            }
            let from = clock::boot();
            let ending = daemon.stop(STOP_MAX)?;
            let took = clock::boot().saturating_since(from);
            // A reader of the output that has gone must not keep the next daemon from its end.
            drop(self.out.line(&format!(
                "{:<6}  ended in {} ms",
                daemon.role().word(),
                took.as_millis()
            )));
            if !ending.is_clean() {
                faults.push(daemon.obituary());
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            bail!(faults.join("\n"))
        }
    }
}

impl Pair {
    fn get(&mut self, role: Role) -> &mut Daemon {
        match (&mut self.slave, role) {
            (Some(slave), Role::Slave) => slave,
            _ => &mut self.master,
        }
    }
}

/// Whether the slave is up by a report of this run: the durable roll may still show it as it was
/// in an earlier one.
fn is_up_since(row: &SlaveRow, started_ms: i64) -> bool {
    row.presence == Presence::Up && row.last_seen_ms.is_some_and(|seen| seen >= started_ms)
}

fn stop_notice(signal: &str) -> String {
    format!("{signal}: ending both")
}

fn advice(slave_pid: i32, ports: Ports) -> String {
    let master = if ports.is_default_http() {
        String::new()
    } else {
        format!("export ROLLCALL_MASTER={}; ", ports.http)
    };
    format!(
        "\nelsewhere: {master}rollcall ls; rollcall show NAME; rollcall events --follow\n\
         to see it turn late and then missing: kill -STOP {slave_pid}; and back: kill -CONT {slave_pid}\n\
         Ctrl-C ends both\n"
    )
}
