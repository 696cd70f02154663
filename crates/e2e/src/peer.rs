//! Speaks the wire protocol, rightly or wrongly. Written apart from the slave's own code, so that
//! both would have to make the same mistake.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use prost::Message;
use rollcall_os::clock;
use rollcall_protocol::wire::{
    self, Ack, Check, Hello, Mode, Pending, Report, Status, ToMaster, ToSlave, Welcome, to_master,
    to_slave,
};
use socket2::{Domain, Socket, Type};

/// How long an answer may take unless [`Peer::set_timeout`] says otherwise.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a master.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
}

/// Who connects: an id, a stream and the place in it outlive a connection.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The slave's name.
    pub name: String,
    /// Its id.
    pub id: [u8; 16],
    /// Its stream.
    pub stream: u64,
    /// The sequence of the next report.
    pub next: u64,
    /// The first one that was not acked.
    pub unacked: u64,
    /// What it announces.
    pub interval_ms: u32,
}

impl Identity {
    /// A new slave called `name`.
    pub fn new(name: &str, interval_ms: u32) -> Self {
        Self {
            name: name.to_owned(),
            id: fastrand::u128(..).to_be_bytes(),
            stream: fastrand::u64(1..),
            next: 1,
            unacked: 1,
            interval_ms,
        }
    }

    /// Its Hello for a pooled connection.
    pub fn hello(&self) -> Hello {
        let pending = Pending {
            stream: self.stream,
            first: self.unacked,
        };
        Hello {
            version_min: 1,
            version_max: 1,
            slave_id: self.id.to_vec(),
            name: self.name.clone(),
            stream: self.stream,
            next_sequence: self.next,
            interval_ms: self.interval_ms,
            mode: Mode::Pooled.into(),
            agent_version: "e2e".to_owned(),
            backlog: self.next - self.unacked,
            pending: vec![pending],
            frames: 0,
            ..Hello::default()
        }
    }

    /// Its report of this sequence.
    pub fn report(&self, sequence: u64) -> Report {
        let check = Check {
            name: "e2e".to_owned(),
            text: format!("report {sequence}"),
            ..Check::default()
        };
        Report {
            stream: self.stream,
            sequence,
            time_ms: clock::wall_ms(),
            live: sequence + 1 >= self.next,
            status: Some(Status {
                checks: vec![check],
            }),
            ..Report::default()
        }
    }
}

impl Peer {
    /// Connects and says nothing.
    ///
    /// # Errors
    /// What connect(2) says.
    pub fn connect(master: SocketAddr) -> io::Result<Self> {
        Self::of(TcpStream::connect_timeout(&master, TIMEOUT)?)
    }

    fn of(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { stream })
    }

    /// Connects from `source` and says nothing. Port 0 is any.
    ///
    /// # Errors
    /// What bind(2) and connect(2) say.
    pub fn connect_from(source: SocketAddr, master: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(master), Type::STREAM, None)?;
        socket.bind(&source.into())?;
        socket.connect_timeout(&master.into(), TIMEOUT)?;
        Self::of(socket.into())
    }

    /// Connects, says Hello and takes the Welcome.
    ///
    /// # Errors
    /// If the master is not there or does not welcome.
    pub fn open(master: SocketAddr, identity: &Identity) -> anyhow::Result<(Self, Welcome)> {
        let mut peer = Self::connect(master)?;
        let welcome = peer.greet(identity)?;
        Ok((peer, welcome))
    }

    /// Says Hello and takes the Welcome.
    ///
    /// # Errors
    /// If the master does not welcome.
    pub fn greet(&mut self, identity: &Identity) -> anyhow::Result<Welcome> {
        self.send(to_master::Kind::Hello(identity.hello()))?;
        match self.receive()? {
            Some(to_slave::Kind::Welcome(welcome)) => Ok(welcome),
            other => bail!("no Welcome: {other:?}"),
        }
    }

    /// How long an answer may take.
    ///
    /// # Errors
    /// What setsockopt(2) says.
    pub fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(timeout))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn send(&mut self, kind: to_master::Kind) -> io::Result<()> {
        self.send_bytes(&frame(kind))
    }

    /// Sends any bytes.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next message; `None` at the end of the stream.
    ///
    /// # Errors
    /// If none comes in time, or what comes is not one.
    pub fn receive(&mut self) -> anyhow::Result<Option<to_slave::Kind>> {
        let mut header = [0; 4];
        match self.stream.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result.context("no answer")?,
        }
        let length = usize::try_from(u32::from_be_bytes(header))?;
        ensure!(length <= 65_532, "a frame of {length} bytes");
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        let message = ToSlave::decode(&payload[..])?;
        Ok(Some(message.kind.context("a message of no known kind")?))
    }

    /// Sends the next report of `identity` and waits for its ack. Returns how long that took.
    ///
    /// # Errors
    /// If the ack does not come.
    pub fn report(&mut self, identity: &mut Identity) -> anyhow::Result<Duration> {
        let started = clock::boot();
        self.send_report(identity)?;
        self.await_ack(identity)?;
        Ok(clock::boot().saturating_since(started))
    }

    /// Sends the next report of `identity`.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn send_report(&mut self, identity: &mut Identity) -> io::Result<()> {
        identity.next += 1;
        let report = identity.report(identity.next - 1);
        self.send(to_master::Kind::Report(report))
    }

    /// Sends again what `identity` has not had acked: a new connection begins with it.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn resend(&mut self, identity: &Identity) -> io::Result<()> {
        for sequence in identity.unacked..identity.next {
            self.send(to_master::Kind::Report(identity.report(sequence)))?;
        }
        Ok(())
    }

    /// Waits until all that `identity` has sent is acked.
    ///
    /// # Errors
    /// If something else comes, or nothing in time.
    pub fn await_ack(&mut self, identity: &mut Identity) -> anyhow::Result<()> {
        while identity.unacked < identity.next {
            match self.receive()? {
                Some(to_slave::Kind::Ack(Ack {
                    stream, sequence, ..
                })) => {
                    ensure!(stream == identity.stream, "an ack of stream {stream:x}");
                    ensure!(sequence < identity.next, "an ack of {sequence}, never sent");
                    identity.unacked = identity.unacked.max(sequence + 1);
                }
                // News for when the connection is lost: the fleet has grown.
                Some(to_slave::Kind::ComeBack(_)) => {}
                other => bail!("no Ack: {other:?}"),
            }
        }
        Ok(())
    }

    /// Waits for the Error frame and the end of the stream after it.
    ///
    /// # Errors
    /// If something else comes.
    pub fn await_refusal(&mut self) -> anyhow::Result<wire::Error> {
        let Some(to_slave::Kind::Error(error)) = self.receive()? else {
            bail!("no Error frame");
        };
        self.await_close()?;
        Ok(error)
    }

    /// Waits for the end of the stream; nothing may come before it.
    ///
    /// # Errors
    /// If something comes, or no end in time.
    pub fn await_close(&mut self) -> anyhow::Result<()> {
        match self.receive()? {
            None => Ok(()),
            Some(message) => bail!("{message:?} came where the end was due"),
        }
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }
}

/// A message as it goes over the wire.
pub fn frame(kind: to_master::Kind) -> Vec<u8> {
    let payload = ToMaster { kind: Some(kind) }.encode_to_vec();
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &payload].concat()
}
