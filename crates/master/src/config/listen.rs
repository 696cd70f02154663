//! `[listen]`: where slaves connect, and what can't be right about it.

use std::net::{IpAddr, SocketAddr};

use garde::Validate;
use rollcall_os::config::{Faults, Reported};
use rollcall_os::socket::ListenOptions;
use serde::{Deserialize, Serialize};

use super::TlsMode;
use crate::listener::{Listener, overlap};

/// The section as it is written.
#[derive(Clone, Debug, Deserialize, Serialize, Validate)]
#[serde(deny_unknown_fields)]
pub(super) struct RawListen {
    #[garde(length(min = 1))]
    addresses: Vec<SocketAddr>,
    #[garde(skip)]
    ipv6_only: bool,
    #[garde(skip)]
    freebind: bool,
    #[garde(skip)]
    privileged: Vec<SocketAddr>,
    #[garde(skip)]
    datagram: Vec<SocketAddr>,
    #[garde(range(min = 1))]
    backlog: u16,
}

impl RawListen {
    /// How its sockets are opened.
    pub(super) fn options(&self) -> ListenOptions {
        ListenOptions {
            backlog: self.backlog,
            ipv6_only: self.ipv6_only,
            freebind: self.freebind,
        }
    }

    /// Its listeners.
    pub(super) fn listeners(&self) -> Vec<Listener> {
        let addresses = self.addresses.iter();
        addresses
            .map(|address| Listener {
                address: *address,
                privileged: self.privileged.contains(address),
            })
            .collect()
    }

    /// Where slaves ask by datagrams.
    pub(super) fn datagram(&self) -> &[SocketAddr] {
        &self.datagram
    }

    /// Adds what is wrong with it to `faults`.
    pub(super) fn check(
        &self,
        tls: TlsMode,
        http: SocketAddr,
        faults: &mut Faults<'_>,
    ) -> Option<Reported> {
        let mut reported = None;
        for (at, address) in self.addresses.iter().enumerate() {
            if let Some(message) = self.fault_of(tls, &self.addresses[..at], *address) {
                reported = Some(faults.add(&format!("listen.addresses[{at}]"), message));
            }
        }
        for (at, address) in self.datagram.iter().enumerate() {
            if let Some(message) = self.fault_of(tls, &self.datagram[..at], *address) {
                reported = Some(faults.add(&format!("listen.datagram[{at}]"), message));
            }
        }
        for (at, address) in self.privileged.iter().enumerate() {
            if !self.addresses.contains(address) {
                let message = format!("{address} is none of listen.addresses");
                reported = Some(faults.add(&format!("listen.privileged[{at}]"), message));
            }
        }
        // The listener of HTTP is never for both.
        let in_the_way = |address: &&SocketAddr| overlap(**address, http, true);
        if let Some(address) = self.addresses.iter().find(in_the_way) {
            let message =
                format!("slaves connect to {address} (listen.addresses): take another port");
            reported = Some(faults.add("http.address", message));
        }
        reported
    }

    fn fault_of(
        &self,
        tls: TlsMode,
        earlier: &[SocketAddr],
        address: SocketAddr,
    ) -> Option<String> {
        if let IpAddr::V6(mapped) = address.ip()
            && let Some(ipv4) = mapped.to_ipv4_mapped()
        {
            let port = address.port();
            return Some(format!("write {address} as \"{ipv4}:{port}\""));
        }
        if tls == TlsMode::LoopbackOnly && !address.ip().is_loopback() {
            return Some(format!(
                "{address} is not a loopback address; set [tls] mode = \"off\" to accept slaves from the network without authentication"
            ));
        }
        if earlier.contains(&address) {
            return Some(format!("{address} is listed twice"));
        }
        let mut earlier = earlier.iter();
        let other = earlier.find(|other| overlap(**other, address, self.ipv6_only))?;
        let both = if address.is_ipv4() == other.is_ipv4() {
            ""
        } else {
            " with ipv6_only = false"
        };
        Some(format!(
            "{address} and {other} overlap{both}: list the wider one only, or give them different ports"
        ))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::faults_of;

    #[test]
    fn addresses_that_exclude_each_other_are_refused() {
        let overlapping = "[listen]\naddresses = [\"0.0.0.0:7412\", \"[::]:7412\", \"127.0.0.1:7412\", \"127.0.0.1:1\"]\n[tls]\nmode = \"off\"\n";
        let keys = faults_of(overlapping);
        assert_eq!(keys, ["listen.addresses[2]"]);
        let dual = overlapping.replace("[listen]\n", "[listen]\nipv6_only = false\n");
        assert_eq!(
            faults_of(&dual),
            ["listen.addresses[1]", "listen.addresses[2]"]
        );
        let apart =
            "[listen]\naddresses = [\"127.0.0.1:7412\", \"127.0.0.2:7412\", \"[::1]:7412\"]\n";
        assert_eq!(faults_of(apart), [""; 0]);
    }

    #[test]
    fn other_faults_of_the_section_are_told() {
        let text = "[listen]\naddresses = [\"[::ffff:127.0.0.1]:1\", \"127.0.0.1:2\"]\nprivileged = [\"127.0.0.1:2\", \"127.0.0.1:3\"]\n[http]\naddress = \"127.0.0.1:2\"\n";
        assert_eq!(
            faults_of(text),
            [
                "listen.addresses[0]",
                "listen.privileged[1]",
                "http.address"
            ]
        );
    }
}
