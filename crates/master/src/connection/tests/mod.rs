mod lanes;

use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;

use rollcall_protocol::frame::Frame;
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::wire::{Mode, Pending, Report, SlaveGoodbye, to_master};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::*;
use crate::reactor::SHARES_MAX;
use crate::roll::Durable;
use crate::store::{Opened, Outcome, Retention, Store, StoreHandle};
use crate::testing::{RULES, publication, roll, run};

/// A kernel's buffer in memory, which like the runtime tells of new bytes once. What is done with it
/// is noted in order.
#[derive(Clone, Default)]
struct Memory(Rc<MemoryState>);

#[derive(Default)]
struct MemoryState {
    input: RefCell<Vec<u8>>,
    output: RefCell<Vec<u8>>,
    /// The length of the output when bytes were consumed.
    consumed: RefCell<Vec<usize>>,
    ready: Cell<bool>,
    arrived: Notify,
    closed: Notify,
    panics: bool,
}

impl Memory {
    fn arrive(&self, messages: &[to_master::Kind]) {
        for kind in messages {
            let message = ToMaster {
                kind: Some(kind.clone()),
            };
            frame::encode(&message, &mut self.0.input.borrow_mut()).unwrap();
        }
        self.arrived();
    }

    fn arrived(&self) {
        self.0.ready.set(true);
        self.0.arrived.notify_one();
    }

    fn answers(&self) -> Vec<Kind> {
        let output = self.0.output.borrow();
        let mut frames = Frames::new(&output, FRAME_PAYLOAD_BYTES_MAX);
        std::iter::from_fn(|| frames.next_frame().unwrap())
            .map(|frame: Frame<'_>| frame.decode::<ToSlave>().unwrap().kind.unwrap())
            .collect()
    }
}

impl Transport for Memory {
    async fn readable(&self) -> io::Result<()> {
        while !self.0.ready.get() {
            self.0.arrived.notified().await;
        }
        Ok(())
    }

    fn is_finished(&self) -> bool {
        false
    }

    fn peek(&self, buffer: &mut [u8], left: bool) -> io::Result<Option<usize>> {
        assert!(!self.0.panics, "planted");
        if !self.0.ready.replace(false) && !left {
            return Ok(None);
        }
        let input = self.0.input.borrow();
        buffer[..input.len()].copy_from_slice(&input);
        Ok(Some(input.len()))
    }

    fn consume(&self, count: usize, _: &mut [u8]) -> io::Result<()> {
        self.0.input.borrow_mut().drain(..count);
        self.0
            .consumed
            .borrow_mut()
            .push(self.0.output.borrow().len());
        Ok(())
    }

    fn make_room_for_frame(&self) -> io::Result<()> {
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8], _: Duration) -> io::Result<()> {
        self.0.output.borrow_mut().extend_from_slice(bytes);
        Ok(())
    }

    async fn close(&mut self) {
        self.0.closed.notify_one();
    }
}

struct Fixture {
    reactor: Rc<Reactor>,
    store: StoreHandle,
    outcomes: mpsc::Receiver<Outcome>,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let retention = Retention {
            keep: Duration::from_secs(3600),
            bytes_max: 1 << 30,
        };
        let Opened {
            loaded,
            handle,
            outcomes,
        } = Store::open(directory.path(), retention).unwrap();
        let durable = Durable {
            next_group: loaded.next_group,
            next_event: loaded.next_event,
            ..Durable::default()
        };
        let reactor = Reactor::new(
            roll(durable),
            Vec::new(),
            RULES,
            loaded.master_id,
            publication(),
        );
        Self {
            reactor: Rc::new(reactor),
            store: handle,
            outcomes,
            _directory: directory,
        }
    }

    fn serve(
        &self,
        transport: &Memory,
        stop: &CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let peer = "127.0.0.1:1".parse().unwrap();
        Connection::new(Rc::clone(&self.reactor), peer).serve(transport.clone(), stop.clone())
    }

    /// Commits whatever gathers, until a connection has come to its end.
    async fn commit_until(&mut self, ended: JoinHandle<()>) {
        let committing = self.reactor.commit_groups(&self.store, &mut self.outcomes);
        tokio::select! {
            failure = committing => panic!("{failure}"),
            ended = ended => ended.unwrap(),
        }
    }
}

fn hello(mode: Mode, frames: u32) -> to_master::Kind {
    to_master::Kind::Hello(Hello {
        version_min: 1,
        version_max: 1,
        slave_id: vec![1; 16],
        name: "web-1".into(),
        stream: 7,
        next_sequence: 1,
        interval_ms: 1000,
        mode: mode.into(),
        pending: vec![Pending {
            stream: 7,
            first: 1,
        }],
        frames,
        ..Hello::default()
    })
}

