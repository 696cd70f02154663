//! Addresses that may name the interface they are meant for, as link-local ones must (RFC 4007).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

/// An address, for IPv6 with or without a scope: "10.0.0.5", "2001:db8::5", "fe80::5%eth0".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopedAddress {
    /// The address.
    pub ip: IpAddr,
    /// The interface, by its name or its number; of IPv6 addresses only.
    pub scope: Option<String>,
}

/// Text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address: expected one such as \"10.0.0.5\", \"2001:db8::5\" or \"fe80::5%eth0\""
)]
pub struct ScopedAddressError(String);

/// The interface of a scope is not there.
#[derive(Debug, thiserror::Error)]
#[error("this host has no interface {name:?} (see `ip link`): {source}")]
pub struct ScopeError {
    /// The interface, as configured.
    pub name: String,
    /// What the kernel said.
    pub source: io::Error,
}

impl ScopedAddress {
    /// Whether it means nothing without an interface: IPv6 addresses of fe80::/10 (RFC 4291).
    pub fn needs_scope(&self) -> bool {
        let link_local = |ip: &Ipv6Addr| ip.segments()[0] & 0xffc0 == 0xfe80;
        matches!(&self.ip, IpAddr::V6(ip) if link_local(ip)) && self.scope.is_none()
    }

    /// The address with a port. A scope's name is looked up now: an interface that comes again may
    /// have another number.
    ///
    /// # Errors
    /// [`ScopeError`]
    pub fn with_port(&self, port: u16) -> Result<SocketAddr, ScopeError> {
        match (self.ip, &self.scope) {
            (IpAddr::V6(ip), Some(scope)) => {
                let index = interface_index(scope)?;
                Ok(SocketAddrV6::new(ip, port, 0, index).into())
            }
            (ip, _) => Ok(SocketAddr::new(ip, port)),
        }
    }
}

impl FromStr for ScopedAddress {
    type Err = ScopedAddressError;

    fn from_str(text: &str) -> Result<Self, ScopedAddressError> {
        let parse = || {
            let Some((address, scope)) = text.split_once('%') else {
                let ip = text.parse().ok()?;
                return Some(Self { ip, scope: None });
            };
            let ip: Ipv6Addr = address.parse().ok()?;
            is_interface(scope).then(|| Self {
                ip: ip.into(),
                scope: Some(scope.to_owned()),
            })
        };
        parse().ok_or_else(|| ScopedAddressError(text.to_owned()))
    }
}

impl fmt::Display for ScopedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Some(scope) => write!(f, "{}%{scope}", self.ip),
            None => self.ip.fmt(f),
        }
    }
}

/// Whether `name` could be an interface's: 1 to 15 bytes without "/", ":" and blanks
/// (dev_valid_name of the kernel).
pub fn is_interface(name: &str) -> bool {
    let bad = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0;
    (1..16).contains(&name.len()) && !name.bytes().any(bad) && name != "." && name != ".."
}

/// The number of an interface (netdevice(7)).
fn interface_index(name: &str) -> Result<u32, ScopeError> {
    if let Ok(index) = name.parse() {
        return Ok(index);
    }
    let find = || {
        // Any socket will do to ask with.
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        netdevice::name_to_index(&socket, name)
    };
    find().map_err(|errno| ScopeError {
        name: name.to_owned(),
        source: errno.into(),
    })
}
