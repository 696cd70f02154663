//! The running daemon: what it does at a signal, and how it is drained.

use std::rc::Rc;
use std::time::Duration;

use rollcall_os::exit::ExitError;
use rollcall_os::log::LogHandle;
use rollcall_os::signal::{self, Signal, Signals};
use rollcall_os::systemd::notify::Manager;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::start::{open_files, within};
use crate::args::Args;
use crate::config::Config;
use crate::listener::{Accepting, Rules};
use crate::reactor::{CoreFailure, Reactor};
use crate::store::{Outcome, StoreHandle};
use crate::upgrade::{Check, Program};

/// Before the connections are left to the next process, those that can't be parked have so many looks
/// to finish.
const LOOKS_MAX: u32 = 50;
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Enough to take in what lies in a pipe.
const LAST_REQUESTS: Duration = Duration::from_millis(2);

/// What must not end before the daemon does.
pub(super) struct Tasks {
    pub(super) accepts: JoinSet<()>,
    pub(super) core: JoinSet<()>,
    /// Why the HTTP server has ended.
    pub(super) http_ended: oneshot::Receiver<String>,
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

/// Why the daemon ends in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// A signal, by its name.
    Stop(&'static str),
    /// SIGUSR2, and the program that is to take over has been checked.
    Upgrade,
}

/// How it was drained.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drained {
    /// Whether everything was done in time.
    pub(super) clean: bool,
    /// Whether another program is to take the process over.
    pub(super) upgrades: bool,
}

/// The running daemon.
pub(super) struct Run<'a> {
    pub(super) args: &'a Args,
    pub(super) log: &'a LogHandle,
    /// Who takes over at SIGUSR2.
    pub(super) program: &'a Program,
    pub(super) reactor: Rc<Reactor>,
    pub(super) accepting: Accepting,
    /// Where it listens, and who gets in.
    pub(super) rules: watch::Sender<Rules>,
    pub(super) signals: Signals,
    pub(super) manager: Manager,
}

impl Run<'_> {
    /// Runs until a signal ends it, or a core task has ended: no half of the daemon lives on.
    pub(super) async fn supervise(
        mut self,
        mut config: Config,
        tasks: &mut Tasks,
        store: &StoreHandle,
        outcomes: &mut mpsc::Receiver<Outcome>,
    ) -> Result<Drained, ExitError> {
        let reactor = Rc::clone(&self.reactor);
        let committing = reactor.commit_groups(store, outcomes);
        tokio::pin!(committing);
        let ended = tokio::select! {
            failure = &mut committing => Err(failure),
            () = reactor.failed() => Err(CoreFailure::Roll),
            failure = tasks.failed() => Err(failure),
            asked = self.follow_signals(&mut config) => Ok(asked),
        };
        let drained = match ended {
            Ok(asked) => {
                self.announce(asked);
                tokio::select! {
                    failure = &mut committing => Err(failure),
                    drained = timeout(config.shutdown_deadline, self.drain()) => Ok(Drained {
                        clean: drained.is_ok(),
                        upgrades: asked == Asked::Upgrade,
                    }),
                }
            }
            Err(failure) => Err(failure),
        };
        drained.map_err(|failure| {
            tracing::error!(event = "master_failed", error = %failure, "the master can't go on");
            ExitError::new(failure.exit(), failure)
        })
    }

    /// Does what signals ask for, until one asks for the end.
    async fn follow_signals(&mut self, config: &mut Config) -> Asked {
        // While it is there, the program that is to take over is being checked.
        let mut check: Option<Check> = None;
        loop {
            let signal = tokio::select! {
                signal = self.signals.next() => signal,
                verdict = Check::verdict(&mut check, || self.reactor.is_degraded()) => {
                    check = None;
                    match verdict {
                        Ok(()) => return self.upgrade_unless_stopped().await,
                        Err(_told) => continue,
                    }
                }
            };
            match signal {
                Signal::Stop(name) => return Asked::Stop(name),
                Signal::Reload => {
                    self.manager.reloading();
                    self.reload(config);
                    self.manager.reloaded();
                }
                Signal::ToggleLevel => {
                    let level = self.log.toggle_debug();
                    tracing::info!(
                        event = "log_level_changed",
                        level = level.as_str(),
                        "the log level was switched"
                    );
                }
                Signal::Upgrade if check.is_some() => {
                    tracing::info!(
                        event = "upgrade_under_way",
                        "SIGUSR2 again: the program is still being checked"
                    );
                }
                Signal::Upgrade => check = Check::start(self.program),
            }
        }
    }

    /// From now on requests wait for the program that takes over. One that has come just before would be
    /// lost with this one's runtime.
    async fn upgrade_unless_stopped(&mut self) -> Asked {
        // It could be done at the start.
        let _ = signal::hold();
        while let Ok(signal) = timeout(LAST_REQUESTS, self.signals.next()).await {
            if let Signal::Stop(name) = signal {
                return Asked::Stop(name);
            }
        }
        Asked::Upgrade
    }

    /// Says that the end begins, and to whom the connections are left.
    fn announce(&self, asked: Asked) {
        let parking = self.reactor.parking();
        let signal = match asked {
            Asked::Stop(name) => name,
            Asked::Upgrade => "SIGUSR2",
        };
        let hands_over = match asked {
            Asked::Stop(name) => parking.hand_over(name),
            Asked::Upgrade => parking.hand_over_to_oneself(),
        };
        tracing::info!(
            event = "master_stopping",
            signal,
            hands_over,
            "the master ends"
        );
        match asked {
            // The process goes on: its READY=1 comes from the program that takes over.
            Asked::Upgrade => self.manager.reloading(),
            Asked::Stop(_) if hands_over => self
                .manager
                .stopping("leaving the connections to the next process"),
            Asked::Stop(_) => self.manager.stopping("saying goodbye to the slaves"),
        }
    }

    /// Every connection is told goodbye, but for those that the next process goes on with, and what has
    /// arrived becomes durable.
    async fn drain(&self) {
        let Accepting {
            tasks, shut, stop, ..
        } = &self.accepting;
        let parking = self.reactor.parking();
        if !parking.is_handing_over() {
            // A copy would go on taking in whom nobody serves.
            parking.give_up_listeners();
        }
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
        let rules = match open_files() {
            Ok(files) => within(files, new.listen.clone()),
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
