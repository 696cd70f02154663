//! A master with a fleet at it, from a given state folder, through a fault, to the check after it.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use super::End;
use super::fleet::{Fleet, SCRIPT};
use super::strace::{self, Fault, Trace};
use super::{audit, bytes};
use crate::binaries;
use crate::daemon::Daemon;
use crate::master::Master;
use crate::wait::{PATIENCE, wait_until};

/// A state folder to begin from, and what the fleet knows of it.
#[derive(Debug)]
pub struct Stage {
    folder: TempDir,
    fleet: Fleet,
}

/// What a run under strace has left.
#[derive(Debug)]
pub struct Run {
    /// The master, which does not run.
    pub master: Master,
    /// What was sent and acked.
    pub fleet: Fleet,
    /// How far the script came.
    pub played: anyhow::Result<()>,
    /// How the master ended.
    pub status: ExitStatus,
}

impl Stage {
    /// An empty folder.
    ///
    /// # Panics
    /// If there is none to be had.
    pub fn empty() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            fleet: Fleet::new(),
        }
    }

    /// The folder of a master that was killed after the script: a start recovers and replays.
    ///
    /// # Panics
    /// If the script fails.
    pub fn killed() -> Self {
        Self::played(Master::kill_and_wait)
    }

    /// The folder of a master that was stopped in order after the script.
    ///
    /// # Panics
    /// If the script fails.
    pub fn stopped() -> Self {
        Self::played(|master| {
            let status = master.terminate();
            assert!(status.success(), "{status}");
        })
    }

    fn played(end: impl Fn(&mut Master)) -> Self {
        let stage = Self::empty();
        let run = tempfile::tempdir().expect("a folder");
        let mut master = Master::started(run.path());
        let mut fleet = Fleet::new();
        fleet
            .play(master.address(), &SCRIPT)
            .expect("an undisturbed run");
        end(&mut master);
        bytes::copy_folder(&master_state(run.path()), stage.folder.path());
        Self { fleet, ..stage }
    }

    /// The folder to begin from.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the fleet knows of it, without connections.
    pub fn fleet(&self) -> Fleet {
        self.fleet.disconnected()
    }

    /// One run from here under strace, with the script, to the end of the daemon: of itself, or by
    /// SIGTERM after the script.
    ///
    /// # Panics
    /// If it neither gets ready nor ends, or does not end when it must.
    pub fn run(&self, folder: &Path, trace: &Trace) -> Run {
        let mut fleet = self.fleet();
        bytes::copy_folder(self.folder(), &master_state(folder));
        let master = Master::new(folder, "master");
        let config = master.config_file();
        master.config.write(&config);
        let program = binaries::path(binaries::MASTER);
        let mut daemon = strace::spawn("master", &program, &config, folder, trace);
        let is_ready = await_ready(&master, &mut daemon);
        let played = if is_ready {
            fleet.play(master.address(), &SCRIPT)
        } else {
            Ok(())
        };
        // A master that is dying has this long to do so by itself.
        let goes_on = played.is_ok() || crate::wait::poll_until(DYING, || daemon.ended()).is_none();
        let status = if goes_on {
            strace::insist_on_end(&mut daemon)
        } else {
            daemon.wait(PATIENCE)
        };
        Run {
            master,
            fleet,
            played,
            status,
        }
    }

    /// A run with a fault, and the check after it.
    ///
    /// # Errors
    /// If a promise is broken.
    pub fn suffer(&self, folder: &Path, faults: &[Fault]) -> anyhow::Result<(End, Run)> {
        let mut run = self.run(folder, &Trace::Inject(faults.to_vec()));
        let end = End::of(run.status, run.played.is_ok())
            .with_context(|| bytes::last_words(folder, "master"))?;
        if let Err(error) = &run.played {
            let text = format!("{error:#}");
            let own_fault = ["LOST", "INVENTED", "another stream"];
            ensure!(!own_fault.iter().any(|word| text.contains(word)), "{text}");
        }
        let code = run.status.code();
        check_master(&mut run.master, &mut run.fleet, folder, code)?;
        Ok((end, run))
    }
}

/// Until the master lets slaves in, or has ended. Returns whether it got so far.
fn await_ready(master: &Master, daemon: &mut Daemon) -> bool {
    let is_told = |daemon: &Daemon| !daemon.log().events("master_ready").is_empty();
    let ready = wait_until(PATIENCE, "the master to be ready or to end", || {
        let ended = daemon.ended().is_some();
        let answers = || master.api().ready().is_ok_and(|(status, _)| status == 200);
        let ready = is_told(daemon) || answers();
        (ended || ready).then_some(ready)
    });
    // Readers are answered before slaves are let in. The fault may be that the line is lost, though.
    let told = || (daemon.ended().is_some() || is_told(daemon)).then_some(());
    let _ = crate::wait::poll_until(LINE_WAIT, told);
    ready
}

/// For how long the line that slaves are let in may come later than the first answer to a reader.
const LINE_WAIT: std::time::Duration = std::time::Duration::from_secs(2);
/// For how long a master whose fleet has lost it may still live.
const DYING: std::time::Duration = std::time::Duration::from_millis(500);

/// The state folder of the master of [`Stage::run`].
pub fn master_state(folder: &Path) -> PathBuf {
    folder.join("master-state")
}

/// The master starts again, has what was acked, takes the rest, and still has all after a kill. It
/// had ended with `code` before.
///
/// # Errors
/// If a promise is broken.
pub fn check_master(
    master: &mut Master,
    fleet: &mut Fleet,
    folder: &Path,
    code: Option<i32>,
) -> anyhow::Result<()> {
    let log = std::fs::read_to_string(folder.join("master.log"))?;
    for bad in ["\"panic\"", "store_set_aside"] {
        ensure!(!log.contains(bad), "{bad} in the log");
    }
    let stderr = std::fs::read_to_string(folder.join("master.err"))?;
    // Whoever ends by himself says why.
    let silent = matches!(code, None | Some(0));
    ensure!(stderr.is_empty() == silent, "{code:?}, stderr: {stderr}");
    master.start();
    audit::stored(&master.api(), fleet).context("after the restart")?;
    fleet.recover(master.address())?;
    audit::complete(&master.api(), fleet).context("after everything came again")?;
    master.kill_and_wait();
    master.start();
    audit::stored(&master.api(), fleet).context("after one more kill -9")?;
    audit::complete(&master.api(), fleet).context("after one more kill -9")?;
    let lines = std::fs::read_to_string(folder.join("master.log"))?;
    for bad in ["\"panic\"", "store_set_aside"] {
        ensure!(!lines.contains(bad), "{bad} in the log");
    }
    master.kill_and_wait();
    audit::integrity(&master_state(folder).join("master.db"))
}
