//! Parking: established connections outlive the process that serves them.
//!
//! A descriptor that lies in the queue of a socket pair is open for as long as somebody holds the
//! pair. So somebody who outlives the process (the [`Keeper`]: systemd's descriptor store) is given
//! both ends of some pairs, and every connection is sent into one of them and never received. The
//! successor looks at the queues, which leaves them as they are, and goes on:
//!
//! ```text
//!   process ── a copy of each connection ──> ┌───────── shard 1 ─────────┐
//!                                            │ entrance > c1 c2 c3 > exit │── both ends ──> keeper
//!   successor <── looks ──────────────────── └───────────────────────────┘
//! ```
//! The keeper holds two descriptors for each [`CONNECTIONS_PER_SHARD`] connections, because a store
//! of one for each is too slow from some hundreds on: systemd compares a new one with all of them.
//!
//! A connection that has ended stays in its queue until the queue is turned, so whoever ends one has
//! to shut it down ([`shut_down`]).

mod mark;
mod queue;
mod shard;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{BorrowedFd, OwnedFd};

pub use mark::{Mark, find, has_room, is_over, leave, shut_down};
use shard::Shard;

/// Connections in one shard, ended ones that still lie there included. The kernel's buffer has room
/// for half as many again.
pub const CONNECTIONS_PER_SHARD: usize = 200;
/// Longest record of a connection, in bytes.
pub const RECORD_BYTES_MAX: usize = 512;
/// Descriptors that the keeper holds for one shard.
pub const DESCRIPTORS_PER_SHARD: usize = 2;
/// Shards at most, for a million connections: the names of all their ends travel in one string of the
/// environment, LISTEN_FDNAMES, and the kernel takes none above 128 KiB (execve(2)).
pub const SHARDS_MAX: usize = 5000;
/// Before the number of a shard in the name that the keeper knows it by.
const NAME_BEGIN: char = 'p';

/// Who holds descriptors for the next process.
pub trait Keeper {
    /// Holds copies of `descriptors` under `name`.
    ///
    /// # Errors
    /// It can't be reached. Whether it does as it was told is not known.
    fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()>;

    /// Closes what it holds under `name`.
    ///
    /// # Errors
    /// It can't be reached.
    fn forget(&self, name: &str) -> io::Result<()>;
}

/// `None`: the process itself, which has both ends anyway. What is parked does not outlive it then,
/// unless it passes the ends on ([`Lot::into_ends`]).
impl<K: Keeper> Keeper for Option<K> {
    fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        match self {
            Some(keeper) => keeper.keep(name, descriptors),
            None => Ok(()),
        }
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        match self {
            Some(keeper) => keeper.forget(name),
            None => Ok(()),
        }
    }
}

/// Where a connection is parked. Small, because there is one for each.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    shard: NonZeroU32,
    ticket: u32,
}

/// A connection that a process before has parked.
#[derive(Debug)]
pub struct Parked {
    /// The connection.
    pub socket: OwnedFd,
    /// What was said of it.
    pub record: Vec<u8>,
    /// Where it stays parked; `None` if it could not.
    pub place: Option<Place>,
}

/// Why a connection is not parked. It can be served all the same.
#[derive(Debug, thiserror::Error)]
pub enum ParkError {
    /// The keeper takes no more.
    #[error(
        "all {shards} shards of {CONNECTIONS_PER_SHARD} connections are full: raise FileDescriptorStoreMax, or LimitNOFILE where nothing is stored"
    )]
    Full {
        /// As many as fit.
        shards: usize,
    },
    /// The kernel or the keeper did not do as it was told.
    #[error("{0}; if it says too many references or open files, raise LimitNOFILE")]
    Failed(#[from] io::Error),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Lot<K> {
    keeper: K,
    shards_max: usize,
    shards: BTreeMap<NonZeroU32, Shard>,
    with_room: BTreeSet<NonZeroU32>,
}

impl<K: Keeper> Lot<K> {
    /// One that holds nothing. `keeper` can hold `descriptors_max` descriptors for it.
    pub fn new(keeper: K, descriptors_max: usize) -> Self {
        Self {
            keeper,
            shards_max: (descriptors_max / DESCRIPTORS_PER_SHARD).min(SHARDS_MAX),
            shards: BTreeMap::new(),
            with_room: BTreeSet::new(),
        }
    }

    /// Whether `name` is that of a shard.
    pub fn is_shard(name: &str) -> bool {
        number(name).is_some()
    }

    /// Takes over what a process before has parked: the descriptors that the keeper has handed out
    /// under the names of shards. They stay parked, but for those that have ended and those that can't
    /// be read; what could not be read is told through `lost`.
    pub fn adopt(
        &mut self,
        descriptors: Vec<(String, OwnedFd)>,
        mut lost: impl FnMut(&str, io::Error),
    ) -> Vec<Parked> {
        let mut ends: BTreeMap<NonZeroU32, Vec<OwnedFd>> = BTreeMap::new();
        for (name, descriptor) in descriptors {
            if let Some(number) = number(&name) {
                ends.entry(number).or_default().push(descriptor);
            }
        }
        let mut seen = HashSet::new();
        let mut parked = Vec::new();
        for (number, ends) in ends {
            let before = parked.len();
            match Shard::adopt(number, ends, &mut seen, &mut parked) {
                Ok(shard) => self.insert(number, shard),
                Err(error) => {
                    // What was read of it lives on, and is parked no more.
                    for parked in &mut parked[before..] {
                        parked.place = None;
                    }
                    lost(&name(number), error);
                    self.forget(number);
                }
            }
        }
        self.drop_spare(NonZeroU32::MAX);
        parked
    }

