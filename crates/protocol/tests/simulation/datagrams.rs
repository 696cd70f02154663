//! Datagrams: any of them may be lost, doubled, and overtaken by later ones.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use rollcall_protocol::Moment;

use crate::oracle::Counts;

/// How much longer than others a datagram may take that is late.
const LATE: Duration = Duration::from_secs(2);

/// A slave's socket. Each question has one of its own.
pub(crate) type Port = usize;

/// All datagrams, and the sockets of the slaves.
#[derive(Debug)]
pub(crate) struct Datagrams {
    rng: Rng,
    now: Moment,
    /// By when they arrive and which was sent first; `true` to the master.
    under_way: BTreeMap<(Moment, u64), (bool, Port, Vec<u8>)>,
    sent: u64,
    at_master: VecDeque<(Port, Vec<u8>)>,
    /// What has come to each socket that is open.
    at_slaves: BTreeMap<Port, VecDeque<Vec<u8>>>,
    /// Longest delay in milliseconds of one that is not late.
    pub(crate) delay_max_ms: u64,
    /// Nothing is lost, doubled or late any more.
    pub(crate) is_calm: bool,
}

impl Datagrams {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            rng,
            now: Moment::ZERO,
            under_way: BTreeMap::new(),
            sent: 0,
            at_master: VecDeque::new(),
            at_slaves: BTreeMap::new(),
            delay_max_ms: 10,
            is_calm: false,
        }
    }

    pub(crate) fn advance(&mut self, now: Moment) {
        self.now = now;
        while let Some(first) = self.under_way.first_entry()
            && first.key().0 <= now
        {
            let (to_master, port, bytes) = first.remove();
            if to_master {
                self.at_master.push_back((port, bytes));
            } else if let Some(socket) = self.at_slaves.get_mut(&port) {
                socket.push_back(bytes);
            }
        }
    }

    pub(crate) fn next_wake(&self) -> Option<Moment> {
        self.under_way.keys().next().map(|(at, _)| *at)
    }

    /// Opens a socket.
    pub(crate) fn open(&mut self, port: Port) {
        self.at_slaves.insert(port, VecDeque::new());
    }

    /// Closes it: what comes now finds nobody.
    pub(crate) fn close(&mut self, port: Port) {
        self.at_slaves.remove(&port);
    }

    /// The next one that has come to the master.
    pub(crate) fn at_master(&mut self) -> Option<(Port, Vec<u8>)> {
        self.at_master.pop_front()
    }

    /// The next one that has come to this socket.
    pub(crate) fn at_slave(&mut self, port: Port) -> Option<Vec<u8>> {
        self.at_slaves.get_mut(&port)?.pop_front()
    }

    /// Sends one from the socket `port` to the master, or the other way.
    pub(crate) fn send(&mut self, to_master: bool, port: Port, bytes: &[u8], counts: &mut Counts) {
        let fate = if self.is_calm {
            100
        } else {
            self.rng.u32(..100)
        };
        let copies = match fate {
            0..15 => {
                counts.add(if to_master {
                    "questions_lost"
                } else {
                    "datagram_answers_lost"
                });
                return;
            }
            15..30 => {
                counts.add("datagrams_doubled");
                2
            }
            _ => 1,
        };
        for _ in 0..copies {
            let mut delay = Duration::from_millis(self.rng.u64(1..=self.delay_max_ms));
            if !self.is_calm && self.rng.u32(..100) < 10 {
                counts.add("datagrams_late");
                delay += LATE.mul_f64(self.rng.f64());
            }
            self.sent += 1;
            let key = (self.now + delay, self.sent);
            self.under_way
                .insert(key, (to_master, port, bytes.to_vec()));
        }
    }
}
