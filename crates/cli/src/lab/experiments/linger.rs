//! What an abortive close (SO_LINGER with 0) costs, and when it costs nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockRef;

use super::is_to;
use crate::lab::arena::{Arena, PORTS};
use crate::lab::sockets::{CallError, Pair, Reuse, errno, listen, words};
use crate::lab::tale::Tale;

/// Ten times as many reports as there are ports.
const REPORTS: usize = 10 * PORTS as usize;
static BLOCK: [u8; 64 * 1024] = [b'x'; 64 * 1024];

/// How the client closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    /// close(2) as it is.
    Ordinary,
    /// After SO_LINGER with 0 s: a reset instead of an end of the stream.
    Abortive,
}

pub(super) fn run(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let listener = listen(arena.server(0)?, Reuse::On)?;
    tale.action(
        "A client writes until the kernel takes no more, sets SO_LINGER to 0 seconds and closes. The server \
         reads only then.",
    );
    let (taken, read, error) = deliver(arena, &listener, Close::Abortive)?;
    tale.fact("aborted_written_bytes", taken);
    tale.fact("aborted_read_bytes", read);
    tale.expect(
        read < taken
            && error
                .as_ref()
                .is_some_and(|error| errno(error) == Errno::ECONNRESET),
        told(taken, read, error.as_ref()),
        "less than was written, and error ECONNRESET",
    );
    tale.answer("to the client every write() and the close() were successful");
    tale.cure("An ordinary close(): the kernel goes on sending after it, and the server sees the end of the stream.");
    tale.action("The same without SO_LINGER.");
    let (taken, read, error) = deliver(arena, &listener, Close::Ordinary)?;
    tale.fact("closed_written_bytes", taken);
    tale.fact("closed_read_bytes", read);
    tale.expect(
        read == taken && error.is_none(),
        told(taken, read, error.as_ref()),
        "every byte",
    );
    after_ack(arena, tale)?;
    tale.note(format!(
        "How much is in flight depends on net.ipv4.tcp_wmem ({} here) and net.ipv4.tcp_rmem ({}), and on how fast \
         the other side reads.",
        arena.get("net.ipv4.tcp_wmem"),
        arena.get("net.ipv4.tcp_rmem")
    ));
    Ok(())
}

/// Writes as much as fits, closes, and reads at the other end: bytes written and read, and how
/// reading ended.
fn deliver(
    arena: &Arena,
    listener: &TcpListener,
    close: Close,
) -> anyhow::Result<(usize, usize, Option<io::Error>)> {
    let client = arena.connect(listener.local_addr()?)?;
    let Pair { client, mut server } = Pair::accepted(client, listener)?;
    let taken = write_all_that_fits(&client)?;
    if close == Close::Abortive {
        SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
    }
    drop(client);
    let mut read = 0;
    let mut buffer = BLOCK.to_vec();
    loop {
        match server.read(&mut buffer) {
            Ok(0) => return Ok((taken, read, None)),
            Ok(bytes) => read += bytes,
            Err(error) => return Ok((taken, read, Some(error))),
        }
    }
}

fn write_all_that_fits(mut client: &TcpStream) -> io::Result<usize> {
    client.set_nonblocking(true)?;
    let mut taken = 0;
    loop {
        match client.write(&BLOCK) {
            Ok(bytes) => taken += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(taken),
            Err(error) => return Err(error),
        }
    }
}

fn told(taken: usize, read: usize, error: Option<&io::Error>) -> String {
    let end = error.map_or_else(|| "the end of the stream".to_owned(), words);
    format!(
        "the kernel took {taken} bytes; the server reads {read}, then {end}; lost: {}",
        taken.saturating_sub(read)
    )
}

/// Once the application has its answer there is nothing in flight that a reset could destroy.
fn after_ack(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    tale.cure("Abort only what has been answered by the application: then nothing is in flight.");
    let listener = listen(arena.server(1)?, Reuse::On)?;
    let address = listener.local_addr()?;
    tale.action(format!(
        "{REPORTS} connections to {address} from {PORTS} ports, each with a report and its answer; then the \
         client aborts (SO_LINGER 0)."
    ));
    let (mut done, mut error) = (0, None);
    while done < REPORTS && error.is_none() {
        match super::open(arena, &listener).and_then(abort) {
            Ok(()) => done += 1,
            Err(failed) => error = Some(failed),
        }
    }
    let left = arena.time_wait(is_to(address))?.len();
    tale.fact("aborted_after_answer", done);
    tale.fact("aborted_after_answer_time_wait", left);
    tale.expect(
        done == REPORTS && left == 0,
        format!(
            "{done} of {REPORTS} answered, {left} sockets in TIME_WAIT on the client's side; {}",
            super::said(error.as_ref())
        ),
        "all of them, and no TIME_WAIT",
    );
    tale.note(
        "It is the second best: the server closing first needs no reset, and works when the client is not yours. \
         The server must take ECONNRESET after its answer for a normal end.",
    );
    Ok(())
}

fn abort(pair: Pair) -> Result<(), CallError> {
    SockRef::from(&pair.client)
        .set_linger(Some(Duration::ZERO))
        .map_err(|error| CallError::new("setsockopt", error))
}
