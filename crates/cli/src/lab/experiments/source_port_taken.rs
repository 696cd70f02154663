//! EADDRINUSE because the port lies where the kernel takes source ports from.

use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Context;
use rollcall_os::diag::ports::local_port_range;

use super::{First, explain, number, said};
use crate::lab::arena::{Arena, PORTS};
use crate::lab::sockets::{CallError, Pair, Reuse, is_in_use, listen};
use crate::lab::tale::Tale;

/// How often a port outside of the range is looked for.
const DRAWS: usize = 50;

pub(super) fn run(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let range = local_port_range()?;
    let destination = listen(arena.server(0)?, Reuse::On)?;
    tale.action(format!(
        "A client connects to {}. It has not asked for a source port; the kernel takes one from \
         net.ipv4.ip_local_port_range ({range} here).",
        destination.local_addr()?
    ));
    let pair = super::open(arena, &destination)?;
    let taken = pair.client.local_addr()?;
    tale.fact("port", taken.port());
    tale.answer(format!("it is {}", taken.port()));
    tale.action(format!(
        "A server wants to listen on {taken}, with SO_REUSEADDR, while the connection is open."
    ));
    refused(taken, "established_errno", tale);
    tale.action(
        "The client closes first, which leaves its port in TIME_WAIT, and the server tries again.",
    );
    pair.close(First::Client)?;
    refused(taken, "time_wait_errno", tale);
    tale.cure(format!(
        "Servers listen below the range, that is below {} here; or their ports are taken out of it: \
         net.ipv4.ip_local_reserved_ports.",
        range.first
    ));
    if arena.is_own() {
        reserve(arena, &destination, taken.port(), tale)
    } else {
        tale.note("Reserving a port is not shown: this host's sysctls are not touched.");
        listen_below(arena, &destination, tale)
    }
}

fn refused(address: SocketAddr, fact: &'static str, tale: &mut Tale) {
    let error = listen(address, Reuse::On).err();
    tale.fact(fact, number(error.as_ref()));
    let held = is_in_use(error.as_ref());
    tale.expect(held, said(error.as_ref()), "error 98");
    explain(address, error.as_ref(), tale);
}

/// With a port reserved, the clients take all others, and the server gets this one.
fn reserve(
    arena: &Arena,
    destination: &TcpListener,
    taken: u16,
    tale: &mut Tale,
) -> anyhow::Result<()> {
    let mut ports = arena.range().ports().rev();
    let port = ports
        .find(|port| *port != taken)
        .context("there is one port only")?;
    arena.set("net.ipv4.ip_local_reserved_ports", &port.to_string())?;
    tale.action(format!(
        "net.ipv4.ip_local_reserved_ports={port}. Clients connect until no port is left."
    ));
    let (held, error) = take_all(arena, destination);
    let is_free = held.iter().all(|pair| {
        pair.client
            .local_addr()
            .is_ok_and(|address| address.port() != port)
    });
    tale.fact("connected_beside_reserved", held.len());
    tale.expect(
        // One is in TIME_WAIT from before.
        is_free && held.len() == usize::from(PORTS) - 2,
        format!(
            "{} connections, none from port {port}; then {}",
            held.len(),
            said(error.as_ref())
        ),
        "all ports but the reserved one and the one in TIME_WAIT",
    );
    tale.action(format!("The server listens on port {port}."));
    let mut address = destination.local_addr()?;
    address.set_port(port);
    succeeds(listen(address, Reuse::On), tale);
    Ok(())
}

/// Opens connections until it fails; at most one more than there are ports.
fn take_all(arena: &Arena, destination: &TcpListener) -> (Vec<Pair>, Option<CallError>) {
    let mut held = Vec::new();
    for _ in 0..=PORTS {
        match super::open(arena, destination) {
            Ok(pair) => held.push(pair),
            Err(error) => return (held, Some(error)),
        }
    }
    (held, None)
}

/// No client gets a port that lies outside the range.
fn listen_below(arena: &Arena, destination: &TcpListener, tale: &mut Tale) -> anyhow::Result<()> {
    let range = local_port_range()?;
    let drawn = (0..DRAWS).map(|_| arena.server(1));
    let outside = |address: &SocketAddr| !range.contains(address.port());
    let found = drawn.flatten().find(outside);
    let Some(address) = found else {
        tale.note(format!(
            "Nor is listening outside of the range: {range} leaves next to nothing."
        ));
        return Ok(());
    };
    tale.action(format!(
        "{PORTS} clients connect, with source ports that the kernel takes; then the server listens on {address}."
    ));
    let mut outside = 0;
    for _ in 0..PORTS {
        let client = TcpStream::connect(destination.local_addr()?)?;
        outside += usize::from(!range.contains(client.local_addr()?.port()));
        Pair::accepted(client, destination)?.close(First::Server)?;
    }
    tale.expect(
        outside == 0,
        format!("{outside} of them had a port outside {range}"),
        "none",
    );
    succeeds(listen(address, Reuse::On), tale);
    Ok(())
}

fn succeeds(listener: Result<TcpListener, CallError>, tale: &mut Tale) {
    let text = match &listener {
        Ok(_) => "bind() and listen() succeed".to_owned(),
        Err(error) => error.to_string(),
    };
    tale.expect(listener.is_ok(), text, "success");
}
