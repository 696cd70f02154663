//! A master as the daemon is one: peek, apply, commit a group, consume, ack. Its disk is what was
//! committed.

mod roll;

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use rollcall_protocol::Moment;
use rollcall_protocol::datagram::{Question, Seen};
use rollcall_protocol::frame::{self, Frames};
use rollcall_protocol::ledger::Ledger;
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::session::{MasterSession, Refusal};
use rollcall_protocol::wire::{Ack, Mark, MasterGoodbye, ToMaster, ToSlave, to_slave::Kind};

use crate::network::{ConnId, Network, Way};
use crate::oracle::Oracle;

const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER: Duration = Duration::from_secs(2);
/// A slave that was heard of within this time answers.
const ANSWERS: Duration = Duration::from_millis(500);
/// The window in which slaves come back, in milliseconds.
pub(crate) const BACK_MS: (u32, u32) = (20, 300);

/// What is on the master's disk.
#[derive(Clone, Debug, Default)]
struct Disk {
    ledgers: BTreeMap<u8, Ledger>,
    /// Entries of the oracle's log.
    log_len: usize,
}

#[derive(Debug)]
struct Commit {
    group: u64,
    done_at: Moment,
    disk: Disk,
}

#[derive(Debug)]
struct Holder {
    connection: ConnId,
    stream: u64,
    heard: Moment,
}

/// One connection.
#[derive(Debug)]
struct Link {
    session: MasterSession,
    slave: Option<u8>,
    /// What was read and waits for its group.
    read: Option<Read>,
    /// Nothing more is read; until then the peer may close.
    linger_until: Option<Moment>,
}

#[derive(Debug, Default)]
struct Read {
    group: Option<u64>,
    taken: usize,
    answers: Vec<Kind>,
    marks: Vec<Mark>,
    received_ms: i64,
    end: Option<Ending>,
}

#[derive(Debug)]
enum Ending {
    Complete,
    Refused(Refusal),
}

/// What the master needs of the world.
pub(crate) struct Surroundings<'a> {
    pub(crate) now: Moment,
    pub(crate) network: &'a mut Network,
    pub(crate) oracle: &'a mut Oracle,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Master {
    rng: Rng,
    /// None while it runs.
    restart_at: Option<Moment>,
    window: u32,
    ledgers: BTreeMap<u8, Ledger>,
    disk: Disk,
    backup: Disk,
    dirty: bool,
    group: u64,
    commit: Option<Commit>,
    /// The disk answers no earlier.
    pub(crate) stalled_until: Moment,
    links: BTreeMap<ConnId, Link>,
    holders: BTreeMap<u8, Holder>,
    /// The questions that each slave has asked.
    seen: BTreeMap<u8, Seen>,
}

