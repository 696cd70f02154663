//! IP_LOCAL_PORT_RANGE: a range of ports for one socket, from which the kernel picks.

use std::os::fd::AsFd;

use nix::libc;
use nix::setsockopt_impl;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SetStruct;
use socket2::Socket;

use crate::diag::ports::PortRange;

/// The option's number (ip(7), Linux 6.3): no library has it by name yet.
const IP_LOCAL_PORT_RANGE: libc::c_int = 51;

/// The option for [`setsockopt`].
#[derive(Clone, Copy, Debug)]
struct LocalPortRange;

setsockopt_impl!(
    LocalPortRange,
    libc::IPPROTO_IP,
    IP_LOCAL_PORT_RANGE,
    u32,
    SetStruct<'_, u32>
);

/// Has the kernel pick the socket's port from `range`. Returns false if it does not: the option is
/// not there, or the range is not inside `kernel`, the range that the kernel picks from for everybody:
/// a bound outside of that has no effect (ip(7)).
pub fn narrow(socket: &Socket, range: PortRange, kernel: Option<PortRange>) -> bool {
    let is_inside =
        kernel.is_some_and(|kernel| kernel.contains(range.first) && kernel.contains(range.last));
    let value = u32::from(range.last) << 16 | u32::from(range.first);
    is_inside && setsockopt(&socket.as_fd(), LocalPortRange, &value).is_ok()
}
