//! What becomes of the local ports in a run: connections begun and failed, and TIME_WAIT that is left
//! on this side.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rollcall_os::diag::sockets::{self, Filter, States, TcpState};
use rollcall_protocol::Moment;
use serde::Serialize;

use crate::ratio::{float, ratio};

/// How long Linux keeps TIME_WAIT (TCP_TIMEWAIT_LEN, net/tcp.h).
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Between two notes of how many connections there have been.
const NOTED_EVERY: Duration = Duration::from_secs(1);

/// What is told of the ports.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct PortsReport {
    /// Connections begun, those that failed included.
    pub(crate) connects: u64,
    /// Connections that did not come about, by errno: 99 is EADDRNOTAVAIL.
    pub(crate) connects_failed: BTreeMap<i32, u64>,
    /// TIME_WAIT towards the server on this side, after the last connection; absent if the kernel
    /// does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time_wait: Option<u64>,
    /// The part of the connections of the last minute that left it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time_wait_share: Option<f64>,
}

/// Counts them towards one server.
#[derive(Debug)]
pub(crate) struct Connects {
    server: SocketAddr,
    /// TIME_WAIT that was there before.
    before: Option<u64>,
    begun: u64,
    failed: BTreeMap<i32, u64>,
    /// How many had been begun at moments of the last minute.
    notes: VecDeque<(Moment, u64)>,
}

impl Connects {
    /// Towards `server`, from `now` on.
    pub(crate) fn to(server: SocketAddr, now: Moment) -> Self {
        Self {
            server,
            before: time_wait(server).ok(),
            begun: 0,
            failed: BTreeMap::new(),
            notes: VecDeque::from([(now, 0)]),
        }
    }

    /// A connection was begun.
    pub(crate) fn begun(&mut self) {
        self.begun += 1;
    }

    /// It did not come about, or broke.
    pub(crate) fn failed(&mut self, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or_default();
        *self.failed.entry(errno).or_default() += 1;
    }

    /// Takes over what others have counted.
    pub(crate) fn set(&mut self, begun: u64, failed: &BTreeMap<i32, u64>) {
        self.begun = begun;
        self.failed.clone_from(failed);
    }

    /// To be called again and again.
    pub(crate) fn look(&mut self, now: Moment) {
        let last = self.notes.back();
        if last.is_some_and(|(at, _)| now.saturating_since(*at) < NOTED_EVERY) {
            return;
        }
        self.notes.push_back((now, self.begun));
        while self
            .notes
            .get(1)
            .is_some_and(|(at, _)| now.saturating_since(*at) >= TIME_WAIT)
        {
            self.notes.pop_front();
        }
    }

    /// What is to be told now, after the last connection.
    pub(crate) fn report(&self) -> PortsReport {
        let after = time_wait(self.server).ok();
        let time_wait = self
            .before
            .zip(after)
            .map(|(before, after)| after.saturating_sub(before));
        let earlier = self.notes.front().map_or(0, |(_, begun)| *begun);
        let recent = float(self.begun - earlier);
        let share = time_wait.and_then(|count| ratio(float(count), recent));
        PortsReport {
            connects: self.begun,
            connects_failed: self.failed.clone(),
            time_wait,
            time_wait_share: share,
        }
    }
}

/// How many connections towards `server` are in TIME_WAIT here. Those of the server itself, where it is
/// on this host, have it as their own address and do not count.
fn time_wait(server: SocketAddr) -> io::Result<u64> {
    let filter = Filter {
        states: States::of(&[TcpState::TimeWait]),
        remote_port: Some(server.port()),
        remote: Some(server.ip()),
        ..Filter::default()
    };
    let found = sockets::tcp(&filter)?;
    Ok(u64::try_from(found.len()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds))
    }

    #[test]
    fn who_closes_first_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut connects = Connects::to(address, at(0));
        for client_first in [true, false, true, false, true] {
            connects.begun();
            let mut client = TcpStream::connect(address).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            if client_first {
                drop(client);
                assert_eq!(server.read(&mut [0; 1]).unwrap(), 0);
            } else {
                drop(server);
                assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
            }
        }
        connects.look(at(1));
        let report = connects.report();
        assert_eq!(report.time_wait, Some(3));
        assert_eq!(report.time_wait_share, Some(0.6));
    }

    #[test]
    fn the_share_is_that_of_the_last_minute() {
        let mut connects = Connects::to("127.0.0.1:1".parse().unwrap(), at(0));
        for second in 0..200 {
            connects.set(second * 10, &BTreeMap::new());
            connects.look(at(second));
        }
        assert_eq!(connects.notes.front(), Some(&(at(139), 1390)));
        assert!(connects.notes.len() <= 62);
    }
}
