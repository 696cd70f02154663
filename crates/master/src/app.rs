//! The daemon as a whole: what is started in which order, and how it ends.

use std::io::Write;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rollcall_os::clock;
use rollcall_os::exit::{Exit, ExitError, ExitWith};
use rollcall_os::log::{self, LogHandle};
use rollcall_os::parking;
use rollcall_os::signal::{Signal, Signals};
use rollcall_os::socket::ListenOptions;
use rollcall_os::systemd::notify::Manager;
use rollcall_os::systemd::store::{self as descriptors, Inherited};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adoption::{self, Parking};
use crate::args::Args;
use crate::config::Config;
use crate::datagram::{self, Datagrams};
use crate::http::{self, Limits, Readers};
use crate::listener::{self, Accepting, Admission, Listeners, Rules};
use crate::liveness::Liveness;
use crate::reactor::{CoreFailure, Publication, Reactor};
use crate::roll::{self, Durable, Roll, Stamp};
use crate::stats::Stats;
use crate::store::{self, Inspect, Loaded, Opened, Outcome, Store, StoreHandle};
use crate::view::ReportsAsked;

/// Events that a follower may be behind before it reads them from the store.
const EVENTS_BEHIND_MAX: usize = 1024;
/// Questions of readers that may wait for the roll's owner.
const QUESTIONS_MAX: usize = 16;
/// Descriptors that are no served connections: listeners, the store, readers, and peers that are told
/// why they are not let in.
const DESCRIPTORS_RESERVED: u64 = 704;

/// Before the connections are left to the next process, those that can't be parked have so many looks
/// to finish.
const LOOKS_MAX: u32 = 50;
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Runs the daemon to its end.
///
/// # Errors
/// With the exit code that `--help` tells.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref()).map_err(ExitError::from)?;
    if args.check {
        let text = rollcall_os::config::to_toml(&config.raw)?;
        std::io::stdout().write_all(text.as_bytes())?;
        return Ok(());
    }
    if args.verify_store {
        return verify_store(&config);
    }
    // The environment may be changed as long as there is one thread.
    let inherited = Inherited::take();
    let level = args.log_level.unwrap_or(config.log_level);
    let log = log::init(args.log_format.or(config.log_format), level)?;
    log::log_panics();
    rollcall_os::runtime::run(serve(args, config, &log, inherited))
}

/// Prints what is in the store and whether it is sound.
fn verify_store(config: &Config) -> anyhow::Result<()> {
    let inspect = Inspect {
        record: roll::inspect_record,
        redo: roll::inspect_redo,
    };
    let verdict = store::verify(&config.state_directory, inspect).exit_with(Exit::Store)?;
    std::io::stdout().write_all(verdict.to_string().as_bytes())?;
    if verdict.is_sound() {
        return Ok(());
    }
    let error = anyhow::anyhow!("the store is damaged: see above");
    Err(ExitError::new(Exit::Store, error).into())
}

async fn serve(
    args: &Args,
    config: Config,
    log: &LogHandle,
    inherited: Inherited,
) -> anyhow::Result<()> {
    let signals = Signals::new().context("can't handle signals")?;
    let mut manager = Manager::find();
    let rules = within_limits(config.listen.clone())?;
    let Opened {
        loaded,
        handle: store,
        mut outcomes,
    } = Store::open(&config.state_directory, config.retention).exit_with(Exit::Store)?;
    let (questions, questions_in) = mpsc::channel(QUESTIONS_MAX);
    let (reactor, readers) = restore(&config, loaded, questions)?;
    let liveness = Liveness::new(readers.roll.clone(), Arc::clone(&readers.stats));

    // Readers see the roll as it was durable before the first slave is back.
    let http_stop = CancellationToken::new();
    let http_options = ListenOptions::new(config.sockets.options.backlog);
    let http_listener = listener::bind(config.http, &http_options)
        .await
        .exit_with(Exit::Bind)?;
    if let Ok(address) = http_listener.local_addr() {
        listener::warn_of_ephemeral_port(address);
    }
    let http_ended = serve_http(http_listener, readers, http_stop.clone())?;

    let accepting = Accepting {
        reactor: Rc::clone(&reactor),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        shut: CancellationToken::new(),
        admission: Admission::new(&rules),
    };
    for name in inherited.strange {
        tracing::warn!(
            event = "descriptor_strange",
            name,
            "the service manager has passed a descriptor that is of no use here"
        );
    }
    // Before anybody new is let in, who may be the slave of an older connection.
    adoption::adopt(&accepting, inherited.ends);
    let open = listener::Inherited::new(inherited.listeners, reactor.parking());
    let listeners = Listeners::start(accepting.clone(), config.sockets, &rules, open)
        .await
        .exit_with(Exit::Bind)?;
    let (rules, changed_rules) = watch::channel(rules);
    let mut accepts = JoinSet::new();
    accepts.spawn_local(listeners.run(changed_rules));
    let datagrams = Datagrams::new(&accepting, &config.datagrams);
    let options = &config.sockets.options;
    for socket in datagram::bind_all(&config.datagrams.addresses, options)
        .await
        .exit_with(Exit::Bind)?
    {
        let socket = datagram::Socket::new(socket).context("can't set socket options")?;
        accepts.spawn_local(datagrams.clone().run(socket));
    }
    let mut core = JoinSet::new();
    let clock = Rc::clone(&reactor);
    core.spawn_local(async move { clock.keep_time().await });
    let credit = Rc::clone(&reactor);
    core.spawn_local(async move { credit.share_out().await });
    let owner = Rc::clone(&reactor);
    core.spawn_local(async move { owner.answer_readers(questions_in).await });
    tracing::info!(
        event = "master_ready",
        slaves = reactor.roll().len(),
        http = %config.http,
        version = env!("CARGO_PKG_VERSION"),
        "the roll is loaded and slaves are welcome"
    );
    manager.ready("slaves are welcome");
    manager
        .watch(liveness.pulses())
        .context("can't start the thread that feeds the watchdog")?;

    let tasks = Tasks {
        accepts,
        core,
        http_ended,
    };
    let run = Run {
        args,
        log,
        reactor,
        accepting,
        rules,
        signals,
        manager,
    };
    let clean = run.supervise(config, tasks, &store, &mut outcomes).await?;
    http_stop.cancel();
    store.close().exit_with(Exit::Store)?;
    tracing::info!(event = "master_stopped", clean, "the master has ended");
    Ok(())
}

