//! Errors 98 and 99 of clients that bind their source before they connect.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};

use anyhow::Context;

use super::{First, number, said};
use crate::lab::arena::{Arena, PORTS};
use crate::lab::sockets::{
    CallError, Pair, Reuse, connect_from, is_in_use, is_without_port, listen,
};
use crate::lab::tale::Tale;

/// Connections in a row from one port.
const TIMES: usize = 100;
const TIMESTAMPS: &str = "net.ipv4.tcp_timestamps";

pub(super) fn run(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let listener = listen(arena.server(0)?, Reuse::On)?;
    let mut ports = arena.range().ports();
    let mut next = || -> anyhow::Result<SocketAddr> {
        let port = ports.next().context("there are too few ports")?;
        Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into())
    };
    without_reuse(&listener, next()?, tale)?;
    still_open(arena, &listener, next()?, tale)?;
    if arena.is_own() {
        for value in ["0", "1"] {
            arena.set(TIMESTAMPS, value)?;
            with_reuse(&listener, next()?, value, tale)?;
        }
    } else {
        with_reuse(&listener, next()?, &arena.get(TIMESTAMPS), tale)?;
    }
    server_first(&listener, next()?, tale)?;
    if arena.is_own() {
        address_only(arena, tale)
    } else {
        tale.note(
            "That bind() to an address alone takes a port for all destinations is not shown: here it would take \
             each free port of the host.",
        );
        Ok(())
    }
}

/// One connection from `source`, with a report and its answer.
fn round(
    listener: &TcpListener,
    source: SocketAddr,
    reuse: Reuse,
    first: First,
) -> Result<(), CallError> {
    let failed = |error| CallError::new("exchange", error);
    let destination = listener.local_addr().map_err(failed)?;
    let client = connect_from(source, destination, reuse)?;
    let mut pair = Pair::accepted(client, listener).map_err(failed)?;
    pair.exchange()
        .and_then(|()| pair.close(first))
        .map_err(failed)
}

fn without_reuse(
    listener: &TcpListener,
    source: SocketAddr,
    tale: &mut Tale,
) -> anyhow::Result<()> {
    tale.action(format!(
        "A client binds {source}, connects to {}, closes first, and does it again.",
        listener.local_addr()?
    ));
    round(listener, source, Reuse::Off, First::Client)?;
    let error = round(listener, source, Reuse::Off, First::Client).err();
    tale.fact("fixed_port_errno", number(error.as_ref()));
    tale.expect(
        is_in_use(error.as_ref()),
        format!(
            "the second time {}: the port is in TIME_WAIT, and for 60 s nobody's to bind",
            said(error.as_ref())
        ),
        "error 98 from bind",
    );
    Ok(())
}

/// Both addresses and both ports are one connection.
fn still_open(
    arena: &Arena,
    listener: &TcpListener,
    source: SocketAddr,
    tale: &mut Tale,
) -> anyhow::Result<()> {
    let destination = listener.local_addr()?;
    tale.action(format!(
        "A client binds {source} with SO_REUSEADDR, connects to {destination} and stays. A second one does the \
         same."
    ));
    let held = Pair::accepted(connect_from(source, destination, Reuse::On)?, listener)?;
    let error = connect_from(source, destination, Reuse::On).err();
    tale.fact("open_errno", number(error.as_ref()));
    tale.expect(
        is_without_port(error.as_ref()),
        format!(
            "{}: two addresses with two ports are one connection, and there is one",
            said(error.as_ref())
        ),
        "error 99 from connect",
    );
    let other = listen(arena.server(3)?, Reuse::On)?;
    let result = connect_from(source, other.local_addr()?, Reuse::On);
    tale.expect(
        result.is_ok(),
        format!(
            "to another destination from the same port: {}",
            said(result.as_ref().err())
        ),
        "success",
    );
    held.close(First::Server)?;
    Ok(())
}

/// Whoever has bound the port may have a connection in TIME_WAIT again, if timestamps tell its late
/// packets from new ones (tcp_twsk_unique in net/ipv4/tcp_ipv4.c).
fn with_reuse(
    listener: &TcpListener,
    source: SocketAddr,
    timestamps: &str,
    tale: &mut Tale,
) -> anyhow::Result<()> {
    tale.action(format!(
        "{TIMESTAMPS}={timestamps}. A client binds {source} with SO_REUSEADDR, connects, closes first, and does \
         it again, {TIMES} times in all."
    ));
    let (done, error) = repeat(listener, source, First::Client);
    if timestamps == "0" {
        tale.fact("without_timestamps_errno", number(error.as_ref()));
        tale.expect(
            done == 1 && is_without_port(error.as_ref()),
            format!(
                "{done} connection; then {}: the port can be bound, but this very connection is in TIME_WAIT",
                said(error.as_ref())
            ),
            "error 99 from connect at the second time",
        );
    } else {
        tale.fact("with_timestamps_connections", done);
        tale.expect(
            done == TIMES,
            format!(
                "{done} of {TIMES} connections go well; {}. With timestamps the kernel gives a connection in \
                 TIME_WAIT back to who binds its port, whatever net.ipv4.tcp_tw_reuse is",
                said(error.as_ref())
            ),
            "all of them",
        );
    }
    Ok(())
}