    /// Parks a connection, with a record of at most [`RECORD_BYTES_MAX`].
    ///
    /// # Errors
    /// [`ParkError`]
    pub fn park(&mut self, socket: BorrowedFd<'_>, record: &[u8]) -> Result<Place, ParkError> {
        if record.len() > RECORD_BYTES_MAX {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        loop {
            let number = match self.with_room.first() {
                Some(number) => *number,
                None => self.open()?,
            };
            let Some(shard) = self.shards.get_mut(&number) else {
                return Err(io::Error::from(io::ErrorKind::NotFound).into());
            };
            match shard.park(socket, record) {
                Ok(ticket) => {
                    if !shard.has_room() {
                        self.with_room.remove(&number);
                    }
                    return Ok(Place {
                        shard: number,
                        ticket,
                    });
                }
                // Where net.core.wmem_max is low, fewer fit than has_room says.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.with_room.remove(&number);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The connection at `place` has ended, and was shut down.
    pub fn leave(&mut self, place: &Place) {
        self.take_away(place, Shard::leave);
    }

    /// Ends the connection at `place` unless somebody still has its descriptor.
    pub fn evict(&mut self, place: &Place) {
        self.take_away(place, Shard::evict);
    }

    /// Gives all shards up. Every connection ends with its last descriptor.
    pub fn dissolve(&mut self) {
        self.with_room.clear();
        for number in std::mem::take(&mut self.shards).into_keys() {
            self.forget(number);
        }
    }

    /// The ends of all shards with their names, for the process that comes next: what [`Self::adopt`]
    /// takes.
    pub fn into_ends(self) -> Vec<(String, OwnedFd)> {
        let shards = self.shards.into_iter();
        shards
            .flat_map(|(number, shard)| shard.into_ends().map(|end| (name(number), end)))
            .collect()
    }

    /// Connections that are parked and have not ended.
    pub fn len(&self) -> usize {
        self.shards.values().map(Shard::live).sum()
    }

    /// Whether nothing is parked.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shards that are open.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    fn take_away(&mut self, place: &Place, how: fn(&mut Shard, u32) -> io::Result<()>) {
        let number = place.shard;
        let Some(shard) = self.shards.get_mut(&number) else {
            return;
        };
        if how(shard, place.ticket).is_err() {
            // It can't be told any more what lies where: nothing new is put there.
            self.with_room.remove(&number);
            return;
        }
        if shard.has_room() {
            self.with_room.insert(number);
        }
        if shard.live() == 0 {
            self.drop_spare(number);
        }
    }

    fn open(&mut self) -> Result<NonZeroU32, ParkError> {
        if self.shards.len() >= self.shards_max {
            return Err(ParkError::Full {
                shards: self.shards_max,
            });
        }
        let last = self.shards.last_key_value();
        let number = last.map_or(NonZeroU32::MIN, |(last, _)| last.saturating_add(1));
        let shard = Shard::new()?;
        let ends = shard.ends();
        self.keeper.keep(&name(number), &ends)?;
        self.insert(number, shard);
        Ok(number)
    }

    fn insert(&mut self, number: NonZeroU32, shard: Shard) {
        if shard.has_room() {
            self.with_room.insert(number);
        }
        self.shards.insert(number, shard);
    }

    /// Closes empty shards but one: `spare`, or any if it is not there.
    fn drop_spare(&mut self, spare: NonZeroU32) {
        let empty = self.shards.iter().filter(|(_, shard)| shard.live() == 0);
        let mut empty: Vec<_> = empty.map(|(number, _)| *number).collect();
        let kept = empty.iter().position(|number| *number == spare);
        if !empty.is_empty() {
            empty.remove(kept.unwrap_or_default());
        }
        for number in empty {
            self.shards.remove(&number);
            self.with_room.remove(&number);
            self.forget(number);
        }
    }

    fn forget(&self, number: NonZeroU32) {
        if let Err(error) = self.keeper.forget(&name(number)) {
            tracing::debug!(event = "manager_not_told", error = %error, "the service manager can't be told");
        }
    }
}

/// Descriptors of shards that so many connections may need: twice as many as if all shards were full,
/// since up to half of what lies in one may have ended.
pub const fn shard_descriptors(connections: u64) -> u64 {
    connections / (CONNECTIONS_PER_SHARD as u64) * 2 * (DESCRIPTORS_PER_SHARD as u64)
}

fn name(number: NonZeroU32) -> String {
    format!("{NAME_BEGIN}{number}")
}

fn number(name: &str) -> Option<NonZeroU32> {
    let digits = name.strip_prefix(NAME_BEGIN)?;
    let number = digits.parse().ok()?;
    // No other way to write it, such as "p+1".
    (self::name(number) == name).then_some(number)
}
