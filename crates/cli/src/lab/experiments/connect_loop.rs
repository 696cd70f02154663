//! EADDRNOTAVAIL from connect(2), and the three cures that hold.

use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use rollcall_os::clock;
use rollcall_os::diag::exhaustion;
use rollcall_os::diag::ports::LocalPorts;

use super::{First, is_at, is_to, number, rounds, said};
use crate::lab::arena::{Arena, PORTS};
use crate::lab::sockets::{CallError, Reuse, listen};
use crate::lab::tale::Tale;

/// Ten times as many connections as there are ports.
const MANY: usize = 10 * PORTS as usize;
/// How long a port that can be reused may take to come back.
const REUSE_MAX: Duration = Duration::from_secs(4);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) fn run(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let address = arena.server(0)?;
    let listener = listen(address, Reuse::On)?;
    fail(arena, &listener, tale)?;
    server_first(arena, tale)?;
    keep_open(arena, tale)?;
    reuse(arena, &listener, tale)?;
    tale.note(
        "What does not help: SO_REUSEADDR on the client (it concerns bind, and this client does not bind); \
         net.ipv4.tcp_fin_timeout (FIN_WAIT_2, not TIME_WAIT); net.ipv4.tcp_tw_recycle (gone since Linux 4.12, \
         and before that it cut off clients behind NAT); a wider net.ipv4.ip_local_port_range only puts it off.",
    );
    Ok(())
}

fn fail(arena: &Arena, listener: &TcpListener, tale: &mut Tale) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    tale.action(format!(
        "A client connects to {address}, sends 200 bytes, reads the answer and closes; again and again. It \
         closes before the server does."
    ));
    let (done, error) = rounds(arena, listener, First::Client, MANY);
    tale.fact("connections_before_failure", done);
    tale.fact("errno", number(error.as_ref()));
    tale.expect(
        arena.is_exhaustion(error.as_ref())
            && done <= usize::from(PORTS)
            && (done == usize::from(PORTS) || !arena.is_own()),
        format!("{done} connections go well; then {}", said(error.as_ref())),
        "error 99 when each port was used once",
    );
    let held = arena.time_wait(is_to(address))?;
    let soonest = held.iter().filter_map(|socket| socket.expires_ms).min();
    tale.fact("client_time_wait", held.len());
    tale.expect(
        held.len() == done,
        format!(
            "the client's side holds {} sockets in TIME_WAIT to {address}, one for each connection and port; \
             the first of them ends in {:.0} s",
            held.len(),
            f64::from(soonest.unwrap_or(0)) / 1000.0
        ),
        "a TIME_WAIT for each connection",
    );
    let ports = LocalPorts::read()?.narrowed(arena.range());
    let explanation = exhaustion::explain(&[], ports, address)?;
    tale.answer(format!("rollcall-slave says why: {explanation}"));
    tale.answer(
        "with the usual 28,232 ports (32768-60999) and 60 s that is 470 connections/s to one destination, \
         on average and at most",
    );
    let other = listen(arena.server(1)?, Reuse::On)?;
    tale.action(format!(
        "The client connects to another port of the same server, {}.",
        other.local_addr()?
    ));
    let result = super::round(arena, &other, First::Server);
    tale.expect(
        result.is_ok(),
        match &result {
            Ok(()) => "it succeeds: the ports are gone for one destination (address and port), not for others"
                .to_owned(),
            Err(error) => error.to_string(),
        },
        "success",
    );
    Ok(())
}

fn server_first(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    tale.cure(
        "The server closes first, right after its answer; the client closes when it reads the end of the \
         stream. This is what rollcall-master and rollcall-slave do in per-message mode.",
    );
    let listener = listen(arena.server(2)?, Reuse::On)?;
    let address = listener.local_addr()?;
    tale.action(format!(
        "The same loop to {address}, {MANY} times with {PORTS} ports; the server closes first."
    ));
    let (done, error) = rounds(arena, &listener, First::Server, MANY);
    let client = arena.time_wait(is_to(address))?.len();
    let server = arena.time_wait(is_at(address))?.len();
    tale.fact("server_first_connections", done);
    tale.fact("server_first_client_time_wait", client);
    tale.expect(
        done == MANY && client == 0,
        format!(
            "{done} of {MANY} connections go well; {}",
            said(error.as_ref())
        ),
        "all of them, and no TIME_WAIT on the client's side",
    );
    tale.answer(format!(
        "TIME_WAIT on the client's side: {client}. On the server's: {server}, where they share the one port \
         that it listens on, and where a new SYN from the same client port is accepted (RFC 6191)"
    ));
    Ok(())
}

fn keep_open(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    tale.cure(
        "One connection is kept open and used for all (a pool, with a frame around each message).",
    );
    let listener = listen(arena.server(3)?, Reuse::On)?;
    tale.action(format!(
        "{MANY} messages over one connection to {}.",
        listener.local_addr()?
    ));
    let mut pair = super::open(arena, &listener)?;
    let mut done = 1;
    while done < MANY {
        pair.exchange()?;
        done += 1;
    }
    pair.close(First::Server)?;
    tale.expect(
        done == MANY,
        format!("{done} of {MANY} go well, with one port"),
        "all of them",
    );
    Ok(())
}

fn reuse(arena: &Arena, listener: &TcpListener, tale: &mut Tale) -> anyhow::Result<()> {
    const SWITCH: &str = "net.ipv4.tcp_tw_reuse";
    const TIMESTAMPS: &str = "net.ipv4.tcp_timestamps";
    let delay = arena.get("net.ipv4.tcp_tw_reuse_delay");
    tale.cure(format!(
        "Where the client must close first: {SWITCH}=1. A port comes back to the same destination after a \
         second instead of 60 (net.ipv4.tcp_tw_reuse_delay in ms: {delay}), if both sides use TCP timestamps. \
         A factor of 60, and no more."
    ));
    if arena.is_own() {
        arena.set(SWITCH, "1")?;
    } else if let Some(off) = [SWITCH, TIMESTAMPS]
        .iter()
        .find(|name| arena.get(name) == "0")
    {
        tale.note(format!(
            "Not shown: {off} is 0 here, and this host's sysctls are not touched."
        ));
        return Ok(());
    }
    tale.action(format!(
        "{SWITCH}={}. The client tries the destination that had failed until it succeeds.",
        arena.get(SWITCH)
    ));
    let address = listener.local_addr()?;
    let (waited, error) = try_until_success(arena, address);
    let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    tale.fact("reuse_after_ms", waited_ms);
    tale.expect(
        error.is_none(),
        match &error {
            None => format!("it succeeds after {waited_ms} ms"),
            Some(error) => format!("after {waited_ms} ms still: {error}"),
        },
        "success after about the delay",
    );
    tale.note(format!(
        "{SWITCH}=2, the default since Linux 4.19, does this for loopback only: tests on one host pass, and the \
         same program fails between hosts."
    ));
    Ok(())
}

fn try_until_success(arena: &Arena, address: SocketAddr) -> (Duration, Option<CallError>) {
    let from = clock::boot();
    loop {
        let result = arena.connect(address);
        let waited = clock::boot().saturating_since(from);
        match result {
            Ok(_) => return (waited, None),
            Err(error) if waited >= REUSE_MAX => return (waited, Some(error)),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