/// How many of [`TIMES`] connections in a row from `source` went well, and what stopped the next one.
fn repeat(listener: &TcpListener, source: SocketAddr, first: First) -> (usize, Option<CallError>) {
    for done in 0..TIMES {
        if let Err(error) = round(listener, source, Reuse::On, first) {
            return (done, Some(error));
        }
    }
    (TIMES, None)
}

fn server_first(listener: &TcpListener, source: SocketAddr, tale: &mut Tale) -> anyhow::Result<()> {
    tale.cure("The server closes first. (Or do not bind the port: let the kernel choose one.)");
    tale.action(format!(
        "The same from {source}, {TIMES} times in a row; the server closes first."
    ));
    let (done, error) = repeat(listener, source, First::Server);
    tale.fact("server_first_connections", done);
    tale.expect(
        done == TIMES,
        format!(
            "{done} of {TIMES} connections go well; {}",
            said(error.as_ref())
        ),
        "all of them",
    );
    Ok(())
}

/// bind() with port 0 takes a port before the destination is known.
fn address_only(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let one = listen(arena.server(1)?, Reuse::On)?;
    let other = listen(arena.server(2)?, Reuse::On)?;
    let (one_at, other_at) = (one.local_addr()?, other.local_addr()?);
    // What the steps before have left in TIME_WAIT takes ports that bind can't have.
    let lost = arena
        .time_wait(|socket| arena.range().ports().contains(&socket.local.port()))?
        .len();
    tale.action(format!(
        "Clients bind the address 127.0.0.1 and no port, connect to {one_at}, and stay, until it fails."
    ));
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into();
    let bound = |destination| connect_from(any, destination, Reuse::Off);
    let (held, error) = fill(&one, || bound(one_at));
    tale.fact("bound_connections", held.len());
    tale.expect(
        is_in_use(error.as_ref()) && held.len() + lost == usize::from(PORTS),
        format!("{} connections; then {}", held.len(), said(error.as_ref())),
        "error 98 from bind when the ports are used up",
    );
    tale.action(format!(
        "One more connects to another destination, {other_at}."
    ));
    let error = bound(other_at).err();
    tale.fact("bound_other_errno", number(error.as_ref()));
    tale.expect(
        is_in_use(error.as_ref()),
        format!(
            "{}: these ports are gone for all destinations",
            said(error.as_ref())
        ),
        "error 98 as well",
    );
    // Closed so that nothing of them is left here: connect never takes a port that was bound.
    for pair in held {
        pair.close(First::Server)?;
    }
    tale.cure(
        "IP_BIND_ADDRESS_NO_PORT (Linux 4.2), set before bind: the port is chosen by connect, for this \
         destination alone. rollcall-slave always sets it.",
    );
    no_port(arena, [(&one, one_at), (&other, other_at)], lost, tale)
}

fn no_port(
    arena: &Arena,
    destinations: [(&TcpListener, SocketAddr); 2],
    lost: usize,
    tale: &mut Tale,
) -> anyhow::Result<()> {
    tale.action("The same with it, to both destinations, and all of them stay.");
    let mut all = Vec::new();
    let mut counts = Vec::new();
    for (listener, address) in destinations {
        let connect = || arena.connect_by(Some(Ipv4Addr::LOCALHOST), address);
        let (held, error) = fill(listener, connect);
        counts.push(held.len());
        tale.expect(
            arena.is_exhaustion(error.as_ref()) && held.len() + lost == usize::from(PORTS),
            format!(
                "to {address}: {} connections; then {}",
                held.len(),
                said(error.as_ref())
            ),
            "as many as there are ports, and then error 99 from connect",
        );
        all.push(held);
    }
    tale.fact("no_port_connections", counts.iter().sum::<usize>());
    Ok(())
}

/// Connects until it fails; not more often than there can be ports.
fn fill(
    listener: &TcpListener,
    connect: impl Fn() -> Result<TcpStream, CallError>,
) -> (Vec<Pair>, Option<CallError>) {
    let mut held = Vec::new();
    for _ in 0..=PORTS {
        let accepted = connect().and_then(|client| {
            Pair::accepted(client, listener).map_err(|error| CallError::new("accept", error))
        });
        match accepted {
            Ok(pair) => held.push(pair),
            Err(error) => return (held, Some(error)),
        }
    }
    (held, None)
}
