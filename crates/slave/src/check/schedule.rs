//! When each check runs: one task a check, each on its own beat, few at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::wire::Check;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::child::{self, Program, Run, TERM_GRACE};
use super::finding::{Finding, Thresholds};
use super::plugin;

/// The first runs of all checks are spread over this time at most, and over no more than each
/// check's interval.
const STAGGER_MAX: Duration = Duration::from_secs(60);
/// How long [`Scheduler::stop`] waits, beyond the grace that each group is given.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// One check: what is run, how often, and how its output is read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Job {
    /// Unique among all checks and probes.
    pub(crate) name: String,
    /// What is run.
    pub(crate) program: Program,
    /// Time between two starts.
    pub(crate) interval: Duration,
    /// How the run becomes a finding.
    pub(crate) reading: Reading,
}

/// How the output of a run is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reading {
    /// By the Nagios plugin API.
    Plugin,
    /// The list of failed units of systemctl(1).
    FailedUnits(Thresholds),
}

impl Job {
    fn judge(&self, run: &Run) -> Option<Finding> {
        match &self.reading {
            Reading::Plugin => plugin::judge(&self.name, run),
            Reading::FailedUnits(thresholds) => crate::probe::systemd::judge(thresholds, run),
        }
    }
}

/// Runs checks until it is stopped or dropped. Lives in a tokio runtime with I/O and time.
pub(crate) struct Scheduler {
    tasks: JoinSet<()>,
    running: HashMap<String, Running>,
    permits: Arc<Semaphore>,
    concurrency: usize,
    results: mpsc::Sender<Check>,
    stop: CancellationToken,
}

struct Running {
    job: Arc<Job>,
    cancel: CancellationToken,
    /// Cancelled when the task has ended.
    ended: CancellationToken,
}

impl Scheduler {
    /// Starts `jobs`, of which at most `concurrency` run at a time. Results go to `results`; while
    /// that is full, checks wait.
    pub(crate) fn start(jobs: Vec<Job>, concurrency: usize, results: mpsc::Sender<Check>) -> Self {
        let mut scheduler = Self {
            tasks: JoinSet::new(),
            running: HashMap::new(),
            permits: Arc::new(Semaphore::new(concurrency)),
            concurrency,
            results,
            stop: CancellationToken::new(),
        };
        scheduler.add(jobs, &HashMap::new());
        scheduler
    }

    /// Takes over a new list: checks that are alike in both run on undisturbed, what is gone or
    /// changed is ended without a result, what is new or changed is started.
    pub(crate) fn replace(&mut self, jobs: Vec<Job>, concurrency: usize) {
        let all_anew = concurrency != self.concurrency;
        if all_anew {
            self.permits = Arc::new(Semaphore::new(concurrency));
            self.concurrency = concurrency;
        }
        let mut ending = HashMap::new();
        for (name, running) in std::mem::take(&mut self.running) {
            if !all_anew && jobs.contains(&running.job) {
                self.running.insert(name, running);
            } else {
                running.cancel.cancel();
                ending.insert(name, running.ended);
            }
        }
        let new = jobs
            .into_iter()
            .filter(|job| !self.running.contains_key(&job.name))
            .collect();
        self.add(new, &ending);
    }

    /// Starts the tasks of `jobs`, each after the end of its predecessor of the same name.
    fn add(&mut self, jobs: Vec<Job>, ending: &HashMap<String, CancellationToken>) {
        let count = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        for (position, job) in (0..).zip(jobs) {
            let first = stagger(job.interval, position, count);
            let running = Running {
                job: Arc::new(job),
                cancel: self.stop.child_token(),
                ended: CancellationToken::new(),
            };
            let before = ending.get(&running.job.name).cloned();
            let ended = running.ended.clone().drop_guard();
            let life = repeat(
                Arc::clone(&running.job),
                first,
                Arc::clone(&self.permits),
                self.results.clone(),
                running.cancel.clone(),
            );
            self.tasks.spawn(async move {
                let _ended = ended;
                if let Some(before) = before {
                    before.cancelled().await;
                }
                life.await;
            });
            self.running.insert(running.job.name.clone(), running);
        }
    }

    /// Waits for a task to end; for ever if there are none. Cancel safe.
    ///
    /// # Errors
    /// If the task panicked.
    pub(crate) async fn ended(&mut self) -> Result<(), JoinError> {
        match self.tasks.join_next().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// Ends all checks, with their groups and without a result.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        // Those that are late are dropped, and their groups killed, with `self.tasks`.
        let _ = timeout(TERM_GRACE + STOP_WAIT, all).await;
    }
}

/// When the check at `position` of `count` runs first.
fn stagger(interval: Duration, position: u32, count: u32) -> Duration {
    interval.min(STAGGER_MAX) / count.max(1) * position
}

/// The life of one check. Its runs never overlap, and a tick that passes meanwhile is skipped.
async fn repeat(
    job: Arc<Job>,
    first: Duration,
    permits: Arc<Semaphore>,
    results: mpsc::Sender<Check>,
    cancel: CancellationToken,
) {
    let mut due = Instant::now() + first;
    loop {
        let turn = async {
            sleep_until(due).await;
            permits.acquire().await
        };
        let Some(Ok(permit)) = cancel.run_until_cancelled(turn).await else {
            return;
        };
        // A run ends by itself when it is cancelled: its group has to be ended first.
        let begun = clock::boot();
        let (run, remains) = child::run(&job.program, &cancel).await;
        let Some(finding) = job.judge(&run) else {
            return;
        };
        let took = clock::boot().saturating_since(begun);
        let check = finding.into_check(&job.name, took, clock::wall_ms());
        // What is stuck in the kernel needs no processor: others may run meanwhile.
        drop(permit);
        let rest = async {
            // The receiver is gone only when the agent stops.
            let _ = results.send(check).await;
            if let Some(mut remains) = remains {
                tracing::warn!(
                    event = "check_stuck",
                    check = job.name,
                    "the check's process does not end, not even by SIGKILL; it runs again when it has ended"
                );
                remains.gone().await;
            }
        };
        if cancel.run_until_cancelled(rest).await.is_none() {
            return;
        }
        due = next_due(due, Instant::now(), job.interval);
    }
}

/// The first tick after `now` of the beat that had one at `due`: missed ones stay skipped.
fn next_due(due: Instant, now: Instant, interval: Duration) -> Instant {
    let missed = now.saturating_duration_since(due).as_nanos() / interval.as_nanos().max(1);
    due + interval.saturating_mul(u32::try_from(missed).unwrap_or(u32::MAX).saturating_add(1))
}

#[cfg(test)]
mod tests;