impl Master {
    pub(crate) fn new(mut rng: Rng) -> Self {
        Self {
            window: rng.choice([1, 2, 5, 64]).expect("not empty"),
            rng,
            restart_at: None,
            ledgers: BTreeMap::new(),
            disk: Disk::default(),
            backup: Disk::default(),
            dirty: false,
            group: 1,
            commit: None,
            stalled_until: Moment::ZERO,
            links: BTreeMap::new(),
            holders: BTreeMap::new(),
            seen: BTreeMap::new(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.restart_at.is_none()
    }

    pub(crate) fn accept(&mut self, connection: ConnId, now: Moment) {
        let link = Link {
            session: MasterSession::new(now, HELLO_TIMEOUT),
            slave: None,
            read: None,
            linger_until: None,
        };
        self.links.insert(connection, link);
    }

    /// When something is to be done although nothing arrives.
    pub(crate) fn next_wake(&self) -> Option<Moment> {
        let links = self.links.values().flat_map(|link| {
            let silent = link
                .session
                .deadline()
                .filter(|_| link.linger_until.is_none() && link.read.is_none());
            [silent, link.linger_until]
        });
        let commit = self.commit.as_ref().map(|commit| commit.done_at);
        links.flatten().chain(commit).chain(self.restart_at).min()
    }

    /// Does all that can be done now.
    pub(crate) fn handle(&mut self, world: &mut Surroundings<'_>) {
        if let Some(at) = self.restart_at {
            if at > world.now {
                // Nobody listens.
                while world.network.datagrams.at_master().is_some() {}
                return;
            }
            self.restart_at = None;
        }
        self.take_questions(world);
        if self
            .commit
            .as_ref()
            .is_some_and(|commit| commit.done_at <= world.now)
        {
            let commit = self.commit.take().expect("it was there");
            self.finish(commit, world.oracle);
        }
        let connections: Vec<ConnId> = self.links.keys().copied().collect();
        for connection in connections {
            self.serve(connection, world);
        }
        if self.dirty && self.commit.is_none() {
            self.begin_commit(world);
        }
    }

    /// Each datagram is a connection of its own, unless the same question is in hand.
    fn take_questions(&mut self, world: &mut Surroundings<'_>) {
        while let Some((port, bytes)) = world.network.datagrams.at_master() {
            let question = Question::parse(&bytes, FRAME_PAYLOAD_BYTES_MAX);
            let number = question.expect("the slave sends questions").number;
            let mut in_hand = world.network.in_hand();
            if in_hand.any(|other| (other.port, other.number) == (port, number)) {
                drop(in_hand);
                world.oracle.counts.add("questions_in_hand");
                continue;
            }
            drop(in_hand);
            let connection = world.network.stand_for(port, number, bytes);
            self.accept(connection, world.now);
        }
    }

    fn begin_commit(&mut self, world: &Surroundings<'_>) {
        let took = Duration::from_millis(self.rng.u64(1..30));
        self.commit = Some(Commit {
            group: self.group,
            done_at: world.now.max(self.stalled_until) + took,
            disk: Disk {
                ledgers: self.ledgers.clone(),
                log_len: world.oracle.log_len(),
            },
        });
        self.dirty = false;
        self.group += 1;
    }

    fn finish(&mut self, commit: Commit, oracle: &mut Oracle) {
        oracle.committed(commit.disk.log_len);
        self.disk = commit.disk;
        for link in self.links.values_mut() {
            if let Some(read) = &mut link.read
                && read.group.is_some_and(|group| group <= commit.group)
            {
                read.group = None;
            }
        }
    }

    /// The group after which all that was applied so far is durable; none if it is already.
    fn durable_with(&self) -> Option<u64> {
        if self.dirty {
            return Some(self.group);
        }
        self.commit.as_ref().map(|commit| commit.group)
    }

    /// Goes on with one connection as far as it goes.
    fn serve(&mut self, connection: ConnId, world: &mut Surroundings<'_>) {
        loop {
            let Some(mut link) = self.links.remove(&connection) else {
                return;
            };
            if let Some(until) = link.linger_until {
                if until > world.now && world.network.ended(connection, Way::Up).is_none() {
                    self.links.insert(connection, link);
                } else {
                    self.forget(connection, &link, world);
                }
                return;
            }
            match link.read.take() {
                Some(read) if read.group.is_some() => {
                    link.read = Some(read);
                    self.links.insert(connection, link);
                    return;
                }
                Some(read) => self.settle(connection, &mut link, read, world),
                None => {
                    if !self.look(connection, &mut link, world) {
                        return;
                    }
                    let waits = link.read.is_none() && link.linger_until.is_none();
                    self.links.insert(connection, link);
                    if waits {
                        return;
                    }
                    continue;
                }
            }
            self.links.insert(connection, link);
        }
    }

    /// Looks at what has arrived. False if the connection is over and forgotten.
    fn look(&mut self, connection: ConnId, link: &mut Link, world: &mut Surroundings<'_>) -> bool {
        let peeked = world.network.arrived(connection, Way::Up).to_vec();
        let mut read = Read {
            received_ms: wall_ms(world.now),
            ..Read::default()
        };
        self.take_frames(connection, link, &peeked, &mut read, world);
        if read.end.is_none() && link.session.is_complete() {
            read.end = Some(Ending::Complete);
        }
        if read.taken > 0 || read.end.is_some() {
            read.group = self.durable_with();
            link.read = Some(read);
        } else if world.network.ended(connection, Way::Up).is_some() {
            self.forget(connection, link, world);
            return false;
        } else if let Err(refusal) = link.session.handle_timeout(world.now) {
            world.oracle.counts.add("hello_timeouts");
            link.read = Some(Read {
                end: Some(Ending::Refused(refusal)),
                ..read
            });
        }
        true
    }

    fn take_frames(
        &mut self,
        connection: ConnId,
        link: &mut Link,
        peeked: &[u8],
        read: &mut Read,
        world: &mut Surroundings<'_>,
    ) {
        let mut frames = Frames::new(peeked, FRAME_PAYLOAD_BYTES_MAX);
        while read.end.is_none() && !link.session.is_complete() {
            let step = match frames.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => frame
                    .decode::<ToMaster>()
                    .map_err(Refusal::from)
                    .and_then(|message| link.session.handle_message(message))
                    .and_then(|step| self.apply(connection, link, step, read, world)),
                Err(error) => Err(error.into()),
            };
            if let Err(refusal) = step {
                read.end = Some(Ending::Refused(refusal));
            }
            read.taken = frames.taken();
        }
    }

    /// What was read is durable: takes it out of the kernel and answers.
    fn settle(
        &mut self,
        connection: ConnId,
        link: &mut Link,
        read: Read,
        world: &mut Surroundings<'_>,
    ) {
        world.network.consume(connection, Way::Up, read.taken);
        let mut out = Vec::new();
        let slave = link.slave.unwrap_or_default();
        for kind in read.answers {
            let told: &[Mark] = match &kind {
                Kind::Welcome(welcome) => &welcome.marks,
                Kind::Goodbye(goodbye) => &goodbye.marks,
                _ => &[],
            };
            for mark in told {
                world.oracle.acks(slave, *mark);
            }
            encode(kind, &mut out);
        }
        for mark in read.marks {
            world.oracle.acks(slave, mark);
            let ack = Ack {
                stream: mark.stream,
                sequence: mark.sequence,
                received_ms: read.received_ms,
                sent_ms: wall_ms(world.now),
            };
            encode(Kind::Ack(ack), &mut out);
        }
        if let Some(Ending::Refused(refusal)) = &read.end {
            frame::encode(&refusal.to_message(), &mut out).expect("it is small");
        }
        let counts = &mut world.oracle.counts;
        world.network.write(connection, Way::Down, &out, counts);
        if read.end.is_some() {
            let counts = &mut world.oracle.counts;
            world.network.answer(connection, counts);
            // The master closes first, and drops what still comes until the slave closes too.
            world.network.close(connection, Way::Down);
            link.linger_until = Some(world.now + LINGER);
            self.release(connection, link);
        }
    }

    fn release(&mut self, connection: ConnId, link: &Link) {
        if let Some(slave) = link.slave
            && self
                .holders
                .get(&slave)
                .is_some_and(|holder| holder.connection == connection)
        {
            self.holders.remove(&slave);
        }
    }

    fn forget(&mut self, connection: ConnId, link: &Link, world: &mut Surroundings<'_>) {
        self.release(connection, link);
        world.network.close(connection, Way::Down);
        world.network.drop_end(connection);
    }
}

/// What befalls a master.
impl Master {
    /// It is killed: all that is not on the disk is gone. A commit under way is there or not.
    pub(crate) fn crash(&mut self, down: Duration, world: &mut Surroundings<'_>) {
        if let Some(commit) = self.commit.take()
            && self.rng.bool()
        {
            world.oracle.counts.add("crashes_after_an_unseen_commit");
            self.finish(commit, world.oracle);
        }
        world.oracle.crashed();
        self.ledgers = self.disk.ledgers.clone();
        self.dirty = false;
        self.holders.clear();
        self.seen.clear();
        for connection in std::mem::take(&mut self.links).into_keys() {
            world.network.reset(connection, &mut world.oracle.counts);
            world.network.drop_end(connection);
        }
        self.restart_at = Some(world.now + down);
    }

