//! What the service manager is told (sd_notify(3)): ready, reloading, stopping, a line for
//! `systemctl status`, and the watchdog.
//!
//! Status and watchdog are a thread's job. It looks at the daemon from outside, as a reader of
//! `/healthz` does: a daemon that hangs can't feed its own watchdog, and a service manager that hangs
//! holds up nothing but this thread.

use std::env;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::log::is_dangerous;

/// How often the status is looked at; it is told when it has changed.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// The watchdog is fed this many times in its time.
const FEEDS: u32 = 4;

/// How the daemon stands, as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulse {
    /// For `systemctl status`: one line.
    pub status: String,
    /// Whether all parts make progress. If not, the watchdog goes hungry.
    pub alive: bool,
}

/// The service manager that waits for this process's word; without NOTIFY_SOCKET there is none, and
/// nothing here has an effect.
#[derive(Debug, Default)]
pub struct Manager {
    told: bool,
    /// Tells the thread that the daemon ends; without it the thread ends.
    watching: Option<mpsc::Sender<()>>,
}

impl Manager {
    /// The one that started this process.
    pub fn find() -> Self {
        Self {
            told: env::var_os("NOTIFY_SOCKET").is_some_and(|path| !path.is_empty()),
            watching: None,
        }
    }

    /// Whether there is one.
    pub const fn is_there(&self) -> bool {
        self.told
    }

    /// Tells that the daemon does its work; `status` is shown until a pulse is looked at.
    pub fn ready(&self, status: &str) {
        let status = one_line(status);
        self.tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// Tells that the configuration is being read again; [`Self::reloaded`] has to follow. The time goes
    /// with it, by which systemd 253 and later pair the two.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_no_clock) => self.tell(&[NotifyState::Reloading]),
        }
    }

    /// Tells that the configuration is in force, whether it is the new one or, for its faults, the old.
    pub fn reloaded(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// Tells that the daemon ends, and why it may take a while. The status stays; the watchdog is fed on.
    pub fn stopping(&self, status: &str) {
        if let Some(stopping) = &self.watching {
            // The thread has gone only if it panicked.
            let _ = stopping.send(());
        }
        let status = one_line(status);
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&status)]);
    }

    /// Has a thread look at the daemon every two seconds for as long as this value lives.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn watch(&mut self, look: impl FnMut() -> Pulse + Send + 'static) -> io::Result<()> {
        self.watch_every(STATUS_EVERY, look)
    }

    /// The same, as often as `every`, or more often if the watchdog has to be fed more often.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn watch_every(
        &mut self,
        every: Duration,
        look: impl FnMut() -> Pulse + Send + 'static,
    ) -> io::Result<()> {
        if !self.told {
            return Ok(());
        }
        let feed_every = sd_notify::watchdog_enabled().map(|limit| limit / FEEDS);
        let (sender, stopping) = mpsc::channel();
        thread::Builder::new()
            .name("systemd".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || watch(every, look, feed_every, &stopping, tell))?;
        self.watching = Some(sender);
        Ok(())
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.told {
            tell(states);
        }
    }
}

/// A service manager that does not listen is no reason to end.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(event = "manager_not_told", error = %error, "the service manager can't be told");
    }
}

/// Looks and tells until the sender is gone; after a message only the watchdog is fed.
fn watch(
    every: Duration,
    mut look: impl FnMut() -> Pulse,
    feed_every: Option<Duration>,
    stopping: &mpsc::Receiver<()>,
    tell: impl Fn(&[NotifyState<'_>]),
) {
    let every = feed_every.map_or(every, |feed| feed.min(every));
    let mut told = String::new();
    let mut is_stopping = false;
    loop {
        let Pulse { status, alive } = look();
        let mut states = Vec::with_capacity(2);
        let status = one_line(&status);
        if !is_stopping && status != told {
            states.push(NotifyState::Status(&status));
        }
        if alive && feed_every.is_some() {
            states.push(NotifyState::Watchdog);
        }
        if !states.is_empty() {
            tell(&states);
        }
        told = status;
        match stopping.recv_timeout(every) {
            Ok(()) => is_stopping = true,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// A line break would begin another assignment of the protocol.
fn one_line(text: &str) -> String {
    text.replace(is_dangerous, " ")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What is told over the looks at these pulses.
    fn told(pulses: &[(&str, bool)], feed: bool, stop_after: usize) -> Vec<String> {
        let (sender, stopping) = mpsc::channel();
        let sender = Arc::new(Mutex::new(Some(sender)));
        let mut left = pulses
            .iter()
            .map(|(status, alive)| Pulse {
                status: (*status).to_owned(),
                alive: *alive,
            })
            .collect::<Vec<_>>()
            .into_iter();
        let mut seen = 0;
        let look = move || {
            let pulse = left.next().unwrap();
            seen += 1;
            let mut sender = sender.lock().unwrap();
            if seen == stop_after {
                sender.as_ref().unwrap().send(()).unwrap();
            }
            if left.len() == 0 {
                *sender = None;
            }
            pulse
        };
        let heard = RefCell::new(Vec::new());
        let feed_every = feed.then_some(Duration::from_millis(1));
        watch(STATUS_EVERY, look, feed_every, &stopping, |states| {
            let line: Vec<_> = states.iter().map(ToString::to_string).collect();
            heard.borrow_mut().push(line.join(" "));
        });
        heard.into_inner()
    }

    #[test]
    fn a_status_is_told_when_it_has_changed() {
        let pulses = [("a", true), ("a", true), ("b", true)];
        assert_eq!(
            told(&pulses, true, usize::MAX),
            ["STATUS=a WATCHDOG=1", "WATCHDOG=1", "STATUS=b WATCHDOG=1"]
        );
    }

    #[test]
    fn a_daemon_that_hangs_feeds_no_watchdog() {
        let pulses = [("a", false), ("a", false), ("a", true)];
        assert_eq!(told(&pulses, true, usize::MAX), ["STATUS=a", "WATCHDOG=1"]);
    }

    #[test]
    fn a_daemon_that_stops_keeps_its_last_word_and_feeds_on() {
        let pulses = [("a", true), ("b", true)];
        assert_eq!(
            told(&pulses, true, 1),
            ["STATUS=a WATCHDOG=1", "WATCHDOG=1"]
        );
    }

    #[test]
    fn without_a_watchdog_none_is_fed_and_no_line_is_forged() {
        assert_eq!(
            told(&[("a\nMAINPID=1", true)], false, usize::MAX),
            ["STATUS=a MAINPID=1"]
        );
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        let mut manager = Manager::default();
        manager.watch(|| panic!("nobody looks")).unwrap();
        manager.ready("ready");
        manager.reloading();
        manager.reloaded();
        manager.stopping("stopping");
        assert!(manager.watching.is_none());
    }
}
