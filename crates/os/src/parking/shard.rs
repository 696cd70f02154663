//! One shard and what lies where in its queue.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::mark::is_over;
use super::queue::{Message, Queue};
use super::{CONNECTIONS_PER_SHARD, Parked, Place};

/// Ended connections in a queue after which it is turned. It costs one look, one copy and one removal
/// for each of the others.
const ENDED_MAX: usize = CONNECTIONS_PER_SHARD / 2;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Shard {
    queue: Queue,
    /// The tickets of what lies in the queue, in order.
    order: VecDeque<u32>,
    /// Those of it that have ended.
    ended: HashSet<u32>,
    next_ticket: u32,
}

impl Shard {
    /// An empty one.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self::of(Queue::new()?))
    }

    fn of(queue: Queue) -> Self {
        Self {
            queue,
            order: VecDeque::new(),
            ended: HashSet::new(),
            next_ticket: 0,
        }
    }

    /// The one of a process before, under its `number`. Each connection in it that has not ended and is
    /// not in `seen` is added to `parked`.
    ///
    /// # Errors
    /// It can't be read, or not to its end.
    pub(super) fn adopt(
        number: NonZeroU32,
        ends: Vec<OwnedFd>,
        seen: &mut HashSet<u64>,
        parked: &mut Vec<Parked>,
    ) -> io::Result<Self> {
        let ends = ends.try_into();
        let ends = ends.map_err(|_| io::Error::other("it needs both ends of a pair"))?;
        let mut shard = Self::of(Queue::from_ends(ends)?);
        let turn = getrandom::u64().map_err(io::Error::other)?;
        shard.queue.push_marker(turn)?;
        while let Some(message) = shard.queue.first()? {
            match message {
                Message::Marker(it) if it == turn => {
                    shard.queue.pop()?;
                    break;
                }
                // A turn that was not ended.
                Message::Marker(_) => shard.queue.pop()?,
                Message::Connection {
                    socket,
                    cookie,
                    record,
                } => {
                    let is_wanted = !is_over(&socket)? && seen.insert(cookie);
                    let ticket = is_wanted.then(|| shard.park(socket.as_fd(), &record));
                    shard.queue.pop()?;
                    if is_wanted {
                        parked.push(Parked {
                            socket,
                            record,
                            // Without room for it, it is served and not parked.
                            place: ticket.and_then(Result::ok).map(|ticket| Place {
                                shard: number,
                                ticket,
                            }),
                        });
                    }
                }
            }
        }
        Ok(shard)
    }

    /// Both ends of its pair.
    pub(super) fn ends(&self) -> [BorrowedFd<'_>; 2] {
        self.queue.ends()
    }

    /// The same, for another process.
    pub(super) fn into_ends(self) -> [OwnedFd; 2] {
        self.queue.into_ends()
    }

    /// Whether one more connection fits.
    pub(super) fn has_room(&self) -> bool {
        self.order.len() < CONNECTIONS_PER_SHARD
    }

    /// Connections in it that have not ended.
    pub(super) fn live(&self) -> usize {
        self.order.len() - self.ended.len()
    }

    /// Takes in one more, and returns its ticket.
    pub(super) fn park(&mut self, socket: BorrowedFd<'_>, record: &[u8]) -> io::Result<u32> {
        self.queue.push(socket, record)?;
        let ticket = self.next_ticket;
        self.next_ticket = ticket.wrapping_add(1);
        self.order.push_back(ticket);
        Ok(ticket)
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, ticket: u32) -> io::Result<()> {
        self.ended.insert(ticket);
        while let Some(first) = self.order.front()
            && self.ended.contains(first)
        {
            self.take_first()?;
        }
        if self.ended.len() >= ENDED_MAX {
            self.turn()?;
        }
        Ok(())
    }

    /// Takes a connection out.
    pub(super) fn evict(&mut self, ticket: u32) -> io::Result<()> {
        self.ended.insert(ticket);
        self.turn()
    }

    /// Turns the queue once; what has ended is gone then.
    fn turn(&mut self) -> io::Result<()> {
        for _ in 0..self.order.len() {
            let Some(&first) = self.order.front() else {
                break;
            };
            if !self.ended.contains(&first) {
                if let Some(Message::Connection { socket, record, .. }) = self.queue.first()? {
                    self.queue.push(socket.as_fd(), &record)?;
                }
                // It keeps its ticket.
                self.order.push_back(first);
            }
            self.take_first()?;
        }
        Ok(())
    }

    fn take_first(&mut self) -> io::Result<()> {
        self.queue.pop()?;
        if let Some(first) = self.order.pop_front() {
            self.ended.remove(&first);
        }
        Ok(())
    }
}
