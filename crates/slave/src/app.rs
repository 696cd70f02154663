//! The daemon as a whole: what is started in which order, and how it ends.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rollcall_os::exit::{Exit, ExitError, ExitWith};
use rollcall_os::log::{self, LogHandle};
use rollcall_os::signal::{Signal, Signals};
use rollcall_os::systemd::notify::Manager;
use rollcall_protocol::wire;
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::args::Args;
use crate::collect::{self, CollectError, Collected, Collector};
use crate::config::Config;
use crate::link::{Link, LinkConfig, PortUse, describe_budget};
use crate::liveness::{Beat, LOOK_EVERY, Liveness};
use crate::spool::{self, Ended, NewIdentity, Spool, SpoolEnd, SpoolError, Standing};

/// How long the tasks may take to end beyond the drain time: check plugins are given some seconds.
const END_WAIT: Duration = Duration::from_secs(10);

/// Runs the daemon to its end.
///
/// # Errors
/// With the exit code that `--help` tells.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref()).map_err(ExitError::from)?;
    if args.check {
        let mut text = rollcall_os::config::to_toml(&config.raw)?;
        if let Some(budget) = budget(&config.link) {
            for line in budget.lines() {
                text.push_str(&format!("\n# Per-message mode: {line}\n"));
            }
        }
        std::io::stdout().write_all(text.as_bytes())?;
        return Ok(());
    }
    if args.new_identity {
        return new_identity(&config);
    }
    let level = args.log_level.unwrap_or(config.log_level);
    let log = log::init(args.log_format.or(config.log_format), level)?;
    log::log_panics();
    rollcall_os::runtime::run(serve(args, config, &log))
}

/// The ports that per-message mode has, for people.
fn budget(link: &LinkConfig) -> Option<String> {
    (link.mode == wire::Mode::PerMessage).then(|| describe_budget(&link.outgoing))
}

/// Makes a copied state folder one of its own, and says what was done.
fn new_identity(config: &Config) -> anyhow::Result<()> {
    let directory = &config.state_directory;
    let NewIdentity { old, new, backlog } =
        spool::renew_identity(directory, config.spool).exit_with(Exit::Store)?;
    let [old, new] = [old, new].map(u128::from_be_bytes);
    let reports = match backlog {
        0 => "no report is waiting in the spool".to_owned(),
        1 => {
            "1 report that was not acked stays in the spool and is sent under the new id".to_owned()
        }
        _ => format!(
            "{backlog} reports that were not acked stay in the spool and are sent under the new id"
        ),
    };
    writeln!(
        std::io::stdout(),
        "{}: this slave has a new id\n  old id  {old:032x}\n  new id  {new:032x}\n  {reports}\n\
         Its name is \"{}\": no other slave of the same master may have it.",
        directory.display(),
        config.link.name,
    )?;
    Ok(())
}

async fn serve(args: &Args, config: Config, log: &LogHandle) -> anyhow::Result<()> {
    let signals = Signals::new().context("can't handle signals")?;
    let mut manager = Manager::find();
    let (spool, spool_ended) =
        Spool::open(&config.state_directory, config.spool).exit_with(Exit::Store)?;
    let standing = spool.standing().await.exit_with(Exit::Store)?;
    log_ready(&config.link, &standing);
    let stop = CancellationToken::new();
    let (link_config, link_updates) = watch::channel(Arc::new(config.link.clone()));
    let (collect_config, collect_updates) = watch::channel(config.collect.clone());
    let (offset_sender, offset) = watch::channel(None);
    let (port_use_sender, port_use) = watch::channel(None);
    let link = Link::new(
        spool.clone(),
        link_updates,
        offset_sender,
        port_use_sender,
        stop.clone(),
    );
    let session = link.watch_session();
    let mut tasks = JoinSet::new();
    tasks.spawn_local(async move { link.run().await.map_err(Failure::Link) });
    let reports = Reports {
        spool: spool.clone(),
        clock_offset_ms: offset,
        port_use,
        updates: collect_updates,
        stop: stop.clone(),
    };
    tasks.spawn_local(reports.run());
    manager.ready("taking the first report");
    if manager.is_there() {
        let beat = Beat::new();
        // It goes on while the slave drains, and ends with the runtime.
        tokio::task::spawn_local(beat.clone().run());
        let liveness = Liveness {
            name: config.link.name.clone(),
            beat,
            spool: spool.figures(),
            session,
        };
        manager
            .watch_every(LOOK_EVERY, liveness.pulses())
            .context("can't start the thread that feeds the watchdog")?;
    }
    let run = Run {
        args,
        log,
        config,
        signals,
        spool,
        link_config,
        collect_config,
        stop,
        manager,
    };
    run.supervise(tasks, spool_ended).await.map_err(|failure| {
        tracing::error!(event = "slave_failed", error = %failure, "the slave can't go on");
        ExitError::new(failure.exit(), failure)
    })?;
    tracing::info!(event = "slave_stopped", "the slave has ended");
    Ok(())
}

