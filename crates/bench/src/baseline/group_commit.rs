//! The bare server with a log: epoll on one thread, and a second one that appends and syncs.
//!
//! ```text
//!   loop thread   read ──> batch ──────┐ as soon as the log is idle        ┌──> acks ──> write
//!   log thread                         └──> write, fdatasync ──> (waker) ──┘
//! ```
//! What arrives while a sync runs is the next group. Acks leave in one write per connection.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use anyhow::{Context, bail};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use super::bare::{Item, Peer, append, append_ack, read_buffer};
use super::wakeups::{EVENTS_MAX, LISTENER, WAKER, WakeUps};

/// The log is written over from its start when it has grown to this size, so that a long run does
/// not fill the disk.
const LOG_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What is committed together.
#[derive(Debug, Default)]
struct Group {
    log: Vec<u8>,
    /// One for each connection that has reports in the group.
    acks: Vec<Due>,
}

impl Group {
    /// One ack covers all reports of a connection in the group; `place` is where it stood last.
    fn add(&mut self, place: &mut usize, due: Due) {
        let key = |due: &Due| (due.at, due.generation, due.stream);
        match self.acks.get_mut(*place) {
            Some(earlier) if key(earlier) == key(&due) => *earlier = due,
            _ => {
                *place = self.acks.len();
                self.acks.push(due);
            }
        }
    }
}

/// An ack that is due: of the connection at this place, if it is still the one of this generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    at: usize,
    generation: u64,
    stream: u64,
    sequence: u64,
}

/// Serves until standard input ends.
///
/// # Errors
/// If the log can't be written or the poll fails.
pub(super) fn serve(listener: TcpListener, log_directory: &Path) -> anyhow::Result<()> {
    let log = tempfile::tempfile_in(log_directory)
        .with_context(|| format!("can't make a log in {}", log_directory.display()))?;
    let WakeUps {
        poll,
        listener,
        waker,
        end,
    } = WakeUps::new(listener)?;
    let (to_log, groups) = sync_channel(1);
    let (done, committed) = sync_channel(1);
    let log_waker = Arc::clone(&waker);
    std::thread::spawn(move || {
        // The loop learns of an error by the end of the channel.
        let result = write_log(log, &groups, &done, &log_waker);
        drop(done);
        if let Err(error) = result.and_then(|()| log_waker.wake()) {
            eprintln!("the baseline's log: {error}");
        }
    });
    let server = Server {
        poll,
        listener,
        connections: Vec::new(),
        free: Vec::new(),
        generation: 0,
        buffer: read_buffer(),
        out: Vec::new(),
        gathering: Group::default(),
        log_idle: Some(Group::default()),
    };
    server.run(&to_log, &committed, &end)
}

fn write_log(
    mut log: File,
    groups: &Receiver<Group>,
    done: &SyncSender<Group>,
    waker: &Waker,
) -> io::Result<()> {
    let mut written = 0;
    while let Ok(group) = groups.recv() {
        if written > LOG_BYTES_MAX {
            log.rewind()?;
            written = 0;
        }
        log.write_all(&group.log)?;
        log.sync_data()?;
        written += u64::try_from(group.log.len()).unwrap_or(u64::MAX);
        if done.send(group).is_err() {
            break;
        }
        waker.wake()?;
    }
    Ok(())
}

struct Connection {
    stream: TcpStream,
    generation: u64,
    peer: Peer,
    /// Where its ack stands in the group, if it has one there.
    due_at: usize,
    /// What the kernel would not take yet, or what waits for the ack.
    unsent: Vec<u8>,
    /// Shut down for writing: only the end of the stream is awaited.
    closing: bool,
}

struct Server {
    poll: Poll,
    listener: mio::net::TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    generation: u64,
    buffer: Box<[u8]>,
    out: Vec<u8>,
    /// The next group.
    gathering: Group,
    /// An empty group whose buffers are used again; `None` while the log thread is busy.
    log_idle: Option<Group>,
}

