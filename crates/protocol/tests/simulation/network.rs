//! Byte streams with delays, that can be cut at any byte.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use fastrand::Rng;
use rollcall_protocol::{Moment, datagram};

use crate::datagrams::{Datagrams, Port};
use crate::oracle::Counts;

/// After this long of sending into nothing the kernel gives a connection up: soon, or so late that
/// both ends must help themselves.
const USER_TIMEOUTS: [Duration; 2] = [Duration::from_secs(8), Duration::from_secs(3600)];

/// A connection's name.
pub(crate) type ConnId = usize;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the slave to the master.
    Up,
    /// From the master to the slave.
    Down,
}

/// How a direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The sender has closed its side.
    Closed,
    /// The connection is broken.
    Reset,
}

/// One direction of a connection.
#[derive(Debug, Default)]
struct Pipe {
    /// On their way, in order.
    chunks: VecDeque<(Moment, Vec<u8>)>,
    /// At the receiver, not consumed.
    arrived: Vec<u8>,
    /// When the last chunk arrives: nothing overtakes.
    last: Moment,
    /// The connection breaks once so many more bytes are written.
    cut_after: Option<usize>,
    /// What is written vanishes.
    swallows: bool,
    end: Option<(Moment, End)>,
}

#[derive(Debug, Default)]
struct Connection {
    up: Pipe,
    down: Pipe,
    /// Ends that have dropped it.
    dropped: usize,
    /// It stands for a datagram, and its answer is another one.
    question: Option<Question>,
}

/// A datagram that the master looks at as it looks at a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) port: Port,
    pub(crate) number: u64,
    bytes: usize,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Network {
    rng: Rng,
    now: Moment,
    connections: BTreeMap<ConnId, Connection>,
    next: ConnId,
    pub(crate) datagrams: Datagrams,
    /// Longest delay of a chunk in milliseconds.
    pub(crate) delay_max_ms: u64,
}

impl Network {
    pub(crate) fn new(mut rng: Rng) -> Self {
        Self {
            datagrams: Datagrams::new(rng.fork()),
            rng,
            now: Moment::ZERO,
            connections: BTreeMap::new(),
            next: 0,
            delay_max_ms: 10,
        }
    }

    /// Lets everything arrive that is due.
    pub(crate) fn advance(&mut self, now: Moment) {
        self.now = now;
        self.datagrams.delay_max_ms = self.delay_max_ms;
        self.datagrams.advance(now);
        for connection in self.connections.values_mut() {
            for pipe in [&mut connection.up, &mut connection.down] {
                while pipe.chunks.front().is_some_and(|(at, _)| *at <= now) {
                    let (_, bytes) = pipe.chunks.pop_front().expect("it was there");
                    pipe.arrived.extend(bytes);
                }
            }
        }
    }

    /// When something arrives next.
    pub(crate) fn next_wake(&self) -> Option<Moment> {
        let pipes = self
            .connections
            .values()
            .flat_map(|connection| [&connection.up, &connection.down]);
        pipes
            .flat_map(|pipe| {
                let chunk = pipe.chunks.front().map(|(at, _)| *at);
                let end = pipe.end.map(|(at, _)| at).filter(|at| *at > self.now);
                [chunk, end]
            })
            .flatten()
            .chain(self.datagrams.next_wake())
            .min()
    }

    /// A name for a connection or a socket.
    pub(crate) fn new_name(&mut self) -> ConnId {
        self.next += 1;
        self.next
    }

    /// A new connection.
    pub(crate) fn connect(&mut self) -> ConnId {
        let id = self.new_name();
        self.connections.insert(id, Connection::default());
        id
    }

    /// A connection that stands for a datagram from `port`: all has arrived, and nothing follows.
    pub(crate) fn stand_for(&mut self, port: Port, number: u64, bytes: Vec<u8>) -> ConnId {
        let id = self.connect();
        let connection = self.connections.get_mut(&id).expect("it was made");
        connection.question = Some(Question {
            port,
            number,
            bytes: bytes.len(),
        });
        connection.up.end = Some((self.now, End::Closed));
        connection.up.arrived = bytes;
        // There is nobody at the other end.
        connection.dropped = 1;
        id
    }

    /// The questions that the master has in hand.
    pub(crate) fn in_hand(&self) -> impl Iterator<Item = Question> {
        self.connections
            .values()
            .filter_map(|connection| connection.question)
    }

