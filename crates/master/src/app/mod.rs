//! The daemon as a whole: what is started in which order, and how it ends.

mod start;
mod supervise;

use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rollcall_os::exit::{Exit, ExitError, ExitWith};
use rollcall_os::log::{self, LogHandle};
use rollcall_os::signal::{self, Signals};
use rollcall_os::socket::ListenOptions;
use rollcall_os::systemd::notify::Manager;
use rollcall_os::systemd::store::Inherited;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::adoption;
use crate::args::Args;
use crate::config::Config;
use crate::datagram::{self, Datagrams};
use crate::keeper;
use crate::listener::{self, Accepting, Listeners};
use crate::liveness::Liveness;
use crate::roll;
use crate::store::{self, Inspect, Opened, Store};
use crate::upgrade::{self, Passed, Program};
use start::{Restored, http_listener, open_files, restore, serve_http, within};
use supervise::{Run, Tasks};

/// Questions of readers that may wait for the roll's owner.
const QUESTIONS_MAX: usize = 16;
/// Readers whose answers are under way have so long to get them, where a successor takes over: it is
/// as long as the server itself gives them.
const READERS_END_MAX: Duration = Duration::from_secs(3);

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
    if args.selfcheck {
        let found = upgrade::selfcheck(&config)?;
        writeln!(std::io::stdout(), "{found}")?;
        return Ok(());
    }
    if args.keeper {
        return keeper::run(args, &config);
    }
    keeper::follow()?;
    // All threads but this one leave them alone, so that they can be held up again.
    signal::hold().context("can't handle signals")?;
    // The environment may be changed as long as there is one thread.
    let inherited = Inherited::take();
    let program = Program::of_this_process().context("can't find out where this program is")?;
    let level = args.log_level.unwrap_or(config.log_level);
    let log = log::init(args.log_format.or(config.log_format), level)?;
    log::log_panics();
    upgrade::tell_failure();
    match rollcall_os::runtime::run(serve(args, config, &log, inherited, &program))? {
        End::Stopped => Ok(()),
        // Only now, with the runtime and its descriptors gone.
        End::Upgrade(passed) => Err(upgrade::execute(&program, &passed)),
    }
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

/// How the daemon has ended.
enum End {
    /// For good, or until somebody starts it again.
    Stopped,
    /// The program that takes over goes on with these.
    Upgrade(Passed),
}

async fn serve(
    args: &Args,
    config: Config,
    log: &LogHandle,
    inherited: Inherited,
    program: &Program,
) -> anyhow::Result<End> {
    let signals = Signals::new().context("can't handle signals")?;
    let mut manager = Manager::find();
    let files = open_files()?;
    let rules = within(files, config.listen.clone());
    let Opened {
        loaded,
        handle: store,
        mut outcomes,
    } = Store::open(&config.state_directory, config.retention).exit_with(Exit::Store)?;
    let (questions, questions_in) = mpsc::channel(QUESTIONS_MAX);
    let Restored { reactor, readers } = restore(&config, loaded, questions, files)?;
    let liveness = Liveness::new(readers.roll.clone(), Arc::clone(&readers.stats));

    // Readers see the roll as it was durable before the first slave is back.
    let http_stop = CancellationToken::new();
    let mut open = listener::Inherited::new(inherited.listeners);
    let http_options = ListenOptions::new(config.sockets.options.backlog);
    let http_listener = http_listener(config.http, &http_options, &mut open, reactor.parking())
        .await
        .exit_with(Exit::Bind)?;
    let http_ended = serve_http(http_listener, readers, http_stop.clone())?;

    let accepting = Accepting {
        reactor: Rc::clone(&reactor),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        shut: CancellationToken::new(),
        admission: Admission::new(rules.limits),
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

    signals.listen().context("can't handle signals")?;
    let mut tasks = Tasks {
        accepts,
        core,
        http_ended,
    };
    let run = Run {
        args,
        log,
        program,
        reactor: Rc::clone(&reactor),
        accepting,
        rules,
        signals,
        manager,
    };
    let drained = run
        .supervise(config, &mut tasks, &store, &mut outcomes)
        .await?;
    http_stop.cancel();
    store.close().exit_with(Exit::Store)?;
    let parking = reactor.parking();
    if parking.is_handing_over() {
        // Whoever was let in by this process is answered by it.
        let _ = tokio::time::timeout(READERS_END_MAX, tasks.http_ended).await;
    }
    let clean = drained.clean;
    if drained.upgrades {
        let passed = parking.pass_on();
        tracing::info!(
            event = "upgrade_executed",
            program = %program.path().display(),
            clean,
            descriptors = passed.len(),
            "the program takes this process over, and goes on with what is open"
        );
        return Ok(End::Upgrade(passed));
    }
    tracing::info!(event = "master_stopped", clean, "the master has ended");
    Ok(End::Stopped)
}
