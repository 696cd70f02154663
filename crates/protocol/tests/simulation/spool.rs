//! A model of the slave's spool: durable by nature, since a report is synced before it is sent.

use std::collections::VecDeque;

use rollcall_protocol::wire::{Gap, GapReason, Pending};

/// One report or gap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Its place in the order of sending.
    pub(crate) id: u64,
    pub(crate) stream: u64,
    /// First and last sequence; the same for a report.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) body: Body,
}

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// A report, by the number that it has in the whole simulation.
    Report(u64),
    /// A loss receipt.
    Gap(GapReason),
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Spool {
    pub(crate) stream: u64,
    pub(crate) next_sequence: u64,
    next_id: u64,
    newest: u64,
    entries: VecDeque<Entry>,
}

impl Spool {
    pub(crate) fn new(stream: u64) -> Self {
        Self {
            stream,
            next_sequence: 1,
            next_id: 1,
            newest: 0,
            entries: VecDeque::new(),
        }
    }

    /// The process starts anew: what is spooled stays under its own stream.
    pub(crate) fn begin_stream(&mut self, stream: u64) {
        self.stream = stream;
        self.next_sequence = 1;
    }

    /// Spools the report `number`; returns its sequence.
    pub(crate) fn append(&mut self, number: u64) -> u64 {
        let sequence = self.next_sequence;
        self.entries.push_back(Entry {
            id: self.next_id,
            stream: self.stream,
            first: sequence,
            last: sequence,
            body: Body::Report(number),
        });
        self.newest = self.next_id;
        self.next_id += 1;
        self.next_sequence += 1;
        sequence
    }

    /// All of `stream` up to `mark` is durable in the master. Returns what is let go.
    pub(crate) fn acked(&mut self, stream: u64, mark: u64) -> Vec<Entry> {
        let mark = if stream == self.stream {
            mark.min(self.next_sequence - 1)
        } else {
            mark
        };
        let mut gone = Vec::new();
        self.entries.retain_mut(|entry| {
            if entry.stream != stream || entry.first > mark {
                return true;
            }
            gone.push(Entry {
                last: entry.last.min(mark),
                ..*entry
            });
            entry.first = mark + 1;
            entry.first <= entry.last
        });
        gone
    }

    /// The streams that Hello announces.
    pub(crate) fn pending(&self) -> Vec<Pending> {
        let mut pending: Vec<Pending> = Vec::new();
        let mut own = self.next_sequence;
        for entry in &self.entries {
            if entry.stream == self.stream {
                own = own.min(entry.first);
            } else if pending.iter().all(|known| known.stream != entry.stream) {
                pending.push(Pending {
                    stream: entry.stream,
                    first: entry.first,
                });
            }
        }
        pending.push(Pending {
            stream: self.stream,
            first: own,
        });
        pending
    }

    /// The first entry after `id`.
    pub(crate) fn after(&self, id: u64) -> Option<Entry> {
        self.entries.iter().find(|entry| entry.id > id).copied()
    }

    /// The id of the newest report that was ever appended.
    pub(crate) fn newest_id(&self) -> u64 {
        self.newest
    }

    /// The entry `id`, if it is a report.
    pub(crate) fn report(&self, id: u64) -> Option<(Entry, u64)> {
        let entry = self.entries.iter().find(|entry| entry.id == id)?;
        match entry.body {
            Body::Report(number) => Some((*entry, number)),
            Body::Gap(_) => None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Gives up to `most` neighbours of one stream up, the first of them at `at` or after, none of
    /// them handed out already nor the newest. Returns the numbers of the reports that went.
    pub(crate) fn give_up(&mut self, at: usize, most: usize, handed_out: u64) -> Vec<u64> {
        let newest = self.newest;
        let may_go = |entry: &Entry| {
            entry.id > handed_out && entry.id != newest && matches!(entry.body, Body::Report(_))
        };
        let Some(from) = (at..self.entries.len()).find(|&at| may_go(&self.entries[at])) else {
            return Vec::new();
        };
        let first = self.entries[from];
        let run = self
            .entries
            .range(from..)
            .take(most)
            .take_while(|entry| may_go(entry) && entry.stream == first.stream)
            .count();
        let went: Vec<Entry> = self.entries.drain(from..from + run).collect();
        let last = went.last().expect("at least the first").to_owned();
        let gap = Entry {
            first: first.first,
            body: Body::Gap(GapReason::SpoolFull),
            ..last
        };
        self.entries.insert(from, gap);
        let number = |entry: &Entry| match entry.body {
            Body::Report(number) => Some(number),
            Body::Gap(_) => None,
        };
        went.iter().filter_map(number).collect()
    }

    /// Moves what is left of `old` to the stream `new`, with sequences from 1. Returns first and last
    /// sequence of each entry as they were, and the first as it is now.
    pub(crate) fn restream(&mut self, old: u64, new: u64) -> Vec<(u64, u64, u64)> {
        let mut next = 1;
        let mut moves = Vec::new();
        for entry in self.entries.iter_mut().filter(|entry| entry.stream == old) {
            let more = entry.last - entry.first;
            moves.push((entry.first, entry.last, next));
            entry.stream = new;
            entry.first = next;
            entry.last = next + more;
            next += more + 1;
        }
        if self.stream == old {
            self.stream = new;
            self.next_sequence = next;
        }
        moves
    }
}

impl Entry {
    /// The entry as a gap.
    pub(crate) fn to_gap(self, reason: GapReason) -> Gap {
        Gap {
            stream: self.stream,
            first: self.first,
            last: self.last,
            reason: reason.into(),
            from_ms: 0,
            to_ms: 0,
        }
    }
}
