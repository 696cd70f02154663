//! The addresses of this host.

use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// An address and its interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LocalAddress {
    /// The address.
    pub ip: IpAddr,
    /// The interface's name.
    pub interface: String,
}

impl std::fmt::Display for LocalAddress {
    /// As it is written in a configuration: link-local addresses need their interface.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.ip)?;
        match self.ip {
            IpAddr::V6(six) if six.is_unicast_link_local() => write!(f, "%{}", self.interface),
            _ => Ok(()),
        }
    }
}

/// All of this network namespace (getifaddrs(3)), IPv4 first. The whole of 127.0.0.0/8 is local as
/// well, although only 127.0.0.1 is listed.
///
/// # Errors
/// What the system says.
pub fn local_addresses() -> io::Result<Vec<LocalAddress>> {
    let mut found: Vec<_> = getifaddrs()?
        .filter_map(|one| {
            let address = one.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(four), _) => IpAddr::V4(four.ip()),
                (_, Some(six)) => IpAddr::V6(six.ip()),
                _ => return None,
            };
            Some(LocalAddress {
                ip,
                interface: one.interface_name,
            })
        })
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// Whether `ip` is one of this host's.
///
/// # Errors
/// As [`local_addresses`].
pub fn is_local(ip: IpAddr) -> io::Result<bool> {
    let ip = ip.to_canonical();
    Ok(ip.is_loopback() || local_addresses()?.iter().any(|one| one.ip == ip))
}

#[cfg(test)]
mod tests {
    use super::{is_local, local_addresses};

    #[test]
    fn loopback_is_listed_and_a_documentation_address_is_not() {
        let all = local_addresses().unwrap();
        assert!(
            all.iter()
                .any(|one| one.interface == "lo" && one.to_string() == "127.0.0.1")
        );
        assert!(is_local("127.0.0.9".parse().unwrap()).unwrap());
        assert!(is_local("::ffff:127.0.0.1".parse().unwrap()).unwrap());
        assert!(!is_local("192.0.2.1".parse().unwrap()).unwrap());
    }
}
