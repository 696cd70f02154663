//! sock_diag over netlink: the request for a list of sockets, and the messages that answer it.
//!
//! The layouts are those of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h (sock_diag(7),
//! netlink(7)). Written here and not taken from a crate, because the published ones drop what is
//! needed most: when a TIME_WAIT ends, sockets that are bound and nothing else, and the control
//! group that a socket was made in.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
/// NLM_F_ROOT and NLM_F_MATCH: a list.
const NLM_F_DUMP: u16 = 0x300;

const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: u32 = 16 + 56;
const SOCKET_BYTES: usize = 72;
/// The kernel puts at most this much into one answer (netlink_recvmsg in net/netlink/af_netlink.c).
const ANSWER_BYTES: usize = 32 * 1024;
/// The kernel answers from its own tables; this long only if it does not answer at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Flags in the two upper bits of an attribute's type.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

/// Which sockets to list. Ports of 0 stand for all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// AF_INET or AF_INET6.
    pub(super) family: u8,
    /// IPPROTO_TCP or IPPROTO_UDP.
    pub(super) protocol: u8,
    /// A bit for each state, as the kernel numbers them (net/tcp_states.h).
    pub(super) states: u32,
    pub(super) local_port: u16,
    pub(super) remote_port: u16,
}

/// One socket as the kernel tells it (struct inet_diag_msg).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) family: u8,
    pub(super) state: u8,
    /// 3 is the TIME_WAIT timer.
    pub(super) timer: u8,
    pub(super) local_port: u16,
    pub(super) remote_port: u16,
    /// The first four bytes of AF_INET, all of AF_INET6.
    pub(super) local: [u8; 16],
    pub(super) remote: [u8; 16],
    /// Index of the interface that it is bound to.
    pub(super) interface: u32,
    pub(super) expires_ms: u32,
    pub(super) receive_queue: u32,
    pub(super) send_queue: u32,
    pub(super) uid: u32,
    pub(super) inode: u32,
    pub(super) ipv6_only: bool,
    pub(super) cgroup: Option<u64>,
}

/// A connection to the kernel's socket tables. No privilege is needed to read them.
#[derive(Debug)]
pub(super) struct Tables {
    socket: OwnedFd,
}

impl Tables {
    /// Opens it.
    pub(super) fn open() -> io::Result<Self> {
        let family = AddressFamily::NETLINK;
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::DGRAM, flags, Some(SOCK_DIAG))?;
        // Only the kernel can send to a socket that is connected to it.
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self { socket })
    }

    /// Gives each socket of the list to `take`.
    pub(super) fn list(&self, request: Request, mut take: impl FnMut(Entry)) -> io::Result<()> {
        let request = encode(request);
        send(&self.socket, &request, SendFlags::empty())?;
        let mut buffer = vec![0; ANSWER_BYTES];
        loop {
            let bytes = self.receive(&mut buffer)?;
            for message in messages(&buffer[..bytes]) {
                match message {
                    Message::Entry(entry) => take(entry),
                    Message::Done => return Ok(()),
                    Message::Failed(error) => return Err(error),
                    Message::Other => {}
                }
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            return match recv(&self.socket, &mut *buffer, RecvFlags::TRUNC) {
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
                Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
                // With MSG_TRUNC the second number is the true length.
                Ok((got, whole)) if whole > got => Err(invalid("a message was cut")),
                Ok((got, _)) => Ok(got),
            };
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("sock_diag: {what}"))
}

/// struct nlmsghdr and struct inet_diag_req_v2.
fn encode(request: Request) -> Vec<u8> {
    let Request {
        family,
        protocol,
        states,
        local_port,
        remote_port,
    } = request;
    let mut bytes = Vec::new();
    bytes.extend(REQUEST_BYTES.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence, and the sender's address, which the kernel fills in.
    bytes.extend([0; 8]);
    // No extensions are asked for; SKV6ONLY and CGROUP_ID come unasked.
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(local_port.to_be_bytes());
    bytes.extend(remote_port.to_be_bytes());
    // Of struct inet_diag_sockid only the ports select what is listed.
    bytes.resize(bytes.len() + 16 + 16 + 4, 0);
    bytes.extend([0xff; 8]);
    bytes
}

enum Message {
    Entry(Entry),
    Done,
    Failed(io::Error),
    Other,
}

/// The messages of one answer. A length that makes no sense ends it with an error.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let Some((message, rest)) = first_message(bytes) else {
            bytes = &[];
            return Some(Message::Failed(invalid("a message of a wrong length")));
        };
        bytes = rest;
        Some(message)
    })
}

