//! A master of the tests: it says what the test tells it to, on a port that the kernel picks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use rollcall_os::outgoing::Outgoing;
use rollcall_os::socket::Liveness;
use rollcall_protocol::backoff::BackoffLimits;
use rollcall_protocol::datagram::ResendLimits;
use rollcall_protocol::frame::{self, Frame};
use rollcall_protocol::limits::FRAME_PAYLOAD_BYTES_MAX;
use rollcall_protocol::session::slave::SlaveTimeouts;
use rollcall_protocol::wire::to_master::Kind;
use rollcall_protocol::wire::{self, Hello, Mark, ToMaster, ToSlave, to_slave};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Close, Link, LinkConfig, OnExhaustion, PortUse};
use crate::spool::{Spool, SpoolError, SpoolLimits};

/// Everything that is waited for has to come within this.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(PATIENCE, future).await {
        Ok(done) => done,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

pub(super) struct FakeMaster {
    listener: TcpListener,
}

impl FakeMaster {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Takes a connection and its Hello. Connections that end without one only ask whether this
    /// master is there.
    pub(super) async fn accept(&self) -> (FakeSession, Hello) {
        loop {
            let (stream, _) = soon("a connection", self.listener.accept()).await.unwrap();
            let mut session = FakeSession {
                stream,
                input: BytesMut::new(),
            };
            match session.next().await {
                Some(Kind::Hello(hello)) => return (session, hello),
                None => {}
                other => panic!("not Hello: {other:?}"),
            }
        }
    }

    /// Whether nobody connects for a moment.
    pub(super) async fn is_left_alone(&self) -> bool {
        let accept = self.listener.accept();
        timeout(Duration::from_millis(200), accept).await.is_err()
    }

    /// The same as [`Self::accept`], and welcomes it with a mark for each stream: nothing is durable yet.
    pub(super) async fn welcome(&self) -> (FakeSession, Hello) {
        let (mut session, hello) = self.accept().await;
        let marks = hello.pending.iter().map(|pending| Mark {
            stream: pending.stream,
            sequence: pending.first - 1,
        });
        session.welcome(marks.collect()).await;
        (session, hello)
    }
}

pub(super) struct FakeSession {
    stream: TcpStream,
    input: BytesMut,
}

impl FakeSession {
    /// The next message; `None` when the slave has closed.
    pub(super) async fn next(&mut self) -> Option<Kind> {
        loop {
            if let Some(frame) = Frame::peek(&self.input, FRAME_PAYLOAD_BYTES_MAX).unwrap() {
                let message: ToMaster = frame.decode().unwrap();
                let taken = frame.taken;
                self.input.advance(taken);
                return message.kind;
            }
            let read = self.stream.read_buf(&mut self.input);
            if soon("a message", read).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The next message is this report.
    pub(super) async fn report(&mut self) -> wire::Report {
        match self.next().await {
            Some(Kind::Report(report)) => report,
            other => panic!("not a report: {other:?}"),
        }
    }

    /// The next messages, as "P3" for a preview, "L3" for a live report, "3" for another one, and
    /// "1-2" for a gap.
    pub(super) async fn shown(&mut self, count: usize) -> Vec<String> {
        let mut shown = Vec::new();
        for _ in 0..count {
            shown.push(match self.next().await {
                Some(Kind::Report(report)) => {
                    let mark = match (report.preview, report.live) {
                        (true, _) => "P",
                        (false, true) => "L",
                        (false, false) => "",
                    };
                    format!("{mark}{}", report.sequence)
                }
                Some(Kind::Gap(gap)) => format!("{}-{}", gap.first, gap.last),
                other => panic!("neither report nor gap: {other:?}"),
            });
        }
        shown
    }

    /// Whether the slave stays silent and connected for a moment.
    pub(super) async fn is_quiet(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.input);
        timeout(Duration::from_millis(200), read).await.is_err()
    }

    /// Whether the slave ends the connection by a reset.
    pub(super) async fn is_reset(&mut self) -> bool {
        let read = soon("the end", self.stream.read_buf(&mut self.input)).await;
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    }

    pub(super) async fn send(&mut self, kind: to_slave::Kind) {
        let mut bytes = Vec::new();
        frame::encode(&ToSlave { kind: Some(kind) }, &mut bytes).unwrap();
        self.send_bytes(&bytes).await;
    }

    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(super) async fn welcome(&mut self, marks: Vec<Mark>) {
        self.welcome_with(wire::Welcome {
            marks,
            window: 64,
            ..wire::Welcome::default()
        })
        .await;
    }

    pub(super) async fn welcome_with(&mut self, welcome: wire::Welcome) {
        let welcome = wire::Welcome {
            version: 1,
            max_frame_bytes: 1000,
            ..welcome
        };
        self.send(to_slave::Kind::Welcome(welcome)).await;
    }

    pub(super) async fn ack(&mut self, stream: u64, sequence: u64) {
        let ack = wire::Ack {
            stream,
            sequence,
            ..wire::Ack::default()
        };
        self.send(to_slave::Kind::Ack(ack)).await;
    }

    /// Closes as a master does: shuts its side down and reads to the end of the slave's.
    pub(super) async fn close(mut self) {
        self.stream.shutdown().await.unwrap();
        while self.next().await.is_some() {}
    }
}

/// A slave's link over a spool of its own.
pub(super) struct Rig {
    pub(super) spool: Spool,
    pub(super) config: watch::Sender<Arc<LinkConfig>>,
    pub(super) clock_offset_ms: watch::Receiver<Option<i64>>,
    pub(super) port_use: watch::Receiver<Option<PortUse>>,
    pub(super) stop: CancellationToken,
    link: JoinSet<Result<(), SpoolError>>,
    pub(super) directory: TempDir,
}

impl Rig {
    /// A spool and a link that has not been started.
    pub(super) fn new(masters: &[&FakeMaster]) -> Self {
        Self::with_config(config(masters))
    }

