//! A child's output: read to its end so that the child never blocks, kept up to a cap.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// How much is kept of each of standard output and standard error.
pub(crate) const BYTES_MAX: usize = 64 * 1024;
const CHUNK_BYTES: usize = 4096;

/// Both pipes of a child.
pub(crate) struct Drain {
    stdout: Capped,
    stderr: Capped,
}

impl Drain {
    /// # Errors
    /// If a pipe can't be registered with the runtime.
    pub(crate) fn new(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            stdout: Capped::new(stdout)?,
            stderr: Capped::new(stderr)?,
        })
    }

    /// Reads until nobody holds the writing ends any more. Cancel safe.
    pub(crate) async fn read_to_end(&mut self) {
        while !(self.stdout.at_end && self.stderr.at_end) {
            tokio::select! {
                () = self.stdout.read(), if !self.stdout.at_end => {}
                () = self.stderr.read(), if !self.stderr.at_end => {}
            }
        }
    }

    /// Reads, and waits for ever at the end. Cancel safe.
    pub(crate) async fn forever(&mut self) -> Infallible {
        self.read_to_end().await;
        std::future::pending().await
    }

    /// What was kept of standard output and standard error.
    pub(crate) fn into_output(self) -> (Vec<u8>, Vec<u8>) {
        (self.stdout.into_kept(), self.stderr.into_kept())
    }
}

struct Capped {
    pipe: pipe::Receiver,
    kept: Vec<u8>,
    overflowed: bool,
    at_end: bool,
}

impl Capped {
    fn new(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            pipe: pipe::Receiver::from_owned_fd(pipe)?,
            kept: Vec::new(),
            overflowed: false,
            at_end: false,
        })
    }

    async fn read(&mut self) {
        let mut chunk = [0; CHUNK_BYTES];
        match self.pipe.read(&mut chunk).await {
            Ok(0) | Err(_) => self.at_end = true,
            Ok(count) => {
                let room = BYTES_MAX - self.kept.len();
                self.overflowed |= count > room;
                self.kept.extend_from_slice(&chunk[..count.min(room)]);
            }
        }
    }

    /// What was kept; where something was left out, without the last word: half a figure is a
    /// wrong figure.
    fn into_kept(mut self) -> Vec<u8> {
        if self.overflowed {
            let end = self.kept.iter().rposition(u8::is_ascii_whitespace);
            self.kept.truncate(end.unwrap_or(self.kept.len()));
        }
        self.kept
    }
}