fn log_ready(link: &LinkConfig, standing: &Standing) {
    tracing::info!(
        event = "slave_ready",
        slave = link.name,
        stream = %format_args!("{:016x}", standing.stream),
        backlog = standing.backlog,
        masters = link.masters.join(", "),
        ports = budget(link),
        version = env!("CARGO_PKG_VERSION"),
        "the spool is open and the first report is being taken"
    );
}

/// Why the daemon can't go on: no half of it lives on.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("a core task panicked: {0}")]
    Panicked(#[from] JoinError),
    #[error(transparent)]
    Collect(#[from] CollectError),
    #[error("the link to the master ended: {0}")]
    Link(SpoolError),
    #[error("reports can't be spooled: {0}")]
    Append(SpoolError),
    #[error("the spool ended: {0}")]
    Spool(#[from] SpoolEnd),
    #[error("{0} ended without being told to")]
    Ended(&'static str),
}

impl Failure {
    fn exit(&self) -> Exit {
        match self {
            Self::Spool(SpoolEnd::Failed(_)) => Exit::Store,
            _ => Exit::Internal,
        }
    }
}

/// Takes reports from the collector to the spool.
struct Reports {
    spool: Spool,
    clock_offset_ms: watch::Receiver<Option<i64>>,
    port_use: watch::Receiver<Option<PortUse>>,
    updates: watch::Receiver<collect::Config>,
    stop: CancellationToken,
}

impl Reports {
    async fn run(mut self) -> Result<(), Failure> {
        let first = self.updates.borrow_and_update().clone();
        let mut collector = Collector::start(first, self.port_use.clone());
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Ok(()) = self.updates.changed() => {
                    let new = self.updates.borrow_and_update().clone();
                    collector.reconfigure(new);
                }
                collected = collector.next() => {
                    let report = self.report(collected?);
                    self.spool.append(report).await.map_err(Failure::Append)?;
                }
            }
        }
        collector.stop().await;
        Ok(())
    }

    fn report(&self, collected: Collected) -> wire::Report {
        wire::Report {
            time_ms: collected.time_ms,
            health: collected.health.into(),
            status: Some(collected.status),
            clock_offset_ms: *self.clock_offset_ms.borrow(),
            ..wire::Report::default()
        }
    }
}

/// The running daemon.
struct Run<'a> {
    args: &'a Args,
    log: &'a LogHandle,
    config: Config,
    signals: Signals,
    spool: Spool,
    link_config: watch::Sender<Arc<LinkConfig>>,
    collect_config: watch::Sender<collect::Config>,
    stop: CancellationToken,
    manager: Manager,
}

