//! Whether the slave lives, for the service manager: its watchdog and a line in `systemctl status`.
//!
//! The link and the collector share the main thread: its sign of life is that of both. (A task of them
//! that ends or panics takes the daemon with it.) The spool has a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rollcall_os::clock;
use rollcall_os::systemd::notify::Pulse;
use rollcall_protocol::Moment;
use tokio::sync::watch;

use crate::spool::Figures;

/// How often the main thread gives a sign of life. Each costs about as much as a tenth of a report.
const BEAT_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked at, for the same reason.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How old it may be: enough for a machine that is busy with other things.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long the spool may be at one piece of work. A disk that refuses is tried again by itself; one that
/// hangs for so long may as well be a bug of ours.
const WORK_MAX: Duration = Duration::from_secs(300);

/// The main thread's signs of life.
#[derive(Clone, Debug)]
pub(crate) struct Beat(Arc<AtomicU64>);

impl Beat {
    /// The first one.
    pub(crate) fn new() -> Self {
        let beat = Self(Arc::default());
        beat.give();
        beat
    }

    /// Gives one after the other.
    pub(crate) async fn run(self) {
        loop {
            self.give();
            tokio::time::sleep(BEAT_EVERY).await;
        }
    }

    fn give(&self) {
        self.0.store(milliseconds(clock::boot()), Ordering::Relaxed);
    }

    fn silence(&self, now: Moment) -> Duration {
        let newest_ms = self.0.load(Ordering::Relaxed);
        Duration::from_millis(milliseconds(now).saturating_sub(newest_ms))
    }
}

/// Looks at the slave from outside of its main thread.
#[derive(Debug)]
pub(crate) struct Liveness {
    pub(crate) name: String,
    pub(crate) beat: Beat,
    pub(crate) spool: Arc<Figures>,
    /// The master that it reports to.
    pub(crate) session: watch::Receiver<Option<String>>,
}

impl Liveness {
    /// One look after the other.
    pub(crate) fn pulses(self) -> impl FnMut() -> Pulse + Send {
        move || self.look(clock::boot())
    }

    fn look(&self, now: Moment) -> Pulse {
        let reporting = match self.session.borrow().as_deref() {
            Some(master) => format!("reports to {master}"),
            None => "no master can be had; reports are kept".to_owned(),
        };
        let status = format!(
            "{}: {reporting}; backlog {}",
            self.name,
            self.spool.backlog()
        );
        match self.trouble(now) {
            None => Pulse {
                status,
                alive: true,
            },
            Some(trouble) => Pulse {
                status: format!("{trouble}; {status}"),
                alive: false,
            },
        }
    }

    fn trouble(&self, now: Moment) -> Option<String> {
        let silence = self.beat.silence(now);
        let busy = self.spool.busy_for(now);
        if silence > SILENCE_MAX {
            let seconds = silence.as_secs();
            Some(format!(
                "the main thread has given no sign of life for {seconds} s"
            ))
        } else if busy > WORK_MAX {
            let seconds = busy.as_secs();
            Some(format!("the spool hangs for {seconds} s"))
        } else {
            None
        }
    }
}

fn milliseconds(at: Moment) -> u64 {
    u64::try_from(at.since_origin().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn liveness() -> (watch::Sender<Option<String>>, Liveness) {
        let (sender, session) = watch::channel(None);
        let liveness = Liveness {
            name: "web-1".to_owned(),
            beat: Beat::new(),
            spool: Arc::default(),
            session,
        };
        (sender, liveness)
    }

    #[test]
    fn the_status_names_the_master_and_the_backlog() {
        let (sender, liveness) = liveness();
        let mut look = liveness.pulses();
        assert_eq!(
            look().status,
            "web-1: no master can be had; reports are kept; backlog 0"
        );
        sender.send_replace(Some("roll.example:7412".to_owned()));
        let pulse = look();
        assert_eq!(
            pulse.status,
            "web-1: reports to roll.example:7412; backlog 0"
        );
        assert!(pulse.alive);
    }

    #[test]
    fn a_silent_main_thread_is_not_alive() {
        let (_sender, liveness) = liveness();
        let now = clock::boot();
        assert!(liveness.look(now + SILENCE_MAX).alive);
        let pulse = liveness.look(now + SILENCE_MAX + BEAT_EVERY);
        assert!(!pulse.alive);
        assert!(
            pulse.status.starts_with("the main thread has given no"),
            "{pulse:?}"
        );
    }

    #[test]
    fn a_spool_that_hangs_is_not_alive() {
        let (_sender, liveness) = liveness();
        let now = clock::boot();
        liveness.beat.0.store(u64::MAX, Ordering::Relaxed);
        liveness.spool.begin(now);
        assert!(liveness.look(now + WORK_MAX).alive);
        let pulse = liveness.look(now + WORK_MAX + Duration::from_secs(1));
        assert!(!pulse.alive);
        assert!(
            pulse.status.starts_with("the spool hangs for 301 s"),
            "{pulse:?}"
        );
    }
}
