//! The status of this host, once an interval.
//!
//! ```text
//!   host task: each interval one sample of the probes ──── beats (1) ────┐
//!                                                                        ├──> Collector::next
//!   check::Scheduler: each plugin on its own beat ──── results (bounded) ┘     newest of each
//! ```
//!
//! A beat of the host task is what makes a status due: it holds the fresh figures of the probes and
//! the newest result of each plugin. A plugin that has not run yet is not in it; one whose result is
//! old is in it as unknown. Time in which the agent did not run (a suspended machine, a stopped
//! process) makes no result older.

mod fit;
mod newest;

use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::Moment;
use rollcall_protocol::wire::{Check, Health, Status};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use self::newest::Newest;
use crate::check::finding::worst;
use crate::check::schedule::{Job, Scheduler};
use crate::config::check::Checks;
use crate::config::probe::Probes as ProbesConfig;
use crate::link::PortUse;
use crate::probe::{self, Probes, SAMPLE_INTERVAL_MIN};
use crate::random;

/// The name of the check in which the agent says what is wrong with the report itself. It is there
/// only while there is something to say.
pub(crate) const AGENT_CHECK: &str = "agent";

/// How many results of plugins may wait for [`Collector::next`].
const RESULTS_MAX: usize = 64;

/// What is collected, and how often.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// Time between two statuses.
    pub(crate) interval: Duration,
    /// The probes.
    pub(crate) probes: ProbesConfig,
    /// The check plugins.
    pub(crate) checks: Checks,
}

impl Config {
    /// The plugins, and the probe that runs as one.
    fn jobs(&self) -> Vec<Job> {
        let systemd = self.probes.systemd.as_ref().and_then(probe::systemd::job);
        systemd
            .into_iter()
            .chain(self.checks.jobs.clone())
            .collect()
    }
}

/// The status of the host at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Collected {
    /// When it was taken, by the wall clock.
    pub(crate) time_ms: i64,
    /// The worst state of the checks, in the order ok < warning < unknown < critical; ok if there
    /// are none.
    pub(crate) health: Health,
    /// The checks, within the limits of the protocol and such that a report with them fits into
    /// one frame.
    pub(crate) status: Status,
}

/// Why nothing is collected any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    /// A bug: the daemon should end with it, so that nobody takes its silence for health.
    #[error("a task of the checks or probes panicked")]
    Panicked(#[from] JoinError),
    /// A bug.
    #[error("the task of the probes ended")]
    HostEnded,
}

/// Runs probes and checks until it is stopped or dropped. Lives in a tokio runtime with I/O and time.
pub(crate) struct Collector {
    config: watch::Sender<Config>,
    host: JoinSet<()>,
    beats: mpsc::Receiver<Vec<Check>>,
    scheduler: Scheduler,
    results: mpsc::Receiver<Check>,
    port_use: watch::Receiver<Option<PortUse>>,
    newest: Newest,
    beaten: Moment,
}

impl Collector {
    /// Starts to collect. The first status is due after [`SAMPLE_INTERVAL_MIN`], the second after a
    /// random part of the interval, the next ones after the interval each. `port_use` is what the
    /// link has found of its ports.
    pub(crate) fn start(config: Config, port_use: watch::Receiver<Option<PortUse>>) -> Self {
        let (beat, beats) = mpsc::channel(1);
        let (result, results) = mpsc::channel(RESULTS_MAX);
        let jobs = config.jobs();
        let newest = Newest::new(&jobs);
        let scheduler = Scheduler::start(jobs, config.checks.concurrency, result);
        let (config, watched) = watch::channel(config);
        let mut host = JoinSet::new();
        host.spawn(sample_host(watched, beat));
        Self {
            config,
            host,
            beats,
            scheduler,
            results,
            port_use,
            newest,
            beaten: clock::boot(),
        }
    }

    /// Waits until a status is due and returns it. Cancel safe. If it is not called for a while,
    /// the statuses that were due meanwhile are skipped, not queued.
    ///
    /// # Errors
    /// If a task has panicked.
    pub(crate) async fn next(&mut self) -> Result<Collected, CollectError> {
        loop {
            tokio::select! {
                biased;
                Some(result) = self.results.recv() => self.newest.insert(result),
                beat = self.beats.recv() => match beat {
                    Some(host) => return Ok(self.compose(host)),
                    None => return Err(self.host_ended().await),
                },
                ended = self.scheduler.ended() => ended?,
            }
        }
    }

    async fn host_ended(&mut self) -> CollectError {
        match self.host.join_next().await {
            Some(Err(error)) => error.into(),
            Some(Ok(())) | None => CollectError::HostEnded,
        }
    }

    /// Takes over a new configuration. Checks that stay as they are run on undisturbed and keep
    /// their results; if the interval has changed, the next status comes after a random part of it.
    pub(crate) fn reconfigure(&mut self, config: Config) {
        let jobs = config.jobs();
        self.newest.keep(&jobs);
        self.scheduler.replace(jobs, config.checks.concurrency);
        self.config.send_replace(config);
    }

    /// Ends all checks with their process groups, within 5 s. What was running gives no result.
    pub(crate) async fn stop(self) {
        self.scheduler.stop().await;
    }

    /// The link's check, while it has one.
    fn connection(&self) -> Option<Check> {
        let thresholds = self.config.borrow().probes.connection?;
        let found = (*self.port_use.borrow())?;
        Some(probe::connection::check(&thresholds, &found))
    }

    fn compose(&mut self, host: Vec<Check>) -> Collected {
        let now = clock::boot();
        let interval = self.config.borrow().interval;
        self.newest
            .advance(now.saturating_since(self.beaten).min(interval * 2));
        self.beaten = now;
        let checks = host.into_iter().chain(self.connection());
        let status = fit::fit(checks.chain(self.newest.checks()).collect());
        self.newest.log_changes(&status);
        Collected {
            time_ms: clock::wall_ms(),
            health: worst(status.checks.iter().map(Check::state)),
            status,
        }
    }
}

/// The life of the probes: one sample an interval, handed over when the last one was taken.
async fn sample_host(mut config: watch::Receiver<Config>, beats: mpsc::Sender<Vec<Check>>) {
    let (mut interval, probes) = {
        let config = config.borrow_and_update();
        (config.interval, config.probes.clone())
    };
    let mut probes = Probes::new(probes);
    let mut ticks = beat(SAMPLE_INTERVAL_MIN, interval);
    let mut is_first = true;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                if std::mem::take(&mut is_first) {
                    ticks.reset_after(phase(interval));
                }
                // First the room, then the sample: what is handed over is fresh.
                let Ok(room) = beats.reserve().await else {
                    return;
                };
                room.send(probes.sample().await);
            }
            changed = config.changed() => {
                if changed.is_err() {
                    return;
                }
                let new = config.borrow_and_update().clone();
                probes.configure(new.probes);
                if new.interval != interval {
                    interval = new.interval;
                    ticks = beat(phase(interval), interval);
                    is_first = false;
                }
            }
        }
    }
}

/// A random part of the interval, so that slaves which were started or reconfigured together report
/// at different moments from then on.
fn phase(interval: Duration) -> Duration {
    let spread = interval.saturating_sub(SAMPLE_INTERVAL_MIN);
    (interval - spread) + spread.mul_f64(random::unit())
}

fn beat(first: Duration, interval: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + first, interval);
    // The next beat is an interval after this one: what was missed is not caught up on.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
mod tests;