/// What must not end before the daemon does.
struct Tasks {
    accepts: JoinSet<()>,
    core: JoinSet<()>,
    http_ended: oneshot::Receiver<String>,
}

impl Tasks {
    /// Resolves when one of them has ended, whichever way.
    async fn failed(&mut self) -> CoreFailure {
        tokio::select! {
            _ = self.accepts.join_next() => CoreFailure::Task { task: "accept" },
            _ = self.core.join_next() => CoreFailure::Task { task: "core" },
            reason = &mut self.http_ended => CoreFailure::Http {
                reason: reason.unwrap_or_else(|_| "its thread panicked".to_owned()),
            },
        }
    }
}

/// The running daemon.
struct Run<'a> {
    args: &'a Args,
    log: &'a LogHandle,
    reactor: Rc<Reactor>,
    accepting: Accepting,
    /// Where it listens, and who gets in.
    rules: watch::Sender<Rules>,
    signals: Signals,
    manager: Manager,
}

impl Run<'_> {
    /// Runs until a signal ends it, or a core task has ended: no half of the daemon lives on.
    /// Returns whether everything was drained in time.
    async fn supervise(
        mut self,
        mut config: Config,
        mut tasks: Tasks,
        store: &StoreHandle,
        outcomes: &mut mpsc::Receiver<Outcome>,
    ) -> Result<bool, ExitError> {
        let reactor = Rc::clone(&self.reactor);
        let committing = reactor.commit_groups(store, outcomes);
        tokio::pin!(committing);
        let ended = loop {
            tokio::select! {
                failure = &mut committing => break Err(failure),
                () = reactor.failed() => break Err(CoreFailure::Roll),
                failure = tasks.failed() => break Err(failure),
                signal = self.signals.next() => match signal {
                    Signal::Stop(name) => break Ok(name),
                    Signal::Reload => {
                        self.manager.reloading();
                        self.reload(&mut config);
                        self.manager.reloaded();
                    }
                    Signal::ToggleLevel => {
                        let level = self.log.toggle_debug();
                        tracing::info!(event = "log_level_changed", level = level.as_str(), "the log level was switched");
                    }
                },
            }
        };
        let drained = match ended {
            Ok(signal) => {
                let hands_over = self.reactor.parking().hand_over(signal);
                tracing::info!(
                    event = "master_stopping",
                    signal,
                    hands_over,
                    "the master ends"
                );
                self.manager.stopping(if hands_over {
                    "leaving the connections to the next process"
                } else {
                    "saying goodbye to the slaves"
                });
                tokio::select! {
                    failure = &mut committing => Err(failure),
                    drained = tokio::time::timeout(config.shutdown_deadline, self.drain()) => Ok(drained.is_ok()),
                }
            }
            Err(failure) => Err(failure),
        };
        drained.map_err(|failure| {
            tracing::error!(event = "master_failed", error = %failure, "the master can't go on");
            ExitError::new(failure.exit(), failure)
        })
    }

    /// Every connection is told goodbye, but for those that the next process goes on with, and what has
    /// arrived becomes durable.
    async fn drain(&self) {
        let Accepting {
            tasks, shut, stop, ..
        } = &self.accepting;
        let parking = self.reactor.parking();
        shut.cancel();
        // The listeners take in whom they have not accepted, who are then told goodbye, too.
        tokio::task::yield_now().await;
        let mut looks = if parking.is_handing_over() {
            LOOKS_MAX
        } else {
            0
        };
        // Whoever is about to say Hello, or has a message to deliver, is let finish.
        while looks > 0 && tasks.len() > parking.len() {
            tokio::time::sleep(LOOK_EVERY).await;
            looks -= 1;
        }
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        self.reactor.durable().await;
        if !parking.is_handing_over() {
            parking.dissolve();
        }
    }

    fn reload(&self, config: &mut Config) {
        let new = match Config::load(self.args.config.as_deref()) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(event = "reload_failed", error = %error, "the configuration is faulty; the old one stays in force");
                return;
            }
        };
        let rules = match within_limits(new.listen.clone()) {
            Ok(rules) => rules,
            Err(error) => {
                tracing::error!(event = "reload_failed", error = %error, "the old configuration stays in force");
                return;
            }
        };
        let fixed = config.fixed_changes(&new);
        self.rules.send_replace(rules);
        self.reactor.roll().set_rules(new.presence);
        self.reactor.set_rules(new.session);
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
        config.presence = new.presence;
        config.session = new.session;
        config.log_level = new.log_level;
        config.shutdown_deadline = new.shutdown_deadline;
    }
}

