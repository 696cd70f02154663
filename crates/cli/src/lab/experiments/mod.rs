//! The experiments: each a failure of error 98, 99 or lost data, and what mends it.

mod another_listener;
mod bound_source;
mod connect_loop;
mod linger;
mod many_addresses;
mod server_closed_first;
mod source_port_taken;
mod time_wait_assassination;

use std::io;
use std::net::{SocketAddr, TcpListener};

use rollcall_os::diag::bind::{self, Transport};
use rollcall_os::diag::sockets::Socket;

use super::arena::Arena;
use super::sockets::{CallError, First, Pair};
use super::tale::Tale;

/// An experiment that can be run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Experiment {
    /// As it is called on the command line.
    pub(super) name: &'static str,
    /// What fails in it, in a few words.
    pub(super) title: &'static str,
    /// Runs it. An error is one of the system that the experiment is not about.
    pub(super) run: fn(&Arena, &mut Tale) -> anyhow::Result<()>,
}

/// All of them, in the order in which they explain each other.
pub(super) const ALL: [Experiment; 8] = [
    Experiment {
        name: "98-server-closed-first",
        title: "a server that closed its connections first cannot listen again",
        run: server_closed_first::run,
    },
    Experiment {
        name: "98-another-listener",
        title: "somebody else listens on the port already",
        run: another_listener::run,
    },
    Experiment {
        name: "98-source-port-taken",
        title: "an outgoing connection was given the port that a server wants",
        run: source_port_taken::run,
    },
    Experiment {
        name: "99-connect-loop",
        title: "a client that opens, sends and closes in a loop runs out of ports",
        run: connect_loop::run,
    },
    Experiment {
        name: "99-bound-source",
        title: "a client that binds its source runs out of ports much sooner",
        run: bound_source::run,
    },
    Experiment {
        name: "linger-loses-data",
        title: "SO_LINGER with 0 avoids TIME_WAIT, and throws away what has not arrived",
        run: linger::run,
    },
    Experiment {
        name: "time-wait-assassination",
        title: "a stray packet ends TIME_WAIT before its time (RFC 1337)",
        run: time_wait_assassination::run,
    },
    Experiment {
        name: "same-port-many-addresses",
        title: "one port on several addresses, for servers and for clients",
        run: many_addresses::run,
    },
];

/// A connection from any source port, with a report and its answer, closed by `first`.
fn round(arena: &Arena, listener: &TcpListener, first: First) -> Result<(), CallError> {
    let failed = |source: io::Error| CallError::new("close", source);
    open(arena, listener)?.close(first).map_err(failed)
}

/// A connection from any source port that has carried a report and its answer.
fn open(arena: &Arena, listener: &TcpListener) -> Result<Pair, CallError> {
    let failed = |source: io::Error| CallError::new("exchange", source);
    let client = arena.connect(listener.local_addr().map_err(failed)?)?;
    let mut pair = Pair::accepted(client, listener).map_err(failed)?;
    pair.exchange().map_err(failed)?;
    Ok(pair)
}

/// How many of `wanted` connections in a row went well, and what stopped the next one.
fn rounds(
    arena: &Arena,
    listener: &TcpListener,
    first: First,
    wanted: usize,
) -> (usize, Option<CallError>) {
    for done in 0..wanted {
        if let Err(error) = round(arena, listener, first) {
            return (done, Some(error));
        }
    }
    (wanted, None)
}

/// "no error", or what it was.
fn said(error: Option<&CallError>) -> String {
    error.map_or_else(|| "no call failed".to_owned(), ToString::to_string)
}

/// The kernel's number of it; 0 for no error.
fn number(error: Option<&CallError>) -> i32 {
    error.map_or(0, |error| error.source.raw_os_error().unwrap_or(-1))
}

/// What a daemon of Rollcall says when it can't listen for that reason.
fn explain(address: SocketAddr, error: Option<&CallError>, tale: &mut Tale) {
    if let Some(error) = error {
        let explanation = bind::explain(Transport::Tcp, address, &error.source);
        tale.answer(format!("Rollcall's daemons say why: {explanation}"));
        tale.fact("cause", explanation.name());
    }
}

/// A socket in TIME_WAIT, in words.
fn time_wait(socket: &Socket) -> String {
    let left = f64::from(socket.expires_ms.unwrap_or(0)) / 1000.0;
    format!(
        "{} to {} in TIME_WAIT, for {left:.0} s more",
        socket.local, socket.remote
    )
}

/// Whether a socket has `end` as its own end.
fn is_at(end: SocketAddr) -> impl Fn(&Socket) -> bool {
    move |socket| socket.local == end
}

/// Whether a socket is connected to `end`.
fn is_to(end: SocketAddr) -> impl Fn(&Socket) -> bool {
    move |socket| socket.remote == end
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::ALL;

    #[test]
    fn names_are_unique() {
        let names: HashSet<_> = ALL.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
