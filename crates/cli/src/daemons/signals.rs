//! The signals that end this program.

use std::io;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Calls `tell` with a name for people at each signal that ends this program, from now on and until
/// it returns false.
pub(crate) fn on_stop_signal(
    tell: impl Fn(&'static str) -> bool + Send + 'static,
) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                let name = match signal {
                    SIGINT => "interrupted",
                    SIGHUP => "terminal closed",
                    _ => "SIGTERM",
                };
                if !tell(name) {
                    return;
                }
            }
        })
        .map(drop)
}
