//! Who is there all the time and notices what others may miss.

use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rollcall_e2e::peer::Identity;
use rollcall_e2e::{Namespace, Peer};
use rollcall_os::clock;
use rollcall_protocol::Moment;
use socket2::{Domain, Socket, Type};

/// Between an ack and the next report of a witness.
const REPORT_EVERY: Duration = Duration::from_millis(10);
/// Between two connects of the knocker.
const KNOCK_EVERY: Duration = Duration::from_millis(1);
/// No answer by then is none.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A report: when it was made, and when it was acked.
#[derive(Clone, Copy, Debug)]
struct Sample {
    made: Moment,
    acked: Moment,
}

/// A slave on one connection, which it never makes anew, with one report under way nearly all the time.
pub(crate) struct Witness {
    samples: Arc<Mutex<Vec<Sample>>>,
    thread: Background<Identity>,
}

impl Witness {
    /// Connects and begins.
    pub(crate) fn start(network: &Namespace, master: SocketAddr, name: &str) -> Self {
        let mut identity = Identity::new(name, 2000);
        let opened = network.run(|| Peer::open(master, &identity));
        let (mut peer, _) = opened.expect("the witness is welcome");
        peer.set_timeout(TIMEOUT).expect("a timeout can be set");
        let samples = Arc::<Mutex<Vec<_>>>::default();
        let told = Arc::clone(&samples);
        let thread = Background::start(REPORT_EVERY, move |turns| {
            while turns.next() {
                let made = clock::boot();
                if let Err(error) = peer.report(&mut identity) {
                    panic!("the connection of {} broke: {error:#}", identity.name);
                }
                let acked = clock::boot();
                lock(&told).push(Sample { made, acked });
            }
            identity
        });
        Self { samples, thread }
    }

    /// Whether a report was made after `moment` and is acked.
    pub(crate) fn has_reported_since(&self, moment: Moment) -> bool {
        self.thread.assert_is_running();
        let samples = lock(&self.samples);
        samples.last().is_some_and(|sample| sample.made > moment)
    }

    /// The longest time to an ack of those that were waited for in between.
    pub(crate) fn longest(&self, from: Moment, to: Moment) -> Duration {
        let samples = lock(&self.samples);
        let between = samples
            .iter()
            .filter(|sample| sample.acked >= from && sample.made <= to);
        between
            .map(|sample| sample.acked.saturating_since(sample.made))
            .max()
            .unwrap_or_default()
    }

    /// Ends it, and says who it was and how far it came.
    pub(crate) fn end(self) -> Identity {
        self.thread.end()
    }
}

/// What became of connects.
#[derive(Debug, Default)]
pub(crate) struct Knocks {
    pub(crate) answered: u32,
    /// What the operating system said of each that failed.
    pub(crate) failures: Vec<String>,
    /// The longest time that one took.
    pub(crate) longest: Duration,
}

/// Connects again and again, and says nothing.
pub(crate) struct Knocker(Background<Knocks>);

impl Knocker {
    pub(crate) fn start(network: Namespace, master: SocketAddr) -> Self {
        Self(Background::start(KNOCK_EVERY, move |turns| {
            network.run(|| {
                let mut knocks = Knocks::default();
                while turns.next() {
                    let begun = clock::boot();
                    match knock(master) {
                        Ok(()) => knocks.answered += 1,
                        Err(error) => knocks.failures.push(error.to_string()),
                    }
                    knocks.longest = knocks.longest.max(clock::boot().saturating_since(begun));
                }
                knocks
            })
        }))
    }

    pub(crate) fn end(self) -> Knocks {
        self.0.end()
    }
}

/// Connects, and ends the connection with a reset: so it keeps no port in TIME_WAIT.
fn knock(master: SocketAddr) -> std::io::Result<()> {
    let socket = Socket::new(Domain::for_address(master), Type::STREAM, None)?;
    socket.connect_timeout(&master.into(), TIMEOUT)?;
    socket.set_linger(Some(Duration::ZERO))
}

/// A thread that does something in turns until it is to end.
struct Background<T> {
    end: Sender<()>,
    thread: JoinHandle<T>,
}

/// When it is its turn.
struct Turns {
    every: Duration,
    end: mpsc::Receiver<()>,
}

impl Turns {
    /// Waits for the next one; false if there is none.
    fn next(&mut self) -> bool {
        self.end.recv_timeout(self.every) == Err(RecvTimeoutError::Timeout)
    }
}

impl<T: Send + 'static> Background<T> {
    fn start(every: Duration, work: impl FnOnce(&mut Turns) -> T + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        let mut turns = Turns {
            every,
            end: receiver,
        };
        Self {
            end: sender,
            thread: thread::spawn(move || work(&mut turns)),
        }
    }

    #[track_caller]
    fn assert_is_running(&self) {
        assert!(!self.thread.is_finished(), "a witness has given up");
    }

    fn end(self) -> T {
        drop(self.end);
        match self.thread.join() {
            Ok(result) => result,
            Err(panicked) => std::panic::resume_unwind(panicked),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
