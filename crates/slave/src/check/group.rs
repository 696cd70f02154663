//! A process group: seen to end, killed whole, and reaped last.

use std::io;
use std::process::{Child, ExitStatus};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::signal::unix::Signal as Signals;

/// A group and its leader. If it is dropped before the leader was reaped, the group is killed.
#[derive(Debug)]
pub(crate) struct Group {
    /// `None` once it is reaped.
    leader: Option<Child>,
}

impl Group {
    /// Takes over `leader`, which must have been started as the leader of a group of its own.
    pub(crate) fn new(leader: Child) -> Self {
        Self {
            leader: Some(leader),
        }
    }

    /// Waits until the leader has exited, and leaves it a zombie. `exits` must have been
    /// registered for SIGCHLD before the leader was started. Cancel safe.
    pub(crate) async fn exited(&mut self, exits: &mut Signals) {
        while !self.has_exited() {
            exits.recv().await;
        }
    }

    fn has_exited(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        self.leader.as_ref().is_none_or(|leader| {
            let status = waitid(WaitId::Pid(Pid::from_child(leader)), options);
            // An error (ECHILD) means that there is nothing left to wait for.
            !matches!(status, Ok(None))
        })
    }

    /// Sends a signal to every member. Nothing is sent once the leader is reaped: the group's
    /// number may belong to others then.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(leader) = &self.leader {
            // ESRCH and EPERM leave nothing to be done: nobody is there, or nobody is ours.
            let _ = kill_process_group(Pid::from_child(leader), signal);
        }
    }

    /// Takes the leader's exit status; `None` while it has not exited.
    ///
    /// # Errors
    /// If the status is lost.
    pub(crate) fn reap(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = match &mut self.leader {
            Some(leader) => leader.try_wait(),
            None => Err(io::Error::other("reaped before")),
        };
        if !matches!(status, Ok(None)) {
            self.leader = None;
        }
        status
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if matches!(self.reap(), Ok(None))
            && let Some(mut leader) = self.leader.take()
        {
            // It dies as soon as the kernel lets it; a thread may wait for that, the agent may not.
            // Without a thread it stays a zombie until the agent ends.
            let thread = std::thread::Builder::new().name("check-reap".to_owned());
            let _ = thread.spawn(move || leader.wait());
        }
    }
}
