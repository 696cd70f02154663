//! A network that loses, doubles and reorders datagrams, by a plan that follows from a seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rollcall_os::clock;
use rollcall_protocol::Moment;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Between two looks whether it is over, at most.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Clients that are remembered: answers that come later find nobody.
const CLIENTS_MAX: usize = 64;

/// What happens to a datagram, in percent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) lost: u8,
    pub(crate) doubled: u8,
    /// Held back, so that later ones overtake it.
    pub(crate) late: u8,
    /// By at most this.
    pub(crate) late_by: Duration,
}

/// What has happened to how many.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) passed: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) doubled: AtomicU64,
    pub(crate) late: AtomicU64,
}

/// Dropping it ends it.
pub(crate) struct Relay {
    address: SocketAddr,
    counts: Arc<Counts>,
    is_cut: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    pub(crate) fn start(master: SocketAddr, faults: Faults, seed: u64) -> Self {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        front.set_nonblocking(true).expect("a socket");
        let address = front.local_addr().expect("an address");
        let counts = Arc::<Counts>::default();
        let [is_cut, stop] = [(), ()].map(|()| Arc::<AtomicBool>::default());
        let mut network = Network {
            rng: fastrand::Rng::with_seed(seed),
            faults,
            counts: Arc::clone(&counts),
            under_way: BinaryHeap::new(),
            sent: 0,
            is_cut: Arc::clone(&is_cut),
        };
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut backs: BTreeMap<SocketAddr, UdpSocket> = BTreeMap::new();
            let mut clients: Vec<SocketAddr> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let mut buffer = [0; 65_536];
                while let Ok((length, client)) = front.recv_from(&mut buffer) {
                    backs.entry(client).or_insert_with(|| {
                        clients.push(client);
                        back(master)
                    });
                    network.send(client, true, &buffer[..length]);
                }
                for (client, back) in &backs {
                    // Nobody may be there: then the datagram is lost.
                    while let Ok(length) = back.recv(&mut buffer) {
                        network.send(*client, false, &buffer[..length]);
                    }
                }
                for (client, up, bytes) in network.due() {
                    match backs.get(&client) {
                        Some(back) if up => drop(back.send(&bytes)),
                        _ => drop(front.send_to(&bytes, client)),
                    }
                }
                if clients.len() > CLIENTS_MAX {
                    backs.remove(&clients.remove(0));
                }
                let sockets = std::iter::once(&front).chain(backs.values());
                wait_for_any(sockets, network.next_due());
            }
        });
        Self {
            address,
            counts,
            is_cut,
            stop,
            thread: Some(thread),
        }
    }

    /// Where slaves ask.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nothing through that comes from now on, or all again.
    pub(crate) fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Until one of the sockets has something, or it is time, or to see whether it is over.
fn wait_for_any<'a>(sockets: impl Iterator<Item = &'a UdpSocket>, until: Option<Moment>) {
    let left = until.map_or(LOOK_EVERY, |until| until.saturating_since(clock::boot()));
    let left = Timespec::try_from(left.min(LOOK_EVERY)).expect("a short time");
    let readable = |socket: &'a UdpSocket| PollFd::new(socket, PollFlags::IN);
    let mut sockets: Vec<_> = sockets.map(readable).collect();
    // Interrupted or not: who waits looks again.
    let _ = poll(&mut sockets, Some(&left));
}

fn back(master: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.connect(master).expect("a socket");
    socket.set_nonblocking(true).expect("a socket");
    socket
}

/// One datagram, by when it arrives.
type UnderWay = Reverse<(Moment, u64, SocketAddr, bool, Vec<u8>)>;

struct Network {
    rng: fastrand::Rng,
    faults: Faults,
    counts: Arc<Counts>,
    under_way: BinaryHeap<UnderWay>,
    sent: u64,
    is_cut: Arc<AtomicBool>,
}

impl Network {
    fn send(&mut self, client: SocketAddr, up: bool, bytes: &[u8]) {
        let Faults {
            lost,
            doubled,
            late,
            late_by,
        } = self.faults;
        let mut happens = |percent: u8, count: &AtomicU64| {
            let happens = self.rng.u8(..100) < percent;
            count.fetch_add(u64::from(happens), Ordering::Relaxed);
            happens
        };
        if happens(lost, &self.counts.lost) || self.is_cut.load(Ordering::Relaxed) {
            return;
        }
        let copies = 1 + u8::from(happens(doubled, &self.counts.doubled));
        for _ in 0..copies {
            let mut at = clock::boot();
            let is_late = self.rng.u8(..100) < late;
            self.counts
                .late
                .fetch_add(u64::from(is_late), Ordering::Relaxed);
            if is_late {
                at = at + late_by.mul_f64(self.rng.f64());
            }
            self.sent += 1;
            let datagram = (at, self.sent, client, up, bytes.to_vec());
            self.under_way.push(Reverse(datagram));
        }
        self.counts.passed.fetch_add(1, Ordering::Relaxed);
    }

    /// When something that was held back is to go out.
    fn next_due(&self) -> Option<Moment> {
        self.under_way.peek().map(|Reverse((at, ..))| *at)
    }

    fn due(&mut self) -> Vec<(SocketAddr, bool, Vec<u8>)> {
        let now = clock::boot();
        let mut due = Vec::new();
        while self
            .under_way
            .peek()
            .is_some_and(|Reverse((at, ..))| *at <= now)
        {
            if let Some(Reverse((_, _, client, up, bytes))) = self.under_way.pop() {
                due.push((client, up, bytes));
            }
        }
        due
    }
}
