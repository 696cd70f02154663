//! Listening: sockets that bind at once after a crash, an accept loop for each that only accepts, and
//! listeners that come and go while the others go on.
//!
//! ```text
//!   SIGHUP ── Rules ──> Listeners ── one each ──> Door: accept ──> Admission ── let in ──> connection
//!                                                      │               └ refused ──> Farewells
//!                                                      └ no descriptor ──> Reserve
//! ```
//! What a removed listener has accepted stays until its own end. [`Admission`] is common to all
//! listeners, since the connections share one limit of open files.

mod bind;
mod door;
mod ephemeral;
mod farewell;
mod inherited;
mod overlap;
mod reserve;
#[cfg(test)]
pub(crate) mod tests;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::sync::Arc;

use rollcall_os::socket::{self, ListenError, ListenOptions, Liveness};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::{Admission, Limits};
use crate::adoption::Side;
use crate::reactor::Reactor;
pub(crate) use bind::bind;
use door::Door;
pub(crate) use door::canonical;
pub(crate) use ephemeral::warn_of_ephemeral_port;
use farewell::Farewells;
pub(crate) use inherited::Inherited;
pub(crate) use overlap::overlap;

/// One listener as it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// Where.
    pub(crate) address: SocketAddr,
    /// It takes only peers with a source port below 1024.
    pub(crate) privileged: bool,
}

/// Where is listened, and who gets in. SIGHUP may change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// All listeners; no two of the same address.
    pub(crate) listeners: Vec<Listener>,
    /// How many connections there may be at a time.
    pub(crate) limits: Limits,
}

/// How sockets are opened. It holds for as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sockets {
    pub(crate) options: ListenOptions,
    pub(crate) liveness: Liveness,
}

/// What every accepted connection is given.
#[derive(Clone)]
pub(crate) struct Accepting {
    pub(crate) reactor: Rc<Reactor>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    /// Ends the listeners only; whoever has connected goes on.
    pub(crate) shut: CancellationToken,
    pub(crate) admission: Rc<Admission>,
}