    pub(super) fn with_config(config: LinkConfig) -> Self {
        Self::in_directory(tempfile::tempdir().unwrap(), config)
    }

    pub(super) fn in_directory(directory: TempDir, config: LinkConfig) -> Self {
        let spool = open(&directory);
        let (config, _) = watch::channel(Arc::new(config));
        let (_, clock_offset_ms) = watch::channel(None);
        let (_, port_use) = watch::channel(None);
        Self {
            spool,
            config,
            clock_offset_ms,
            port_use,
            stop: CancellationToken::new(),
            link: JoinSet::new(),
            directory,
        }
    }

    pub(super) fn start(&mut self) {
        let (offset, clock_offset_ms) = watch::channel(None);
        self.clock_offset_ms = clock_offset_ms;
        let (used, port_use) = watch::channel(None);
        self.port_use = port_use;
        let updates = self.config.subscribe();
        let stop = self.stop.clone();
        let link = Link::new(self.spool.clone(), updates, offset, used, stop);
        self.link.spawn(link.run());
    }

    pub(super) async fn append(&self, count: usize) {
        for _ in 0..count {
            assert!(self.spool.append(wire::Report::default()).await.unwrap());
        }
    }

    /// Until all is acked.
    pub(super) async fn settled(&self) {
        let settled = async {
            while !self.spool.standing().await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        soon("the last ack", settled).await;
    }

    /// Until the link has ended.
    pub(super) async fn ended(&mut self) {
        let ended = soon("the link's end", self.link.join_next()).await;
        ended.unwrap().unwrap().unwrap();
    }
}

/// A master, and a link to it that has so many `reports` to send; its configuration as `change`
/// leaves it.
pub(super) async fn linked(
    reports: usize,
    change: impl FnOnce(&mut LinkConfig),
) -> (FakeMaster, Rig) {
    let master = FakeMaster::start().await;
    let mut config = config(&[&master]);
    change(&mut config);
    let mut rig = Rig::with_config(config);
    rig.append(reports).await;
    rig.start();
    (master, rig)
}

pub(super) fn open(directory: &TempDir) -> Spool {
    let limits = SpoolLimits {
        bytes_max: u64::MAX,
        age_max: Duration::from_secs(1_000_000_000),
        free_bytes_min: 0,
    };
    Spool::open(directory.path(), limits).unwrap().0
}

pub(super) fn config(masters: &[&FakeMaster]) -> LinkConfig {
    let ten = Duration::from_secs(10);
    LinkConfig {
        name: "test".to_owned(),
        labels: [("site".to_owned(), "north".to_owned())].into(),
        interval: ten,
        masters: masters
            .iter()
            .map(|master| master.address().to_string())
            .collect(),
        mode: wire::Mode::Pooled,
        resend: ResendLimits {
            first: Duration::from_millis(50),
            longest: Duration::from_millis(400),
        },
        outgoing: Outgoing::default(),
        close: Close::MasterFirst,
        on_exhaustion: OnExhaustion::Pool,
        idle_timeout: None,
        lifetime_max: None,
        connect_timeout: ten,
        timeouts: SlaveTimeouts {
            welcome: ten,
            ack: ten,
        },
        backoff: BackoffLimits {
            base: Duration::from_millis(1),
            cap: Duration::from_millis(20),
            reset_after: ten,
        },
        return_after: Duration::from_secs(3600),
        liveness: Liveness {
            keepalive_idle: ten,
            keepalive_interval: ten,
            user_timeout: ten,
        },
        drain: ten,
    }
}