fn report(sequence: u64) -> to_master::Kind {
    to_master::Kind::Report(Report {
        stream: 7,
        sequence,
        live: true,
        ..Report::default()
    })
}

#[test]
fn nothing_is_consumed_or_acked_before_it_is_durable() {
    let mut fixture = Fixture::new();
    let memory = Memory::default();
    let stop = CancellationToken::new();
    run(async {
        let task = tokio::task::spawn_local(fixture.serve(&memory, &stop));
        memory.arrive(&[hello(Mode::PerMessage, 2), report(1), report(2)]);
        while !fixture.reactor.roll().has_group() {
            tokio::task::yield_now().await;
        }
        // Nobody commits: it may take any number of turns of the loop.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(
            memory.0.consumed.borrow().is_empty(),
            "consumed before the commit"
        );
        assert!(
            memory.0.output.borrow().is_empty(),
            "answered before the commit"
        );

        fixture.commit_until(task).await;
    });
    assert_eq!(
        memory.0.consumed.take(),
        [0],
        "once, before anything was answered"
    );
    assert!(memory.0.input.borrow().is_empty());
    match memory.answers().as_slice() {
        [Kind::Welcome(_), Kind::Ack(ack)] => {
            assert_eq!((ack.stream, ack.sequence), (7, 2));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_goodbye_is_answered_with_what_is_durable() {
    let mut fixture = Fixture::new();
    let memory = Memory::default();
    let stop = CancellationToken::new();
    run(async {
        let task = tokio::task::spawn_local(fixture.serve(&memory, &stop));
        let goodbye = to_master::Kind::Goodbye(SlaveGoodbye::default());
        memory.arrive(&[hello(Mode::Pooled, 0), report(1), goodbye]);
        fixture.commit_until(task).await;
    });
    match memory.answers().as_slice() {
        [Kind::Welcome(_), Kind::Goodbye(goodbye), Kind::Ack(_)] => {
            assert_eq!(
                goodbye.marks,
                [Mark {
                    stream: 7,
                    sequence: 1
                }]
            );
            assert!(goodbye.back_max_ms > 0);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_panic_in_a_connection_ends_that_connection_only() {
    let mut fixture = Fixture::new();
    let (faulty, sound) = (
        Memory(Rc::new(MemoryState {
            panics: true,
            ..MemoryState::default()
        })),
        Memory::default(),
    );
    let stop = CancellationToken::new();
    run(async {
        let broken = tokio::task::spawn_local(fixture.serve(&faulty, &stop));
        let served = tokio::task::spawn_local(fixture.serve(&sound, &stop));
        faulty.arrive(&[hello(Mode::Pooled, 0)]);
        sound.arrive(&[hello(Mode::PerMessage, 1), report(1)]);
        let reactor = Rc::clone(&fixture.reactor);
        let committing = reactor.commit_groups(&fixture.store, &mut fixture.outcomes);
        tokio::select! {
            failure = committing => panic!("{failure}"),
            () = reactor.failed() => panic!("a core task counts as failed"),
            ended = async { (broken.await, served.await) } => {
                assert!(ended.0.unwrap_err().is_panic());
                ended.1.unwrap();
            }
        }
    });
    assert_eq!(fixture.reactor.stats().connection_panics.get(), 1);
    assert_eq!(fixture.reactor.stats().connections.get(), 0);
    assert_eq!(sound.answers().len(), 2);
}

#[test]
fn a_panic_of_the_rolls_owner_is_a_failure_of_the_daemon() {
    let fixture = Fixture::new();
    let reactor = Rc::clone(&fixture.reactor);
    let planted = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let _roll = reactor.roll();
        panic!("planted");
    }));
    assert!(planted.is_err());
    run(async { fixture.reactor.failed().await });
}

#[test]
fn garbage_is_answered_with_an_error_and_the_end() {
    let mut fixture = Fixture::new();
    let memory = Memory::default();
    memory
        .0
        .input
        .borrow_mut()
        .extend_from_slice(&u32::MAX.to_be_bytes());
    memory.arrived();
    let stop = CancellationToken::new();
    run(async {
        let task = tokio::task::spawn_local(fixture.serve(&memory, &stop));
        fixture.commit_until(task).await;
    });
    match memory.answers().as_slice() {
        [Kind::Error(error)] => {
            assert_eq!(
                error.code(),
                rollcall_protocol::wire::ErrorCode::FrameLength
            );
            assert!(!error.retry);
        }
        other => panic!("{other:?}"),
    }
}

/// Turns of the loop until `holds`.
async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn an_idle_connection_needs_little_memory() {
    let fixture = Fixture::new();
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let connection = Connection::new(Rc::clone(&fixture.reactor), address);
        let future = connection.serve(stream, CancellationToken::new());
        assert!(size_of_val(&future) <= 424, "{}", size_of_val(&future));
    });
}
