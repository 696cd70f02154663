//! RFC 1337: an old packet that turns up again makes the other side send a reset, and that ends
//! TIME_WAIT.
//!
//! ```text
//!   client, in TIME_WAIT                    server, which has forgotten the connection
//!     <──── old segment, seen before ────     (sent here over a raw socket)
//!     ───── "I am at …" (ACK) ──────────>
//!     <──── "I know of none" (RST) ──────     its sequence number is the one just acked
//! ```

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::thread;
use std::time::Duration;

use rollcall_os::clock;
use socket2::{Domain, Protocol, Socket, Type};

use super::{First, is_at};
use crate::lab::arena::Arena;
use crate::lab::sockets::{Pair, Reuse, connect_from, is_in_use, listen};
use crate::lab::tale::Tale;

const SWITCH: &str = "net.ipv4.tcp_rfc1337";
/// How long the three packets may take on a loopback.
const PACKETS_MAX: Duration = Duration::from_millis(300);
const PAUSE: Duration = Duration::from_millis(2);
/// TCP's number in the pseudo header (RFC 9293, section 3.1).
const TCP: u8 = 6;

pub(super) fn run(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    if !arena.is_own() {
        tale.not_run(
            "This experiment needs a network namespace of its own: it sends a packet by a raw socket and sets \
             a sysctl.",
        );
        return Ok(());
    }
    for (value, port) in [("0", arena.range().first), ("1", arena.range().last)] {
        let listener = listen(arena.server(u16::from(value == "1"))?, Reuse::On)?;
        let source = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
        if value == "1" {
            tale.cure(format!("{SWITCH}=1: a reset does not end TIME_WAIT."));
        }
        arena.set(SWITCH, value)?;
        assassinate(arena, &listener, source, value == "0", tale)?;
    }
    tale.note(format!(
        "{SWITCH} is 0 by default (the kernel's documentation can be read the other way round; this is what was \
         measured just now). TIME_WAIT keeps late packets of a connection out of the next one with the same \
         addresses and ports. A program is safe without the switch if its own messages say which they are: \
         Rollcall's carry a stream and a sequence, and a session begins with a Hello."
    ));
    Ok(())
}

fn assassinate(
    arena: &Arena,
    listener: &TcpListener,
    source: SocketAddr,
    is_mortal: bool,
    tale: &mut Tale,
) -> anyhow::Result<()> {
    let server = listener.local_addr()?;
    let value = arena.get(SWITCH);
    tale.action(format!(
        "{SWITCH}={value}. A client at {source} talks to {server} and closes first. Then one old data packet \
         of that connection arrives once more."
    ));
    let mut pair = Pair::accepted(connect_from(source, server, Reuse::Off)?, listener)?;
    pair.exchange()?;
    pair.close(First::Client)?;
    let before = arena.time_wait(is_at(source))?.len();
    send_old_segment(server, source)?;
    let deadline = clock::boot() + PACKETS_MAX;
    let mut after = arena.time_wait(is_at(source))?.len();
    while after > 0 && clock::boot() < deadline {
        thread::sleep(PAUSE);
        after = arena.time_wait(is_at(source))?.len();
    }
    let (fact, wanted) = match is_mortal {
        true => ("time_wait_after_with_0", "it to be ended by the reset"),
        false => ("time_wait_after_with_1", "it to stay"),
    };
    tale.fact(fact, after);
    tale.expect(
        before == 1 && (after == 0) == is_mortal,
        format!("sockets in TIME_WAIT before: {before}, after: {after}"),
        wanted,
    );
    let again = connect_from(source, server, Reuse::Off).err();
    let is_refused = is_in_use(again.as_ref());
    tale.expect(
        if is_mortal { again.is_none() } else { is_refused },
        match &again {
            None => {
                "the same addresses and ports can be connected again at once: late packets of the old \
                     connection could get into the new one"
                    .to_owned()
            }
            Some(error) => format!("the same addresses and ports again: {error}; TIME_WAIT does its work"),
        },
        if is_mortal { "a new connection" } else { "error 98" },
    );
    Ok(())
}

/// Sends what a delayed data packet from `from` to `to` looks like: its sequence number is none that
/// the receiver waits for.
fn send_old_segment(from: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
    let segment = segment(from.port(), to.port());
    socket.send_to(&segment, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into())?;
    Ok(())
}

/// A TCP header without options, and one byte of data, between ports of 127.0.0.1.
fn segment(from: u16, to: u16) -> Vec<u8> {
    const SEQUENCE: u32 = 12_345;
    const ACKNOWLEDGED: u32 = 6_789;
    const HEADER_WORDS: u8 = 5;
    const PUSH_AND_ACK: u8 = 0x18;
    const WINDOW: u16 = 1000;
    let mut segment = Vec::new();
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend(SEQUENCE.to_be_bytes());
    segment.extend(ACKNOWLEDGED.to_be_bytes());
    segment.extend([HEADER_WORDS << 4, PUSH_AND_ACK]);
    segment.extend(WINDOW.to_be_bytes());
    segment.extend([0; 4]); // checksum and urgent pointer
    segment.push(b'x');
    let sum = checksum(&segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// The internet checksum over the pseudo header and the segment (RFC 1071).
fn checksum(segment: &[u8]) -> u16 {
    let address = Ipv4Addr::LOCALHOST.octets();
    let length = u16::try_from(segment.len())
        .unwrap_or(u16::MAX)
        .to_be_bytes();
    let pseudo = [&address[..], &address, &[0, TCP], &length].concat();
    let bytes = [&pseudo[..], segment].concat();
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_sums_up_to_nothing() {
        let segment = segment(7412, 40_000);
        assert_eq!(segment.len(), 21);
        // Over a segment that has its checksum the sum is 0.
        assert_eq!(checksum(&segment), 0);
        let mut damaged = segment;
        damaged[4] ^= 1;
        assert_ne!(checksum(&damaged), 0);
    }
}