impl Server {
    fn run(
        mut self,
        to_log: &SyncSender<Group>,
        committed: &Receiver<Group>,
        end: &Receiver<()>,
    ) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    WAKER => {}
                    Token(at) => self.ready(at, event),
                }
            }
            if end.try_recv() == Err(TryRecvError::Disconnected) {
                return Ok(());
            }
            match committed.try_recv() {
                Ok(group) => self.release(group),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => bail!("the log failed"),
            }
            if !self.gathering.acks.is_empty()
                && let Some(empty) = self.log_idle.take()
            {
                let group = std::mem::replace(&mut self.gathering, empty);
                to_log.send(group).ok().context("the log failed")?;
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let at = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(&mut stream, Token(at), interest)?;
            self.generation += 1;
            self.connections[at] = Some(Connection {
                stream,
                generation: self.generation,
                peer: Peer::default(),
                due_at: 0,
                unsent: Vec::new(),
                closing: false,
            });
        }
    }

    fn ready(&mut self, at: usize, event: &mio::event::Event) {
        let Some(connection) = self.connections.get_mut(at).and_then(Option::as_mut) else {
            return;
        };
        let flushed = if event.is_writable() {
            connection.flush(&[])
        } else {
            Ok(())
        };
        let to_the_end = event.is_read_closed();
        let open = flushed.and_then(|()| {
            if event.is_readable() || to_the_end {
                connection.read(at, &mut self.buffer, &mut self.gathering, to_the_end)
            } else {
                Ok(true)
            }
        });
        // A broken connection is the client's to count.
        if !open.unwrap_or(false) {
            self.connections[at] = None;
            self.free.push(at);
        }
    }

    /// The group is on disk: its acks may leave.
    fn release(&mut self, mut group: Group) {
        for due in &group.acks {
            let connection = self.connections[due.at].as_mut();
            let Some(connection) = connection.filter(|open| open.generation == due.generation)
            else {
                continue;
            };
            self.out.clear();
            append_ack(due.stream, due.sequence, &mut self.out);
            // An error shows at the next read as well.
            let _ = connection.flush(&self.out);
            if connection.peer.is_complete() {
                let _ = connection.stream.shutdown(Shutdown::Write);
                connection.closing = true;
            }
        }
        group.acks.clear();
        group.log.clear();
        self.log_idle = Some(group);
    }
}

impl Connection {
    /// Reads what is there into the group; `false` at the end of the stream.
    fn read(
        &mut self,
        at: usize,
        buffer: &mut [u8],
        group: &mut Group,
        to_the_end: bool,
    ) -> io::Result<bool> {
        loop {
            let count = match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut newest = None;
            let mut welcome = None;
            self.peer.feed(&buffer[..count], |item| match item {
                Item::Welcome(message) => welcome = Some(message),
                Item::Report {
                    stream,
                    sequence,
                    frame,
                } => {
                    group.log.extend_from_slice(frame);
                    newest = Some((stream, sequence));
                }
            })?;
            if let Some((stream, sequence)) = newest {
                let generation = self.generation;
                group.add(
                    &mut self.due_at,
                    Due {
                        at,
                        generation,
                        stream,
                        sequence,
                    },
                );
            }
            if let Some(welcome) = welcome {
                append(&welcome, &mut self.unsent)?;
                if !self.peer.is_per_message() {
                    self.flush(&[])?;
                }
            }
            if count < buffer.len() && !to_the_end {
                return Ok(true);
            }
        }
    }

    /// Sends what waits and then `bytes`, in one write if the kernel takes it.
    fn flush(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.closing {
            return Ok(());
        }
        let waiting = !self.unsent.is_empty();
        if waiting {
            self.unsent.extend_from_slice(bytes);
        }
        let all = if waiting { &self.unsent } else { bytes };
        let mut taken = 0;
        while taken < all.len() {
            match self.stream.write(&all[taken..]) {
                Ok(count) => taken += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if !waiting {
            self.unsent.extend_from_slice(&bytes[taken..]);
        } else if taken == self.unsent.len() {
            self.unsent = Vec::new();
        } else {
            self.unsent.drain(..taken);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_one_ack_in_a_group_and_it_is_the_newest() {
        let due = |at, sequence| Due {
            at,
            generation: 1,
            stream: 7,
            sequence,
        };
        let mut group = Group::default();
        let (mut first, mut second) = (0, 0);
        group.add(&mut second, due(1, 5));
        group.add(&mut first, due(0, 1));
        group.add(&mut second, due(1, 9));
        group.add(&mut first, due(0, 2));
        assert_eq!(group.acks, [due(1, 9), due(0, 2)]);
        // The next group begins anew, wherever the places point.
        let mut next = Group::default();
        next.add(&mut first, due(0, 3));
        next.add(&mut second, due(1, 10));
        assert_eq!(next.acks, [due(0, 3), due(1, 10)]);
    }
}