/// Why the master can't listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// An address can't be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A socket that listens can't be used.
    #[error("can't accept connections on {address}: {source}; see accept(2) and setsockopt(2)")]
    Socket {
        /// Where it listens.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A listener that runs.
struct Running {
    privileged: Rc<Cell<bool>>,
    stop: CancellationToken,
}

/// All listeners for slaves.
pub(crate) struct Listeners {
    accepting: Accepting,
    sockets: Sockets,
    farewells: Rc<Farewells>,
    running: BTreeMap<SocketAddr, Running>,
    /// Each ends with its address, once it was told to.
    doors: JoinSet<SocketAddr>,
}

impl Listeners {
    /// Listens on all addresses of `rules`; where the process was started with a listener, on that.
    ///
    /// # Errors
    /// The first address that can't be had, with the remedy.
    pub(crate) async fn start(
        accepting: Accepting,
        sockets: Sockets,
        rules: &Rules,
        mut inherited: Inherited,
    ) -> Result<Self, StartError> {
        let parking = accepting.reactor.parking();
        let mut bound = Vec::with_capacity(rules.listeners.len());
        for &listener in &rules.listeners {
            let address = listener.address;
            let socket = match inherited.take(address, parking) {
                Some(socket) => socket,
                None => {
                    let socket = bind(address, &sockets.options).await?;
                    parking.keep_listener(Side::Slaves, address, &socket);
                    socket
                }
            };
            bound.push((listener, socket));
        }
        inherited.close(parking);
        accepting.admission.set_limits(rules.limits);
        let mut listeners = Self {
            accepting,
            sockets,
            farewells: Rc::default(),
            running: BTreeMap::new(),
            doors: JoinSet::new(),
        };
        for (listener, socket) in bound {
            let address = listener.address;
            let opened = listeners.open(listener, socket);
            opened.map_err(|source| StartError::Socket { address, source })?;
        }
        Ok(listeners)
    }

    /// Accepts, and follows `rules` as they change. Returns only when an accept loop has ended that
    /// was not told to.
    pub(crate) async fn run(mut self, mut rules: watch::Receiver<Rules>) {
        loop {
            tokio::select! {
                changed = rules.changed() => {
                    // Whoever could change them is gone: the daemon is ending.
                    if changed.is_err() {
                        return;
                    }
                    let rules = rules.borrow_and_update().clone();
                    if !self.follow(&rules).await {
                        return;
                    }
                }
                Some(_) = self.doors.join_next() => return,
            }
        }
    }

    /// Makes what runs what is wanted. What is in both is left alone. `false` if an accept loop has
    /// ended that was not told to.
    async fn follow(&mut self, rules: &Rules) -> bool {
        self.accepting.admission.set_limits(rules.limits);
        let wanted = |address: &SocketAddr| {
            let mut listeners = rules.listeners.iter();
            listeners.find(|listener| listener.address == *address)
        };
        let gone: BTreeSet<_> = self
            .running
            .keys()
            .filter(|address| wanted(address).is_none())
            .copied()
            .collect();
        for (address, running) in &self.running {
            if let Some(listener) = wanted(address) {
                running.privileged.set(listener.privileged);
            }
        }
        // What is in the way of a new one has to go first; the others stay until the new ones are there.
        let ipv6_only = self.sockets.options.ipv6_only;
        let has_to_wait = |listener: &Listener| {
            let mut gone = gone.iter();
            gone.any(|gone| overlap(*gone, listener.address, ipv6_only))
        };
        let running = &self.running;
        let new = rules.listeners.iter().copied();
        let new = new.filter(|listener| !running.contains_key(&listener.address));
        let (later, now): (Vec<_>, Vec<_>) = new.partition(has_to_wait);
        for listener in now {
            self.add(listener).await;
        }
        if later.is_empty() && self.running.len() == gone.len() && !gone.is_empty() {
            log_kept();
            return true;
        }
        let before = self.listeners_of(&gone);
        if !self.close(gone).await {
            return false;
        }
        for listener in later {
            self.add(listener).await;
        }
        if self.running.is_empty() {
            log_kept();
            for listener in before {
                self.add(listener).await;
            }
        }
        true
    }

    fn listeners_of(&self, addresses: &BTreeSet<SocketAddr>) -> Vec<Listener> {
        let running = self.running.iter();
        let wanted = running.filter(|(address, _)| addresses.contains(address));
        wanted
            .map(|(address, running)| Listener {
                address: *address,
                privileged: running.privileged.get(),
            })
            .collect()
    }

    /// Listens on one more address, or says why not.
    async fn add(&mut self, listener: Listener) {
        let address = listener.address;
        let error = match socket::listen_with(address, &self.sockets.options) {
            Ok(socket) => return self.add_bound(listener, socket),
            Err(error) => error,
        };
        // It looks through all processes, and slaves must not wait for that.
        match tokio::task::spawn_blocking(move || error.explained()).await {
            Ok(error) => self.log_failed(address, &error),
            Err(error) => self.log_failed(address, &error),
        }
    }

    fn add_bound(&mut self, listener: Listener, socket: StdListener) {
        let reactor = Rc::clone(&self.accepting.reactor);
        let address = listener.address;
        reactor
            .parking()
            .keep_listener(Side::Slaves, address, &socket);
        if let Err(error) = self.open(listener, socket) {
            reactor.parking().forget_listener(address);
            self.log_failed(address, &error);
        }
    }

    fn open(&mut self, listener: Listener, socket: StdListener) -> io::Result<()> {
        let Listener {
            address,
            privileged,
        } = listener;
        // Accepted connections inherit it: no system call is spent on each.
        socket::tune(&socket, &self.sockets.liveness)?;
        let local = socket.local_addr()?;
        let socket = TcpListener::from_std(socket)?;
        let running = Running {
            privileged: Rc::new(Cell::new(privileged)),
            stop: self.accepting.shut.child_token(),
        };
        let figures = self.accepting.reactor.stats().listeners.of(address);
        figures.is_up.set(1);
        let door = Door::new(
            address,
            self.accepting.clone(),
            Rc::clone(&self.farewells),
            Rc::clone(&running.privileged),
            Arc::clone(&figures),
        );
        self.doors
            .spawn_local(door.run(socket, running.stop.clone()));
        self.running.insert(address, running);
        tracing::info!(event = "listening", address = %local, privileged, "slaves can connect");
        warn_of_ephemeral_port(local);
        Ok(())
    }

    /// Stops listening there. `false` if another accept loop has ended meanwhile.
    async fn close(&mut self, mut gone: BTreeSet<SocketAddr>) -> bool {
        for address in &gone {
            // First, because a copy would go on taking in whom nobody serves.
            self.accepting.reactor.parking().forget_listener(*address);
            if let Some(running) = self.running.remove(address) {
                running.stop.cancel();
            }
        }
        while !gone.is_empty() {
            let Some(Ok(address)) = self.doors.join_next().await else {
                return false;
            };
            if !gone.remove(&address) {
                return false;
            }
            let reactor = &self.accepting.reactor;
            reactor.stats().listeners.of(address).is_up.set(0);
            tracing::info!(event = "listener_removed", address = %address, "slaves can connect there no more; who has connected stays");
        }
        true
    }

    fn log_failed(&self, address: SocketAddr, error: &dyn std::error::Error) {
        self.accepting
            .reactor
            .stats()
            .listeners
            .of(address)
            .is_up
            .set(0);
        tracing::error!(event = "listen_failed", address = %address, error = %error, "nobody can connect there; the other listeners go on, and SIGHUP tries again");
    }
}

fn log_kept() {
    tracing::error!(
        event = "listeners_kept",
        "none of the new addresses can be had: the old ones stay until SIGHUP brings better ones"
    );
}
