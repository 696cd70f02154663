//! Back to the most preferred master, once it has been there again for a while.
//!
//! The session with the less preferred one goes on meanwhile: it is not given up for a master that
//! may not be there. What is asked is whether it can be connected to, several times in a row; each
//! of these connections is reset at once, so that nothing is left of it on either side.

use std::time::Duration;

use rollcall_os::outgoing::reset_on_close;
use tokio::task::JoinSet;

use super::dial::Dialer;
use crate::random;

/// How often it must have been there, in a row.
const REACHED: u32 = 4;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Failback {
    watch: JoinSet<()>,
}

impl Failback {
    /// Begins to look for `master`, unless that is being done.
    pub(super) fn begin(&mut self, master: &str, dialer: &Dialer, after: Duration) {
        if self.watch.is_empty() {
            let (master, dialer) = (master.to_owned(), dialer.clone());
            self.watch.spawn(reached(master, dialer, after));
        }
    }

    /// Ends it.
    pub(super) fn end(&mut self) {
        // It is aborted.
        self.watch = JoinSet::new();
    }

    /// Waits until the master has been there for long enough. Never returns if nobody is looking
    /// for it. Cancel safe.
    pub(super) async fn found(&mut self) {
        match self.watch.join_next().await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => std::future::pending().await,
        }
    }

    /// Whether it has.
    pub(super) fn is_found(&mut self) -> bool {
        matches!(self.watch.try_join_next(), Some(Ok(())))
    }
}

/// Asks [`REACHED`] times over `after`, up to half as long again so that not all slaves go back
/// together.
async fn reached(master: String, dialer: Dialer, after: Duration) {
    let pause = after / REACHED;
    let mut reached = 0;
    while reached < REACHED {
        tokio::time::sleep(pause + pause.mul_f64(0.5 * random::unit())).await;
        match dialer.dial(&master).await {
            Ok(stream) => {
                // It is closed in order if that fails, and there is nothing to lose either way.
                let _ = reset_on_close(&stream, true);
                reached += 1;
            }
            Err(_) => reached = 0,
        }
    }
}
