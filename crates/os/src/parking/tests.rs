//! Parking within one process: the keeper is a map, and a process dies by dropping what it has.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use super::queue::Queue;
use super::*;

type Held = Rc<RefCell<BTreeMap<String, Vec<OwnedFd>>>>;

#[derive(Clone, Debug, Default)]
struct Map(Held);

impl Keeper for Map {
    fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let copies = descriptors.iter().map(|one| one.try_clone_to_owned());
        let copies = copies.collect::<io::Result<_>>()?;
        self.0.borrow_mut().insert(name.to_owned(), copies);
        Ok(())
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().remove(name);
        Ok(())
    }
}

impl Map {
    fn len(&self) -> usize {
        self.0.borrow().len()
    }

    /// What the next process is started with, in an order of the keeper's own.
    fn hand_out(&self) -> Vec<(String, OwnedFd)> {
        let held = self.0.borrow();
        let all = held.iter().rev();
        all.flat_map(|(name, ends)| {
            let copies = ends.iter().rev();
            copies.map(|end| (name.clone(), end.try_clone().unwrap()))
        })
        .collect()
    }

    fn lot(&self, descriptors_max: usize) -> Lot<Self> {
        Lot::new(self.clone(), descriptors_max)
    }

    /// A process that was started with what this one holds.
    fn successor(&self) -> (Lot<Self>, Vec<Parked>) {
        let mut lot = self.lot(1000);
        let parked = lot.adopt(self.hand_out(), |name, error| panic!("{name}: {error}"));
        (lot, parked)
    }
}

struct Server(TcpListener);

impl Server {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The peer's end and ours.
    fn connection(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.0.local_addr().unwrap()).unwrap();
        let limit = Some(Duration::from_secs(10));
        client.set_read_timeout(limit).unwrap();
        (client, self.0.accept().unwrap().0)
    }
}

fn records(parked: &[Parked]) -> Vec<Vec<u8>> {
    let mut records: Vec<_> = parked.iter().map(|parked| parked.record.clone()).collect();
    records.sort();
    records
}

#[test]
fn connections_outlive_the_process_with_what_was_not_read() {
    let (server, keeper) = (Server::new(), Map::default());
    let (mut lot, mut clients) = (keeper.lot(1000), Vec::new());
    for number in 0..450_u32 {
        let (mut client, ours) = server.connection();
        client.write_all(&number.to_be_bytes()).unwrap();
        lot.park(ours.as_fd(), &number.to_be_bytes()).unwrap();
        clients.push(client);
    }
    assert_eq!((lot.len(), lot.shards(), keeper.len()), (450, 3, 3));
    drop(lot);
    // Twice: looking takes nothing away.
    for _ in 0..2 {
        let (lot, parked) = keeper.successor();
        assert_eq!((lot.len(), parked.len(), keeper.len()), (450, 450, 3));
        drop(lot);
    }
    let (_lot, parked) = keeper.successor();
    for Parked { socket, record, .. } in parked {
        let mut stream = TcpStream::from(socket);
        let mut sent = [0; 4];
        stream.read_exact(&mut sent).unwrap();
        assert_eq!(record, sent);
        stream.write_all(&sent).unwrap();
    }
    for (number, client) in (0..450_u32).zip(&mut clients) {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, number.to_be_bytes());
    }
}

#[test]
fn without_a_keeper_the_process_passes_on_what_is_parked() {
    let server = Server::new();
    let nobody: Option<Map> = None;
    let mut lot = Lot::new(nobody.clone(), 1000);
    let mut clients = Vec::new();
    for number in 0..250_u32 {
        let (client, ours) = server.connection();
        lot.park(ours.as_fd(), &number.to_be_bytes()).unwrap();
        clients.push(client);
    }
    let ends = lot.into_ends();
    assert_eq!(ends.len(), 2 * DESCRIPTORS_PER_SHARD);
    let mut lot = Lot::new(nobody, 1000);
    let parked = lot.adopt(ends, |name, error| panic!("{name}: {error}"));
    assert_eq!((parked.len(), lot.len(), lot.shards()), (250, 250, 2));
    // With the lot and the last descriptor a connection ends.
    drop(parked);
    clients[0].set_nonblocking(true).unwrap();
    let error = clients[0].peek(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "it is parked");
    clients[0].set_nonblocking(false).unwrap();
    lot.dissolve();
    assert_eq!(clients[0].read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn who_is_shut_down_and_leaves_is_closed_and_not_found_again() {
    let (server, keeper) = (Server::new(), Map::default());
    let mut lot = keeper.lot(1000);
    let mut kept = Vec::new();
    for number in 0..2000_u32 {
        let (mut client, ours) = server.connection();
        let place = lot.park(ours.as_fd(), &number.to_be_bytes()).unwrap();
        if number % 20 == 0 {
            kept.push((number, client));
            continue;
        }
        shut_down(&ours).unwrap();
        drop(ours);
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "a copy is parked");
        lot.leave(&place);
    }
    assert_eq!(lot.len(), kept.len());
    // Ended ones are cleared away as they come: two shards hold what lives.
    assert!(lot.shards() <= 2, "{lot:?}");
    drop(lot);
    let (lot, parked) = keeper.successor();
    assert_eq!(lot.len(), kept.len());
    let numbers: Vec<_> = kept
        .iter()
        .map(|(number, _)| number.to_be_bytes())
        .collect();
    assert_eq!(records(&parked), numbers);
}

#[test]
fn who_has_ended_while_nobody_was_there_is_not_adopted() {
    let (server, keeper) = (Server::new(), Map::default());
    let mut lot = keeper.lot(1000);
    let (reset, ours) = server.connection();
    lot.park(ours.as_fd(), b"reset").unwrap();
    let (mut finished, theirs) = server.connection();
    lot.park(theirs.as_fd(), b"finished").unwrap();
    drop((lot, theirs));
    // Unread input makes its close a reset.
    (&ours).write_all(b"unread").unwrap();
    drop(ours);
    reset.peek(&mut [0; 1]).unwrap();
    drop(reset);
    // It has said something before it closed, and that is still to be read.
    finished.write_all(b"bye").unwrap();
    drop(finished);
    let (lot, parked) = keeper.successor();
    assert_eq!(records(&parked), [b"finished".to_vec()]);
    assert_eq!(lot.len(), 1);
    let mut said = String::new();
    let mut stream = TcpStream::from(parked.into_iter().next().unwrap().socket);
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "bye");
}