impl Run<'_> {
    /// Runs until a signal ends it, or a core task has ended.
    async fn supervise(
        mut self,
        mut tasks: JoinSet<Result<(), Failure>>,
        mut spool_ended: Ended,
    ) -> Result<(), Failure> {
        let signal = self.told_to_stop(&mut tasks, &mut spool_ended).await?;
        tracing::info!(
            event = "slave_stopping",
            signal,
            "the slave sends what is spooled and says goodbye"
        );
        self.manager
            .stopping("sending what is spooled, and saying goodbye");
        self.stop.cancel();
        let deadline = self.config.link.drain + END_WAIT;
        let Self { spool, .. } = self;
        match tokio::time::timeout(deadline, all_ended(&mut tasks)).await {
            Ok(ended) => ended?,
            Err(_) => {
                tracing::warn!(
                    event = "slave_stop_late",
                    "not everything has ended in time"
                );
                tasks.shutdown().await;
            }
        }
        log_left(&spool).await;
        // The last handle: what was acked is synced, and the thread ends.
        drop(spool);
        spool_ended.await.unwrap_or_else(|_| Err(lost_thread()))?;
        Ok(())
    }

    /// Serves signals until one of them ends the slave; returns its name.
    async fn told_to_stop(
        &mut self,
        tasks: &mut JoinSet<Result<(), Failure>>,
        spool_ended: &mut Ended,
    ) -> Result<&'static str, Failure> {
        loop {
            tokio::select! {
                biased;
                ended = &mut *spool_ended => return Err(spool_failure(ended)),
                ended = tasks.join_next() => return Err(task_failure(ended)),
                signal = self.signals.next() => match signal {
                    Signal::Stop(name) => return Ok(name),
                    Signal::Reload => {
                        self.manager.reloading();
                        self.reload().await;
                        self.manager.reloaded();
                    }
                    Signal::ToggleLevel => {
                        let level = self.log.toggle_debug();
                        tracing::info!(event = "log_level_changed", level = level.as_str(), "the log level was switched");
                    }
                    Signal::Upgrade => {
                        tracing::info!(event = "upgrade_by_restart", "SIGUSR2: a slave is upgraded by a restart, which loses nothing");
                    }
                },
            }
        }
    }

    async fn reload(&mut self) {
        let new = match Config::load(self.args.config.as_deref()) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(event = "reload_failed", error = %error, "the configuration is faulty; the old one stays in force");
                return;
            }
        };
        let fixed = self.config.fixed_changes(&new);
        let link = LinkConfig {
            name: self.config.link.name.clone(),
            ..new.link.clone()
        };
        self.config.link = link.clone();
        self.link_config.send_if_modified(|current| {
            let changed = **current != link;
            *current = Arc::new(link);
            changed
        });
        self.collect_config.send_if_modified(|current| {
            let changed = *current != new.collect;
            current.clone_from(&new.collect);
            changed
        });
        if let Err(error) = self.spool.set_limits(new.spool).await {
            tracing::debug!(event = "spool_limits_not_set", error = %error, "the spool has ended");
        }
        if self.args.log_level.is_none() {
            self.log.set_level(new.log_level);
        }
        if fixed.is_empty() {
            tracing::info!(event = "reloaded", "the configuration was read again");
        } else {
            let keys = fixed.join(", ");
            tracing::warn!(
                event = "reloaded_in_part",
                keys,
                "the configuration was read again; these keys need a restart"
            );
        }
    }
}

async fn all_ended(tasks: &mut JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// What could not be sent stays for the next start.
async fn log_left(spool: &Spool) {
    if let Ok(standing) = spool.standing().await
        && standing.backlog > 0
    {
        tracing::info!(
            event = "backlog_kept",
            backlog = standing.backlog,
            "reports that were not acked stay in the spool"
        );
    }
}

fn spool_failure(ended: Result<Result<(), SpoolEnd>, RecvError>) -> Failure {
    match ended {
        Ok(Ok(())) => Failure::Ended("the spool's thread"),
        Ok(Err(end)) => end.into(),
        Err(_) => lost_thread().into(),
    }
}

fn lost_thread() -> SpoolEnd {
    SpoolEnd::Panicked("it left no word".to_owned())
}

fn task_failure(ended: Option<Result<Result<(), Failure>, JoinError>>) -> Failure {
    match ended {
        Some(Ok(Err(failure))) => failure,
        Some(Err(panic)) => panic.into(),
        Some(Ok(Ok(()))) | None => Failure::Ended("a core task"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_a_core_task_is_an_internal_error() {
        let mut tasks: JoinSet<Result<(), Failure>> = JoinSet::new();
        tasks.spawn(async { panic!("a bug") });
        let failure = task_failure(tasks.join_next().await);
        assert_eq!(failure.exit(), Exit::Internal);
        assert!(failure.to_string().contains("a bug"), "{failure}");
    }

    #[test]
    fn a_spool_that_cannot_be_had_back_is_an_error_of_the_store() {
        let failure = spool_failure(Ok(Err(SpoolEnd::Failed(SpoolError::Ended))));
        assert_eq!(failure.exit(), Exit::Store);
        let failure = spool_failure(Ok(Err(SpoolEnd::Panicked("a bug".to_owned()))));
        assert_eq!(failure.exit(), Exit::Internal);
    }
}
