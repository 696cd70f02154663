//! Network namespaces of this process's own: ports, sysctls and a loopback that nobody else uses.
//!
//! They end with the last process and socket in them, whatever becomes of this program.

use std::fs;
use std::io;

use nix::sched::{CloneFlags, unshare};
use rustix::net::netdevice::name_to_index;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};
use rustix::process::{getegid, geteuid};

/// Why there is no namespace to be had.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub(super) struct NamespaceError {
    what: &'static str,
    source: io::Error,
}

/// How a namespace was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// This process may make one (CAP_SYS_ADMIN).
    Own,
    /// It is root in a user namespace, which any user may make where the host allows it.
    UserNamespace,
}

/// Moves this process, which must have no other thread, into a new network namespace with nothing
/// in it but a loopback that is up.
///
/// # Errors
/// [`NamespaceError`] where neither the right to it nor user namespaces are given
/// (user_namespaces(7)). The process is then where it was, or as powerless in a user namespace.
pub(super) fn enter() -> Result<Right, NamespaceError> {
    let right = match renew() {
        Ok(()) => Right::Own,
        Err(_) => {
            enter_user_namespace()?;
            renew()?;
            Right::UserNamespace
        }
    };
    Ok(right)
}

/// Leaves the present namespace for a new one. What is left open stays in the old one.
pub(super) fn renew() -> Result<(), NamespaceError> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|errno| failed("unshare(CLONE_NEWNET)", errno.into()))?;
    bring_up_loopback().map_err(|source| failed("bringing up the loopback", source))
}

/// Becomes root of a new user namespace, in which this user is the only one.
fn enter_user_namespace() -> Result<(), NamespaceError> {
    // Asked for before: afterwards they are those of nobody.
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    unshare(CloneFlags::CLONE_NEWUSER)
        .map_err(|errno| failed("unshare(CLONE_NEWUSER)", errno.into()))?;
    // Without the first the kernel takes no map of groups from a user (user_namespaces(7)).
    for (file, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ] {
        fs::write(file, text).map_err(|source| failed("mapping the user", source))?;
    }
    Ok(())
}

fn failed(what: &'static str, source: io::Error) -> NamespaceError {
    NamespaceError { what, source }
}

/// A new namespace has its loopback down. Over rtnetlink(7), so that no ip(8) is needed.
fn bring_up_loopback() -> io::Result<()> {
    let kind = SocketType::RAW;
    // No protocol is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, None)?;
    let index = name_to_index(&socket, "lo")?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &link_up(index), SendFlags::empty(), &kernel)?;
    let mut answer = [0; 128];
    let (_, length) = recv(&socket, &mut answer, RecvFlags::empty())?;
    acknowledged(answer.get(..length).unwrap_or_default())
}

/// RTM_NEWLINK with IFF_UP for the interface `index`: struct nlmsghdr, then struct ifinfomsg.
fn link_up(index: u32) -> Vec<u8> {
    const LENGTH: u32 = 32;
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const IFF_UP: u32 = 1;
    let mut message = Vec::new();
    message.extend(LENGTH.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]); // sequence and port
    message.extend([0; 4]); // family, padding, type
    message.extend(index.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // flags
    message.extend(IFF_UP.to_ne_bytes()); // which of them to change
    message
}

/// What the kernel says to it: struct nlmsgerr, with 0 or a negated errno.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    const NLMSG_ERROR: u16 = 2;
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok());
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok());
    match (kind.map(u16::from_ne_bytes), code.map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_as_long_as_it_says() {
        let message = link_up(1);
        assert_eq!(message.len(), 32);
        assert_eq!(message[..4], 32_u32.to_ne_bytes());
    }

    #[test]
    fn an_answer_is_taken_apart() {
        let kind = 2_u16.to_ne_bytes();
        let answer = |code: i32| [&[0; 4], &kind[..], &[0; 10], &code.to_ne_bytes()].concat();
        assert!(acknowledged(&answer(0)).is_ok());
        let error = acknowledged(&answer(-1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(acknowledged(&[0; 8]).is_err());
    }
}