#[test]
fn a_death_in_the_middle_of_a_turn_leaves_everybody_once() {
    let (server, keeper) = (Server::new(), Map::default());
    let queue = Queue::new().unwrap();
    keeper.keep("p7", &queue.ends()).unwrap();
    let connections: Vec<_> = (0..3_u8).map(|_| server.connection()).collect();
    let push = |number: u8| {
        let (_, ours) = &connections[usize::from(number)];
        queue.push(ours.as_fd(), &[number]).unwrap();
    };
    // A marker, and the first was copied to the end, but not taken away.
    push(0);
    push(1);
    push(2);
    queue.push_marker(99).unwrap();
    push(0);
    drop(queue);
    let (mut lot, parked) = keeper.successor();
    assert_eq!(records(&parked), [[0], [1], [2]]);
    assert_eq!(lot.len(), 3);
    drop(connections);
    for parked in parked {
        lot.leave(&parked.place.unwrap());
    }
    assert!(lot.is_empty());
    let (_, parked) = keeper.successor();
    assert_eq!(parked.len(), 0);
}

#[test]
fn who_is_evicted_is_closed_with_its_last_descriptor() {
    let (server, keeper) = (Server::new(), Map::default());
    let mut lot = keeper.lot(1000);
    let (mut first, ours) = server.connection();
    let place = lot.park(ours.as_fd(), b"1").unwrap();
    let (second, theirs) = server.connection();
    lot.park(theirs.as_fd(), b"2").unwrap();
    drop((ours, theirs));
    lot.evict(&place);
    assert_eq!(first.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(lot.len(), 1);
    second.set_nonblocking(true).unwrap();
    let error = second.peek(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "it goes on");
}

#[test]
fn a_full_lot_says_so_and_has_room_again() {
    let (server, keeper) = (Server::new(), Map::default());
    let mut lot = keeper.lot(2);
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS_PER_SHARD {
        let (client, ours) = server.connection();
        let record = [7; RECORD_BYTES_MAX];
        connections.push((client, lot.park(ours.as_fd(), &record).unwrap()));
    }
    let (_client, ours) = server.connection();
    let error = lot.park(ours.as_fd(), b"").unwrap_err();
    assert!(error.to_string().contains("all 1 shards"), "{error}");
    lot.evict(&connections[100].1);
    lot.park(ours.as_fd(), b"").unwrap();
    assert_eq!(lot.len(), CONNECTIONS_PER_SHARD);
}

#[test]
fn a_pair_of_which_an_end_is_missing_is_told_and_given_up() {
    let keeper = Map::default();
    let queue = Queue::new().unwrap();
    keeper.keep("p1", &queue.ends()[..1]).unwrap();
    let mut lost = Vec::new();
    let mut lot = keeper.lot(10);
    let parked = lot.adopt(keeper.hand_out(), |name, _| lost.push(name.to_owned()));
    assert_eq!((parked.len(), lot.shards(), keeper.len()), (0, 0, 0));
    assert_eq!(lost, ["p1"]);
}

#[test]
fn names_are_those_of_shards_only_as_they_are_written() {
    let is_shard = Lot::<Map>::is_shard;
    assert!(is_shard("p1") && is_shard("p4294967295"));
    for other in [
        "",
        "p",
        "p+1",
        "p01",
        "l1",
        "p4294967296",
        "rollcall.socket",
    ] {
        assert!(!is_shard(other), "{other}");
    }
}

#[test]
fn a_mark_belongs_to_the_connection() {
    let (_client, ours) = Server::new().connection();
    ours.set_nonblocking(true).unwrap();
    let copy = ours.try_clone().unwrap();
    for mark in [Mark::Greeting, Mark::Torn, Mark::Whole] {
        leave(&ours, mark).unwrap();
        assert_eq!(find(&copy).unwrap(), mark);
    }
    assert!(has_room(&ours).unwrap());
    assert!(!is_over(&copy).unwrap());
    // A write is not held up by it, whatever the mark: it fills the buffer and returns.
    leave(&ours, Mark::Torn).unwrap();
    while (&ours).write(&[0; 65536]).is_ok() {}
    assert!(!has_room(&ours).unwrap());
    shut_down(&ours).unwrap();
    assert!(is_over(&copy).unwrap());
}

/// Else no next process could be started, and all would be lost.
#[test]
fn the_names_of_all_shards_fit_into_the_environment() {
    let lot = Map::default().lot(usize::MAX);
    let name = format!("{}:", name(NonZeroU32::MAX));
    let shards = name.repeat(lot.shards_max * DESCRIPTORS_PER_SHARD);
    let listeners = "x".repeat(4096);
    let mut command = std::process::Command::new("true");
    command.env("LISTEN_FDNAMES", shards + &listeners);
    assert!(command.status().expect("it is started").success());
}
