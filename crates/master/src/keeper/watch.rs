//! When the master is started, left alone and killed: no I/O and no clock.
//!
//! ```text
//!            ┌── due ──> starts ─ READY=1 ─> is ready ── silent too long ──> killed ──┐
//!          pauses      └─────────── not ready in time ─────────────────────> killed ──┤
//!            └──────────────────────────── ended, and to be started again <───────────┘
//!                       asked to end, or a person must change something: over
//! ```

use std::process::ExitStatus;
use std::time::Duration;

use rollcall_os::exit::Exit;
use rollcall_protocol::Moment;
use rustix::process::Signal;

/// A master that is ready and silent for longer is killed. It is told to speak four times as often.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A master that is not ready after so long is killed: as TimeoutStartSec= of the unit, since a store that was
/// not closed in order is read whole first, and one of an older version is migrated.
pub(super) const START_MAX: Duration = Duration::from_secs(15 * 60);
/// Between an end and the next start.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The same after many ends in a row, each soon after its start.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Whoever was ready for so long has not ended soon.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Start the master.
    Start,
    /// Kill it, for this reason.
    Kill(&'static str),
}

/// What follows the end of a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another start, after this pause.
    Again(Duration),
    /// The keeper ends, too.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody runs until then.
    Pauses { until: Moment },
    /// It has not said that it is ready yet, or reads its configuration again, or becomes another version.
    Starts { since: Moment },
    /// It was heard last at `heard`.
    IsReady { since: Moment, heard: Moment },
    /// It will be gone soon.
    Killed { since: Option<Moment> },
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Watch {
    state: State,
    /// Ends in a row that came soon after their start.
    soon: u32,
    /// Signals for a master that could not take them yet.
    waiting: Vec<Signal>,
    /// Asked to end: when it has to be over.
    over_by: Option<Moment>,
}

impl Watch {
    /// Nobody runs yet.
    pub(super) const fn new(now: Moment) -> Self {
        Self {
            state: State::Pauses { until: now },
            soon: 0,
            waiting: Vec::new(),
            over_by: None,
        }
    }

    /// When [`Self::poll`] has something to do, if nothing happens before.
    pub(super) fn wake_at(&self) -> Option<Moment> {
        match self.state {
            State::Killed { .. } => None,
            _ if self.over_by.is_some() => self.over_by,
            State::Pauses { until } => Some(until),
            State::Starts { since } => Some(since + START_MAX),
            State::IsReady { heard, .. } => Some(heard + SILENCE_MAX),
        }
    }

    /// What is due. A master that was killed stays so until its end.
    pub(super) fn poll(&mut self, now: Moment) -> Option<Action> {
        if self.wake_at().is_none_or(|at| now < at) {
            return None;
        }
        let (since, reason) = match self.state {
            State::Pauses { .. } => return Some(Action::Start),
            State::IsReady { since, .. } if self.over_by.is_none() => {
                (Some(since), "it was silent for too long")
            }
            State::Starts { .. } if self.over_by.is_none() => (None, "it was not ready in time"),
            _ => (None, "it did not end in time"),
        };
        self.state = State::Killed { since };
        Some(Action::Kill(reason))
    }

    /// It was started.
    pub(super) fn handle_start(&mut self, now: Moment) {
        self.state = State::Starts { since: now };
    }

    /// It said something. Returns the signals that it can take now.
    pub(super) fn handle_word(&mut self, now: Moment, says: impl Fn(&str) -> bool) -> Vec<Signal> {
        match &mut self.state {
            State::Starts { .. } if says("READY=1") => {
                self.state = State::IsReady {
                    since: now,
                    heard: now,
                };
                // What asked it to end may have come to the program that it was before.
                return match self.over_by {
                    Some(_) => vec![Signal::INT],
                    None => std::mem::take(&mut self.waiting),
                };
            }
            State::IsReady { .. } if says("RELOADING=1") => {
                self.state = State::Starts { since: now };
            }
            State::IsReady { heard, .. } => *heard = now,
            _ => {}
        }
        Vec::new()
    }

    /// The keeper itself did not run for a while: nobody's silence counts.
    pub(super) fn handle_lag(&mut self, now: Moment) {
        if let State::IsReady { heard: since, .. } | State::Starts { since } = &mut self.state {
            *since = now;
        }
    }

    /// A signal is to be passed on. Returns whether it may be now: one that comes before the master has
    /// its handlers would end it, so it waits until the master is ready.
    pub(super) fn handle_signal(&mut self, signal: Signal) -> bool {
        if matches!(self.state, State::IsReady { .. }) {
            return true;
        }
        if !self.waiting.contains(&signal) {
            self.waiting.push(signal);
        }
        false
    }

    /// All is to end, by `by`. Returns whether a master has to be told.
    pub(super) fn handle_stop(&mut self, by: Moment) -> bool {
        self.over_by.get_or_insert(by);
        !matches!(self.state, State::Pauses { .. })
    }

    /// Whether all is to end.
    pub(super) const fn is_stopping(&self) -> bool {
        self.over_by.is_some()
    }

    /// Nobody runs any more, or could be started (`None`).
    pub(super) fn handle_end(&mut self, now: Moment, status: Option<ExitStatus>) -> Next {
        let code = status.and_then(|status| status.code());
        let by_a_person = [Exit::Usage, Exit::Config].map(|exit| Some(i32::from(exit.code())));
        if self.is_stopping() || by_a_person.contains(&code) {
            return Next::Over;
        }
        let since = match self.state {
            State::IsReady { since, .. } => Some(since),
            State::Killed { since } => since,
            State::Pauses { .. } | State::Starts { .. } => None,
        };
        let is_good = since.is_some_and(|since| {
            // Whoever was asked to end, for a restart, has not failed.
            code == Some(0) || now.saturating_since(since) >= GOOD_AFTER
        });
        if is_good {
            self.soon = 0;
        }
        let pause = PAUSE_MIN.saturating_mul(1 << self.soon).min(PAUSE_MAX);
        self.soon = if is_good { 0 } else { (self.soon + 1).min(16) };
        self.state = State::Pauses { until: now + pause };
        Next::Again(pause)
    }
}