/// The reactor, with the roll as the store had it, and what readers read from.
fn restore(
    config: &Config,
    loaded: Loaded,
    questions: mpsc::Sender<ReportsAsked>,
) -> anyhow::Result<(Rc<Reactor>, Readers)> {
    let stamp = Stamp {
        at: clock::boot(),
        wall_ms: clock::wall_ms(),
    };
    let text = match (loaded.listening_at_ms, &loaded.set_aside) {
        (_, Some(path)) => format!(
            "its store was damaged and is set aside as {}",
            path.display()
        ),
        (Some(at_ms), None) => {
            let away_ms = stamp.wall_ms.saturating_sub(at_ms).max(0);
            format!(
                "it had not been listening for {}.{} s",
                away_ms / 1000,
                away_ms % 1000 / 100
            )
        }
        (None, None) => "its store is new".to_owned(),
    };
    let durable = Durable {
        records: loaded.records,
        redo: loaded.redo,
        next_group: loaded.next_group,
        next_event: loaded.next_event,
    };
    let mut roll =
        Roll::restore(durable, config.presence, config.rings, stamp.at).exit_with(Exit::Store)?;
    let stats = Arc::new(Stats::default());
    let set_aside = u64::try_from(loaded.set_aside_files).unwrap_or(u64::MAX);
    stats.set_aside.set(set_aside);
    let (roll_sender, roll_receiver) = watch::channel(Arc::default());
    let (events_sender, _) = broadcast::channel(EVENTS_BEHIND_MAX);
    let readers = Readers {
        roll: roll_receiver,
        stats: Arc::clone(&stats),
        events: Store::database(&config.state_directory),
        new_events: events_sender.clone(),
        reports: questions,
    };
    let publication = Publication {
        roll: roll_sender,
        events: events_sender,
        stats,
    };
    // What is on disk is published before anything new is to be committed.
    let published = roll.publish().unwrap_or_default();
    roll.handle_start(text, stamp);
    let reactor = Reactor::new(
        roll,
        published,
        config.session,
        loaded.master_id,
        publication,
    );
    let reactor = reactor.with_parking(Parking::new(descriptors::Store::find()));
    Ok((Rc::new(reactor), readers))
}

/// Starts the HTTP server's thread; what comes out of the channel is why it ended.
fn serve_http(
    listener: TcpListener,
    readers: Readers,
    stop: CancellationToken,
) -> anyhow::Result<oneshot::Receiver<String>> {
    let (ended_sender, ended) = oneshot::channel();
    thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            let reason = match http::serve(listener, readers, Limits::STANDARD, stop) {
                Ok(()) => "it was told to".to_owned(),
                Err(error) => error.to_string(),
            };
            // Nobody listens any more once the daemon is ending.
            let _ = ended_sender.send(reason);
        })
        .context("can't start the HTTP thread")?;
    Ok(ended)
}

/// Raises the limit of open files as far as this process may, and keeps the connections within it.
fn within_limits(mut rules: Rules) -> anyhow::Result<Rules> {
    let files =
        rollcall_os::limits::raise_open_files().context("can't raise the limit of open files")?;
    // The shards in which connections are parked have to be open, too.
    let shards = match descriptors::Store::find() {
        Some(_) => parking::shard_descriptors(files),
        None => 0,
    };
    let reserved = DESCRIPTORS_RESERVED.saturating_add(shards);
    let room = usize::try_from(files.saturating_sub(reserved))
        .unwrap_or(usize::MAX)
        .max(16);
    let configured = rules.connections_max;
    if configured > room {
        tracing::warn!(
            event = "connections_limited",
            configured,
            possible = room,
            "[limits] connections_max does not fit into the limit of open files: raise LimitNOFILE"
        );
    }
    rules.connections_max = match configured {
        0 => room,
        configured => configured.min(room),
    };
    Ok(rules)
}
