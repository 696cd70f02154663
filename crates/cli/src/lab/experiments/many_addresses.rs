//! One port on several addresses: servers side by side, and clients with as many ports for each.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use super::{number, said};
use crate::lab::arena::{Arena, PORTS};
use crate::lab::sockets::{CallError, Pair, Reuse, is_in_use, listen, listen_with};
use crate::lab::tale::Tale;

/// Source addresses of the clients.
const SOURCES: u8 = 4;

pub(super) fn run(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    servers(arena, tale)?;
    families(arena, tale)?;
    clients(arena, tale)
}

/// Two servers on one port of two addresses, and a third for all addresses.
fn servers(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let first = arena.server(0)?;
    let port = first.port();
    let second = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port));
    tale.action(format!(
        "One server listens on {first}, another on {second}; a client connects to each."
    ));
    let listeners = [listen(first, Reuse::On)?, listen(second, Reuse::On)?];
    let mut right = 0;
    for (listener, address) in listeners.iter().zip([first, second]) {
        let mut pair = Pair::accepted(TcpStream::connect(address)?, listener)?;
        pair.exchange()?;
        right += usize::from(pair.server.local_addr()? == address);
        pair.close(super::First::Server)?;
    }
    tale.expect(
        right == 2,
        format!("both listen, and {right} of 2 clients reach the server of their address: a port is one of an address"),
        "both",
    );
    let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    tale.action(format!("A third one wants {all}, which is all addresses."));
    let error = listen(all, Reuse::On).err();
    tale.fact("wildcard_errno", number(error.as_ref()));
    let held = is_in_use(error.as_ref());
    tale.expect(
        held,
        format!(
            "{}: all addresses are in conflict with each of them",
            said(error.as_ref())
        ),
        "error 98",
    );
    tale.cure("Name the addresses, or listen on all of them once: not both.");
    Ok(())
}

/// IPv6 for all addresses takes IPv4 as well, unless it is told not to.
fn families(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let port = arena.server(1)?.port();
    let six = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let four = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let open = |only_six: bool| {
        listen_with(six, |socket| {
            socket.set_reuse_address(true)?;
            socket.set_only_v6(only_six)
        })
    };
    tale.action(format!(
        "A server listens on {six} with IPV6_V6ONLY=0, another one wants {four}."
    ));
    let both = match open(false) {
        Ok(both) => both,
        Err(error) => {
            tale.answer(format!("this host has no IPv6: {error}"));
            return Ok(());
        }
    };
    let error = listen(four, Reuse::On).err();
    tale.fact("dual_stack_errno", number(error.as_ref()));
    let held = is_in_use(error.as_ref());
    tale.expect(
        held,
        format!("{}: the first one has IPv4 as well", said(error.as_ref())),
        "error 98",
    );
    drop(both);
    tale.cure(format!(
        "IPV6_V6ONLY is set explicitly, and never left to net.ipv6.bindv6only ({} here). rollcall-master sets it \
         to 1: an IPv6 address takes IPv6 only.",
        arena.get("net.ipv6.bindv6only")
    ));
    tale.action("The same with IPV6_V6ONLY=1.");
    let six = open(true)?;
    let four = listen(four, Reuse::On);
    let text = match &four {
        Ok(_) => "both listen".to_owned(),
        Err(error) => error.to_string(),
    };
    tale.expect(four.is_ok(), text, "both to listen");
    drop(six);
    Ok(())
}

/// Each source address has all the source ports.
fn clients(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let listener = listen(arena.server(2)?, Reuse::On)?;
    let address = listener.local_addr()?;
    tale.action(format!(
        "Clients connect from 127.0.0.1 to {address} and stay, until it fails; then from 127.0.0.2, and so on \
         up to 127.0.0.{SOURCES}."
    ));
    let mut held = Vec::new();
    let mut last = None;
    for host in 1..=SOURCES {
        let source = Ipv4Addr::new(127, 0, 0, host);
        last = fill(arena, source, &listener, &mut held)?;
    }
    let ports: HashSet<_> = held
        .iter()
        .map(|pair| pair.client.local_addr().map(|address| address.port()))
        .collect::<Result<_, _>>()?;
    let wanted = usize::from(PORTS) * usize::from(SOURCES);
    tale.fact("connections", held.len());
    tale.fact("ports", ports.len());
    tale.expect(
        held.len() == wanted
            && ports.len() == usize::from(PORTS)
            && arena.is_exhaustion(last.as_ref()),
        format!(
            "{} connections with {} ports, each port {SOURCES} times; then {}",
            held.len(),
            ports.len(),
            said(last.as_ref())
        ),
        "each port once for each source address",
    );
    tale.answer(
        "so each further source address gives a client all the ports once more; rollcall-slave takes them as \
         source_addresses",
    );
    Ok(())
}

/// Connects from `source` until it fails, and says how.
fn fill(
    arena: &Arena,
    source: Ipv4Addr,
    listener: &TcpListener,
    held: &mut Vec<Pair>,
) -> io::Result<Option<CallError>> {
    let address = listener.local_addr()?;
    for _ in 0..=PORTS {
        match arena.connect_by(Some(source), address) {
            Ok(client) => held.push(Pair::accepted(client, listener)?),
            Err(error) => return Ok(Some(error)),
        }
    }
    Ok(None)
}
