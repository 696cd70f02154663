//! Signals as a stream of requests to the daemon.
//!
//! signal-hook's handlers only write to a pipe, so nothing runs in signal context but that.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_core::Stream;
use nix::sys::signal::{SigSet, Signal as Kernel};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};

/// All that ask for something.
const REQUESTS: [i32; 5] = [SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2];

/// What a signal asks the daemon to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT, by name: drain and stop.
    Stop(&'static str),
    /// SIGHUP: read the configuration again, dropping nothing.
    Reload,
    /// SIGUSR1: log level up to debug, and back.
    ToggleLevel,
    /// SIGUSR2: let a new version of the program take over, dropping nothing.
    Upgrade,
}

/// From now on requests wait in the kernel, for this thread and those that it starts, until
/// [`Signals::listen`]. They wait through execve(2) as well: none is lost to a program that becomes
/// another one, and none ends a program that has not come so far as to listen.
///
/// # Errors
/// What sigprocmask(2) says.
pub fn hold() -> io::Result<()> {
    requests()?.thread_block().map_err(io::Error::from)
}

fn requests() -> io::Result<SigSet> {
    let requests = REQUESTS.map(Kernel::try_from).into_iter();
    requests.collect::<Result<_, _>>().map_err(io::Error::from)
}

/// The signals of this process. Signals of one kind that arrive together may come out as one, and
/// those of different kinds in another order than they were sent.
pub struct Signals(signal_hook_tokio::Signals);

impl Signals {
    /// Takes over SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2. Also keeps SIGXFSZ from ending the
    /// process, so that a write past RLIMIT_FSIZE is an ordinary EFBIG; SIGPIPE is ignored by Rust's
    /// runtime. Child processes start with the default actions again.
    ///
    /// # Errors
    /// When the pipe or a handler cannot be set up (out of file descriptors).
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    pub fn new() -> io::Result<Self> {
        // Nobody reads the flag: the write that failed says everything. A handler in place of
        // SIG_IGN, because SIG_IGN would be inherited by check plugins.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        signal_hook_tokio::Signals::new(REQUESTS).map(Self)
    }

    /// Takes in what [`hold`] has held up, and what comes from now on. To be called on the thread that
    /// held it up.
    ///
    /// # Errors
    /// What sigprocmask(2) says.
    pub fn listen(&self) -> io::Result<()> {
        requests()?.thread_unblock().map_err(io::Error::from)
    }

    /// The next signal. Cancel safe: a signal that was not returned stays queued.
    pub async fn next(&mut self) -> Signal {
        loop {
            match poll_fn(|context| Pin::new(&mut self.0).poll_next(context)).await {
                Some(SIGTERM) => return Signal::Stop("SIGTERM"),
                Some(SIGINT) => return Signal::Stop("SIGINT"),
                Some(SIGHUP) => return Signal::Reload,
                Some(SIGUSR1) => return Signal::ToggleLevel,
                Some(SIGUSR2) => return Signal::Upgrade,
                Some(_) => {}
                // Only a closed handle ends the stream, and nobody has one.
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::{getpid, kill_process};

    use super::{Signal, Signals};

    /// One test, because all tests share the process and hence its signals.
    #[tokio::test]
    async fn each_signal_is_told_apart() {
        use rustix::process::Signal as Kernel;

        let mut signals = Signals::new().unwrap();
        for (sent, expected) in [
            (Kernel::TERM, Signal::Stop("SIGTERM")),
            (Kernel::INT, Signal::Stop("SIGINT")),
            (Kernel::HUP, Signal::Reload),
            (Kernel::USR1, Signal::ToggleLevel),
            (Kernel::USR2, Signal::Upgrade),
        ] {
            kill_process(getpid(), sent).unwrap();
            let received = tokio::time::timeout(Duration::from_secs(10), signals.next())
                .await
                .expect("the signal arrives");
            assert_eq!(received, expected);
        }
        // So would this.
        kill_process(getpid(), Kernel::XFSZ).unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(50), signals.next())
                .await
                .is_err()
        );
    }
}