    /// The connections that still stand.
    pub(crate) fn standing(&self) -> Vec<ConnId> {
        let standing = |connection: &Connection| {
            [&connection.up, &connection.down]
                .iter()
                .all(|pipe| pipe.end.is_none())
        };
        self.connections
            .iter()
            .filter(|(_, connection)| standing(connection))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Writes `bytes`: they arrive in pieces.
    pub(crate) fn write(&mut self, id: ConnId, way: Way, mut bytes: &[u8], counts: &mut Counts) {
        let (now, delay_max_ms) = (self.now, self.delay_max_ms);
        let rng = &mut self.rng;
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let is_question = connection.question.is_some();
        let pipe = connection.pipe(way);
        if pipe.end.is_some() || pipe.swallows {
            return;
        }
        if is_question {
            // It is gathered until the close.
            pipe.arrived.extend(bytes);
            return;
        }
        let mut cut = false;
        if let Some(left) = pipe.cut_after {
            cut = bytes.len() >= left;
            bytes = &bytes[..bytes.len().min(left)];
            pipe.cut_after = Some(left - bytes.len());
        }
        while !bytes.is_empty() {
            let (now_going, later) = bytes.split_at(rng.usize(1..=bytes.len()));
            pipe.push(now + delay(rng, delay_max_ms), now_going);
            bytes = later;
        }
        if cut {
            counts.add(match way {
                Way::Up => "cut_on_the_way_up",
                Way::Down => "cut_on_the_way_down",
            });
            self.reset(id, counts);
        }
    }

    /// What has arrived and not been consumed.
    pub(crate) fn arrived(&self, id: ConnId, way: Way) -> &[u8] {
        let connection = self.connections.get(&id);
        connection.map_or(&[], |connection| match way {
            Way::Up => &connection.up.arrived,
            Way::Down => &connection.down.arrived,
        })
    }

    /// Takes `count` bytes out of what has arrived.
    pub(crate) fn consume(&mut self, id: ConnId, way: Way, count: usize) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.pipe(way).arrived.drain(..count);
        }
    }

    /// How this direction has ended, once nothing more can arrive.
    pub(crate) fn ended(&self, id: ConnId, way: Way) -> Option<End> {
        let Some(connection) = self.connections.get(&id) else {
            return Some(End::Reset);
        };
        let pipe = match way {
            Way::Up => &connection.up,
            Way::Down => &connection.down,
        };
        let (at, end) = pipe.end?;
        (at <= self.now && pipe.chunks.is_empty()).then_some(end)
    }

    /// Sends what was said in answer to a question.
    pub(crate) fn answer(&mut self, id: ConnId, counts: &mut Counts) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(question) = connection.question else {
            return;
        };
        let said = std::mem::take(&mut connection.down.arrived);
        let Question {
            port,
            number,
            bytes,
        } = question;
        if let Some(answer) = datagram::answer(number, bytes, &said) {
            assert!(answer.len() <= bytes, "an answer longer than the question");
            if answer.len() < said.len() + datagram::ANSWER_BYTES {
                counts.add("answers_shortened");
            }
            self.datagrams.send(false, port, &answer, counts);
        }
    }

    /// Says that nothing follows in this direction.
    pub(crate) fn close(&mut self, id: ConnId, way: Way) {
        let (now, delay_max_ms) = (self.now, self.delay_max_ms);
        let rng = &mut self.rng;
        if let Some(connection) = self.connections.get_mut(&id) {
            let pipe = connection.pipe(way);
            if pipe.end.is_none() && !pipe.swallows {
                let at = pipe.last.max(now + delay(rng, delay_max_ms));
                pipe.end = Some((at, End::Closed));
            }
        }
    }

    /// One end is done with the connection.
    pub(crate) fn drop_end(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.dropped += 1;
            if connection.dropped == 2 {
                self.connections.remove(&id);
            }
        }
    }

    /// The connection breaks: both ends learn of it, and what is on its way may be lost.
    pub(crate) fn reset(&mut self, id: ConnId, counts: &mut Counts) {
        let (now, delay_max_ms) = (self.now, self.delay_max_ms);
        let rng = &mut self.rng;
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        for way in [Way::Up, Way::Down] {
            let pipe = connection.pipe(way);
            if !pipe.chunks.is_empty() && rng.bool() {
                pipe.chunks.clear();
                pipe.last = now;
                counts.add(match way {
                    Way::Up => "requests_lost",
                    Way::Down => "answers_lost",
                });
            }
            let at = pipe.last.max(now + delay(rng, delay_max_ms));
            pipe.end = Some((at, End::Reset));
        }
    }

    /// The connection breaks after so many more bytes in one direction.
    pub(crate) fn cut_after(&mut self, id: ConnId, way: Way, bytes: usize) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.pipe(way).cut_after = Some(bytes);
        }
    }

    /// What is written in this direction vanishes from now on; both ends learn of it late.
    pub(crate) fn swallow(&mut self, id: ConnId, way: Way) {
        let timeout = self.rng.choice(USER_TIMEOUTS).expect("not empty");
        let at = self.now + timeout;
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.pipe(way).swallows = true;
            connection.up.end = Some((at.max(connection.up.last), End::Reset));
            connection.down.end = Some((at.max(connection.down.last), End::Reset));
        }
    }
}

impl Connection {
    fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

impl Pipe {
    fn push(&mut self, at: Moment, bytes: &[u8]) {
        self.last = self.last.max(at);
        self.chunks.push_back((self.last, bytes.to_vec()));
    }
}

fn delay(rng: &mut Rng, max_ms: u64) -> Duration {
    Duration::from_millis(rng.u64(1..=max_ms))
}