    /// It is stopped: it says goodbye where nothing is half done, and goes.
    pub(crate) fn stop(&mut self, down: Duration, world: &mut Surroundings<'_>) {
        for (connection, link) in &self.links {
            let (Some(slave), None, None) = (link.slave, &link.read, link.linger_until) else {
                continue;
            };
            let durable = self.disk.ledgers.get(&slave);
            let marks = durable.map(|ledger| ledger.marks().to_vec());
            let marks = marks.unwrap_or_default();
            for mark in &marks {
                world.oracle.acks(slave, *mark);
            }
            let mut out = Vec::new();
            encode(Kind::Goodbye(goodbye(marks)), &mut out);
            let counts = &mut world.oracle.counts;
            world.network.write(*connection, Way::Down, &out, counts);
            world.network.close(*connection, Way::Down);
            counts.add("master_goodbyes");
        }
        self.links.retain(|connection, link| {
            let told = link.slave.is_some() && link.read.is_none();
            if told {
                world.network.drop_end(*connection);
            }
            !told
        });
        self.crash(down, world);
    }

    /// Its disk is copied.
    pub(crate) fn back_up(&mut self) {
        self.backup = self.disk.clone();
    }

    /// It starts again on a copy of its disk, or on an empty one.
    pub(crate) fn replace_disk(&mut self, empty: bool, world: &mut Surroundings<'_>) {
        self.crash(Duration::from_millis(50), world);
        let backup = if empty {
            Disk::default()
        } else {
            self.backup.clone()
        };
        world.oracle.disk_replaced(backup.log_len);
        self.ledgers = backup.ledgers.clone();
        self.disk = backup.clone();
        self.backup = backup;
    }
}

fn goodbye(marks: Vec<Mark>) -> MasterGoodbye {
    MasterGoodbye {
        marks,
        back_min_ms: BACK_MS.0,
        back_max_ms: BACK_MS.1,
    }
}

fn encode(kind: Kind, out: &mut Vec<u8>) {
    let message = ToSlave { kind: Some(kind) };
    frame::encode(&message, out).expect("it is small");
}

fn wall_ms(now: Moment) -> i64 {
    i64::try_from(now.since_origin().as_millis()).expect("it is soon")
}
