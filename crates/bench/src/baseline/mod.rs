//! Bare servers to compare the master with, each in a process of its own: a child of this one.
//!
//! They answer the protocol's Hello and reports well enough for the very same client loop, and do
//! nothing else: no roll, no deadlines, no limits. They are no masters.

mod bare;
mod connect_loop;
mod echo;
mod group_commit;
mod wakeups;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, bail};
use clap::ValueEnum;
use rollcall_os::socket::{BACKLOG, listen};

/// A server to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// tokio, one thread, an ack for each report, memory only.
    Echo,
    /// epoll, one thread, and a log that another thread appends to and syncs in groups; acks are
    /// sent after the sync.
    GroupCommit,
    /// epoll, one thread: eight bytes for whatever comes first on a connection, then its end. It
    /// knows no protocol.
    ConnectLoop,
}

/// The child process, as its parent sees it. It ends when this is dropped, or when the parent dies.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    _stdin: ChildStdin,
    address: SocketAddr,
}

impl Server {
    /// Starts a server and waits until it listens.
    ///
    /// # Errors
    /// If it can't be started, or ends before it listens.
    pub(crate) fn start(kind: Kind, log_directory: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("can't find the own executable")?;
        let name = kind.to_possible_value().context("a kind without a name")?;
        let mut child = Command::new(program)
            .arg("baseline-server")
            .arg(name.get_name())
            .arg("--log-directory")
            .arg(log_directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start the baseline server")?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.context("the baseline server has no pipes")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        match line.trim().parse() {
            Ok(address) => Ok(Self {
                child,
                _stdin: stdin,
                address,
            }),
            Err(_) => {
                let status = child.wait()?;
                bail!("the baseline server did not come up ({status}); its message is above");
            }
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It is this process's own child and has not been waited for: no other can have its pid.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's side: listens on `address`, prints it with its port, and serves until its standard
/// input ends.
///
/// # Errors
/// If it can't listen, or its log can't be written.
pub(crate) fn serve(kind: Kind, log_directory: &Path, address: SocketAddr) -> anyhow::Result<()> {
    let listener = listen(address, BACKLOG)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", listener.local_addr()?)?;
    stdout.flush()?;
    match kind {
        Kind::Echo => echo::serve(listener),
        Kind::GroupCommit => group_commit::serve(listener, log_directory),
        Kind::ConnectLoop => connect_loop::serve(listener),
    }
}

/// Calls `ended` on a thread of its own once standard input ends: the parent is gone or wants no more.
fn when_stdin_ends(ended: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        // An error is an end as well.
        let _ = std::io::stdin().lock().read_to_end(&mut rest);
        ended();
    });
}
