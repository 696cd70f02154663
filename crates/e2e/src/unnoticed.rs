//! Restarts that nobody may notice: neither who connects nor who is connected, nor a reader of events.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rollcall_protocol::api::{EventKind, EventRow};

use crate::bench::{Bench, Outcome};
use crate::master::Master;
use crate::wait::{PATIENCE, wait_until};

/// Between two connects of a [`Prober`].
const PROBE_EVERY: Duration = Duration::from_millis(5);

/// Starts a fleet that reports ten times a second until it is stopped, and waits until each of its `slaves`
/// and of the `others` that run already has reported.
#[track_caller]
pub fn start_fleet(folder: &Path, master: &Master, slaves: usize, others: usize) -> Bench {
    let count = slaves.to_string();
    let mut arguments = vec!["--slaves", &count, "--mode", "pooled"];
    arguments.extend(["--rate", "10", "--duration", "1h"]);
    let bench = Bench::spawn(folder, master.address(), &arguments);
    let api = master.api();
    wait_until(PATIENCE, "all slaves on the roll, with a report", || {
        let rows = api.slaves().ok()?;
        let reporting = rows.iter().filter(|row| row.applied > 0).count();
        (reporting == slaves + others).then_some(())
    });
    bench
}

/// Connects again and again and counts whom nobody listens to.
#[derive(Debug)]
pub struct Prober {
    stop: mpsc::Sender<()>,
    tried: Arc<AtomicU64>,
    thread: JoinHandle<Vec<io::Error>>,
}

impl Prober {
    /// Starts with `master`.
    pub fn start(master: SocketAddr) -> Self {
        Self::probe(move || TcpStream::connect(master).map(drop))
    }

    /// Starts with a master's HTTP side: each asks for `/healthz`, on a connection of its own, and gets
    /// a whole answer.
    pub fn of_readers(http: SocketAddr) -> Self {
        Self::probe(move || ask(http))
    }

    fn probe(probe: impl Fn() -> io::Result<()> + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let tried = Arc::<AtomicU64>::default();
        let trying = Arc::clone(&tried);
        let thread = thread::spawn(move || {
            let mut failed = Vec::new();
            // Until it is stopped, but no flood.
            while stopped.recv_timeout(PROBE_EVERY).is_err() {
                failed.extend(probe().err());
                trying.fetch_add(1, Ordering::Relaxed);
            }
            failed
        });
        Self {
            stop,
            tried,
            thread,
        }
    }

    /// Ends.
    ///
    /// # Panics
    /// If one connect has failed.
    #[track_caller]
    pub fn assert_nobody_was_refused(self) {
        self.stop.send(()).expect("it goes on");
        let failed = self.thread.join().expect("no panic");
        let tried = self.tried.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "of {tried}: {failed:?}");
        println!("{tried} connects, none refused");
    }
}

fn ask(http: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(http)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.starts_with("HTTP/1.1 200 ") {
        true => Ok(()),
        false => Err(io::Error::other(format!("answered {answer:?}"))),
    }
}

/// Each slave of the run, and `others`, came up once, and that is all that has happened: no reconnect,
/// nothing lost or sent twice, no event.
///
/// # Panics
/// If it is not.
#[track_caller]
pub fn assert_nobody_noticed(
    outcome: &Outcome,
    master: &Master,
    events: &[EventRow],
    others: usize,
) {
    let result = &outcome.result;
    assert_eq!(outcome.code, Some(0), "{result} {}", outcome.stderr);
    for nothing in ["/lost", "/reconnects", "/resent"] {
        assert_eq!(outcome.number(nothing), 0, "{nothing}: {result}");
    }
    assert_eq!(outcome.number("/acked"), outcome.number("/sent"));
    let errors = result["errors"].as_object().expect("errors by kind");
    assert!(errors.is_empty(), "{result}");
    for row in outcome.assert_on_the_roll_of(master) {
        assert_eq!(row.reconnects, 0, "{row:#?}");
    }
    let noticed = |event: &&EventRow| match event.kind {
        EventKind::Presence => event.to.as_deref() != Some("up"),
        // What a slave says of its own host is not what is asked here.
        EventKind::Enrolled | EventKind::MasterStart | EventKind::Health | EventKind::Check => {
            false
        }
        _ => true,
    };
    let noticed: Vec<_> = events.iter().filter(noticed).collect();
    assert!(noticed.is_empty(), "{}: {noticed:#?}", noticed.len());
    let came_up = |event: &&EventRow| event.kind == EventKind::Presence;
    let everybody = outcome.ledger.len() + others;
    assert_eq!(events.iter().filter(came_up).count(), everybody);
}
