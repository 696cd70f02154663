//! Why an outgoing connection can't be begun.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::scope::ScopeError;
use crate::diag::ports::PortRange;

/// What keeps a connection from being begun, with the remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum OutgoingError {
    /// Every port that may be used for this destination is taken (EADDRNOTAVAIL, connect(2)).
    #[error("no free local port for a connection to {destination} (errno 99)")]
    Exhausted {
        /// Where to.
        destination: SocketAddr,
    },
    /// None of the source addresses is of the destination's family.
    #[error(
        "no source address is of the family of {destination}: add one, or take this master out"
    )]
    Family {
        /// Where to.
        destination: SocketAddr,
    },
    /// A source address is not one of this host's (EADDRNOTAVAIL, bind(2)).
    #[error(
        "this host has no address {address} to send from (see `ip address`): correct the source addresses"
    )]
    NotHere {
        /// The source address.
        address: IpAddr,
    },
    /// The host has no address from which the destination could be reached.
    #[error(
        "this host has no address from which {destination} can be reached (see `ip address` and `ip route`)"
    )]
    NoAddress {
        /// Where to.
        destination: SocketAddr,
    },
    /// Ports below 1024 need a capability (EACCES, bind(2)).
    #[error(
        "no permission to send from a port of {ports} (errno 13): ports below 1024 need CAP_NET_BIND_SERVICE; add AmbientCapabilities=CAP_NET_BIND_SERVICE to the unit, or run `setcap cap_net_bind_service=+ep` on the program"
    )]
    NotPermitted {
        /// The ports that were to be used.
        ports: PortRange,
    },
    /// The interface can't be bound to (SO_BINDTODEVICE, socket(7)).
    #[error("can't bind to the interface {interface:?}: {source}; {remedy}")]
    Interface {
        /// Its name.
        interface: String,
        /// What the kernel said.
        source: io::Error,
        /// What helps.
        remedy: &'static str,
    },
    /// The interface that an address names is not there.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// Anything else, such as an unreachable network.
    #[error("can't connect to {destination}: {source}")]
    Connect {
        /// Where to.
        destination: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl OutgoingError {
    /// Whether another source address may do better.
    pub(super) fn is_of_one_source(&self) -> bool {
        matches!(
            self,
            Self::Exhausted { .. } | Self::NotHere { .. } | Self::Scope(_)
        )
    }

    pub(super) fn interface(interface: &str, source: io::Error) -> Self {
        let remedy = match source.raw_os_error() {
            // ENODEV
            Some(19) => "this host has no such interface (see `ip link`)",
            // EPERM
            Some(1) => {
                "kernels before Linux 5.7 need CAP_NET_RAW for it: add AmbientCapabilities=CAP_NET_RAW to the unit"
            }
            _ => "correct it in the configuration",
        };
        Self::Interface {
            interface: interface.to_owned(),
            source,
            remedy,
        }
    }
}

impl From<OutgoingError> for io::Error {
    fn from(error: OutgoingError) -> Self {
        let kind = match &error {
            OutgoingError::Exhausted { .. }
            | OutgoingError::NotHere { .. }
            | OutgoingError::NoAddress { .. } => io::ErrorKind::AddrNotAvailable,
            OutgoingError::NotPermitted { .. } => io::ErrorKind::PermissionDenied,
            OutgoingError::Family { .. } => io::ErrorKind::InvalidInput,
            OutgoingError::Scope(ScopeError { source, .. })
            | OutgoingError::Interface { source, .. }
            | OutgoingError::Connect { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}
