//! EADDRINUSE from somebody who listens, and why SO_REUSEPORT is no cure.

use std::io::Read;

use nix::errno::Errno;

use super::{explain, number, said};
use crate::lab::arena::Arena;
use crate::lab::sockets::{Reuse, errno, is_in_use, listen, listen_with};
use crate::lab::tale::Tale;

/// Clients that wait while one of two servers ends.
const CLIENTS: usize = 60;

pub(super) fn run(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let address = arena.server(0)?;
    tale.action(format!(
        "A server listens on {address}. A second one tries to, and both set SO_REUSEADDR. (Both are this program.)"
    ));
    let first = listen(address, Reuse::On)?;
    let error = listen(address, Reuse::On).err();
    let held = is_in_use(error.as_ref());
    tale.fact("errno", number(error.as_ref()));
    tale.expect(
        held,
        said(error.as_ref()),
        "error 98, in spite of SO_REUSEADDR",
    );
    explain(address, error.as_ref(), tale);
    tale.cure("End the other listener, or take another port. Nothing waits for a time to pass: there is no TIME_WAIT in this.");
    tale.action("The first server ends; the second one tries again.");
    drop(first);
    let second = listen(address, Reuse::On);
    tale.expect(
        second.is_ok(),
        second.as_ref().map_or_else(
            |error| error.to_string(),
            |_| "bind() and listen() succeed at once".to_owned(),
        ),
        "success",
    );
    reuse_port(arena, tale)
}

/// Both listen with SO_REUSEPORT; then one of them ends.
fn reuse_port(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let address = arena.server(1)?;
    tale.action(format!(
        "SO_REUSEPORT is often advised instead. Two servers listen on {address} with it; {CLIENTS} clients \
         connect; before these are accepted one server ends, as in a restart."
    ));
    let share = || listen_with(address, |socket| socket.set_reuse_port(true));
    let (old, new) = (share()?, share()?);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(arena.connect(address)?);
    }
    drop(old);
    let mut reset = 0;
    for mut client in &clients {
        client.set_nonblocking(true)?;
        let answer = client.read(&mut [0]);
        reset += usize::from(answer.is_err_and(|error| errno(&error) == Errno::ECONNRESET));
    }
    drop(new);
    tale.fact("reuse_port_clients", CLIENTS);
    tale.fact("reuse_port_reset", reset);
    tale.expect(
        reset > 0 && reset < CLIENTS,
        format!("{reset} of {CLIENTS} clients are reset (ECONNRESET): the kernel had given them to the server that ended"),
        "some of them reset",
    );
    tale.note(format!(
        "So SO_REUSEPORT lets a second listener in and loses clients whenever one ends, unless \
         net.ipv4.tcp_migrate_req (Linux 5.14 and later; {} here) hands them on. It also lets two daemons \
         of the same user serve one port by mistake.",
        arena.get("net.ipv4.tcp_migrate_req")
    ));
    Ok(())
}