fn first_message(bytes: &[u8]) -> Option<(Message, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let payload = bytes.get(HEADER_BYTES..length)?;
    let message = match u16_at(bytes, 4)? {
        SOCK_DIAG_BY_FAMILY => match entry(payload) {
            Some(entry) => Message::Entry(entry),
            None => Message::Failed(invalid("a socket's message is too short")),
        },
        // Both begin with a negative errno, or 0.
        NLMSG_ERROR | NLMSG_DONE => match i32_at(payload, 0) {
            Some(error) if error < 0 => {
                Message::Failed(io::Error::from_raw_os_error(error.checked_neg()?))
            }
            _ => Message::Done,
        },
        _ => Message::Other,
    };
    let next = length.next_multiple_of(4).min(bytes.len());
    Some((message, &bytes[next..]))
}

fn entry(payload: &[u8]) -> Option<Entry> {
    let attributes = payload.get(SOCKET_BYTES..)?;
    let mut entry = Entry {
        family: payload[0],
        state: payload[1],
        timer: payload[2],
        local_port: u16::from_be_bytes(array(payload, 4)?),
        remote_port: u16::from_be_bytes(array(payload, 6)?),
        local: array(payload, 8)?,
        remote: array(payload, 24)?,
        interface: u32_at(payload, 40)?,
        expires_ms: u32_at(payload, 52)?,
        receive_queue: u32_at(payload, 56)?,
        send_queue: u32_at(payload, 60)?,
        uid: u32_at(payload, 64)?,
        inode: u32_at(payload, 68)?,
        ipv6_only: false,
        cgroup: None,
    };
    read_attributes(attributes, &mut entry);
    Some(entry)
}

/// struct nlattr: its length with these four bytes, its type, and what it says.
fn read_attributes(mut bytes: &[u8], entry: &mut Entry) {
    while let (Some(length), Some(kind)) = (u16_at(bytes, 0), u16_at(bytes, 2)) {
        let length = usize::from(length);
        let Some(value) = bytes.get(4..length) else {
            return;
        };
        match kind & ATTRIBUTE_TYPE_MASK {
            INET_DIAG_SKV6ONLY => entry.ipv6_only = value.first().is_some_and(|flag| *flag != 0),
            INET_DIAG_CGROUP_ID => entry.cgroup = array(value, 0).map(u64::from_ne_bytes),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_ne_bytes)
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    array(bytes, at).map(i32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_request_has_the_length_that_it_says() {
        let bytes = encode(Request {
            family: 2,
            protocol: 6,
            states: 1 << 10,
            local_port: 0x1234,
            remote_port: 0,
        });
        assert_eq!(bytes.len(), usize::try_from(REQUEST_BYTES).unwrap());
        assert_eq!(bytes[24..28], [0x12, 0x34, 0, 0]);
    }

    #[test]
    fn attributes_that_are_not_known_are_passed_over() {
        let mut payload = vec![0; SOCKET_BYTES];
        payload[0] = 10;
        payload[68..72].copy_from_slice(&77_u32.to_ne_bytes());
        // An unknown one of five bytes, padded to eight; then two that are known.
        for (length, kind, value) in [
            (5_u16, 8_u16, &[1, 0, 0, 0][..]),
            (5, INET_DIAG_SKV6ONLY, &[1, 0, 0, 0]),
            (12, INET_DIAG_CGROUP_ID, &7_u64.to_ne_bytes()),
        ] {
            payload.extend(length.to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(value);
        }
        let found = entry(&payload).unwrap();
        assert_eq!(
            (found.inode, found.ipv6_only, found.cgroup),
            (77, true, Some(7))
        );
        // Cut anywhere, it is read as far as it goes, or not at all.
        for length in 0..payload.len() {
            assert_eq!(entry(&payload[..length]).is_some(), length >= SOCKET_BYTES);
        }
    }

    #[test]
    fn errors_and_nonsense_end_a_list() {
        let failed = message(NLMSG_ERROR, &(-2_i32).to_ne_bytes());
        let found = messages(&failed).next();
        assert!(matches!(found, Some(Message::Failed(error)) if error.raw_os_error() == Some(2)));
        let done = message(NLMSG_DONE, &0_i32.to_ne_bytes());
        assert!(matches!(messages(&done).next(), Some(Message::Done)));
        for length in [0_u32, 15, 200] {
            let mut bytes = done.clone();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let all: Vec<_> = messages(&bytes).collect();
            assert!(matches!(all[..], [Message::Failed(_)]), "{length}");
        }
    }
}
