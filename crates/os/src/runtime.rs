//! The runtime of a daemon: one thread for everything that must not wait.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, anyhow};
use tokio::task::LocalSet;

use crate::exit::{Exit, ExitError};

/// Runs `daemon` to its end on one thread, with the local tasks that it spawns.
///
/// # Errors
/// What the daemon returns; [`Exit::Internal`] if it panics itself. (A task that it has spawned
/// reports its panic to whoever waits for it.)
///
/// # Panics
/// Inside of another runtime.
pub fn run<F, T>(daemon: F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    let running = || LocalSet::new().block_on(&runtime, daemon);
    catch_unwind(AssertUnwindSafe(running)).unwrap_or_else(|_panic| {
        let error = anyhow!("the daemon itself panicked; the log tells where");
        Err(ExitError::new(Exit::Internal, error).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_internal_failure() {
        let error = run::<_, ()>(async { panic!("planted") }).unwrap_err();
        let exit = error.downcast_ref::<ExitError>().map(|error| error.exit);
        assert_eq!(exit, Some(Exit::Internal));
    }

    #[test]
    fn local_tasks_run() {
        run(async {
            let task = tokio::task::spawn_local(async { 7 });
            assert_eq!(task.await?, 7);
            Ok(())
        })
        .unwrap();
    }
}
