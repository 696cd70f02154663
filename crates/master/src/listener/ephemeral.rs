//! A warning about ports that the kernel gives to outgoing connections.
//!
//! While the master is down, such a port can be taken as the source port of anybody's connection; then
//! the master can't listen on it, and SO_REUSEADDR does not help.

use std::net::SocketAddr;

use rollcall_os::diag::ports::{LocalPorts, PortRange, local_port_range, reserved_ports};

/// Warns if outgoing connections may take the port of `address`.
pub(crate) fn warn_of_ephemeral_port(address: SocketAddr) {
    // Without /proc there is nothing to warn of.
    let Ok((range, reserved)) = local_port_range().and_then(|range| Ok((range, reserved_ports()?)))
    else {
        return;
    };
    if let Some(remedy) = remedy(address.port(), range, reserved) {
        tracing::warn!(
            event = "port_in_ephemeral_range",
            address = %address,
            range = %range,
            remedy,
            "an outgoing connection of any process can take this port while nobody listens on it"
        );
    }
}

/// The line for sysctl.d that keeps `port` from outgoing connections; `None` if it is safe.
fn remedy(port: u16, range: PortRange, reserved: Vec<PortRange>) -> Option<String> {
    if !LocalPorts::new(range, reserved.clone()).contains(port) {
        return None;
    }
    // The kernel's list is replaced, not added to.
    let reserved = reserved.into_iter().map(|range| match range {
        PortRange { first, last } if first == last => first.to_string(),
        range => range.to_string(),
    });
    let list: Vec<_> = reserved.chain([port.to_string()]).collect();
    Some(format!(
        "net.ipv4.ip_local_reserved_ports = {}",
        list.join(",")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange { first, last }
    }

    #[test]
    fn the_line_keeps_what_is_reserved_already() {
        let connections = range(32_768, 60_999);
        let reserved = || vec![range(8080, 8080), range(40_000, 40_010)];
        assert_eq!(remedy(7412, connections, reserved()), None);
        assert_eq!(remedy(40_005, connections, reserved()), None);
        let line = remedy(50_000, connections, reserved());
        let expected = "net.ipv4.ip_local_reserved_ports = 8080,40000-40010,50000";
        assert_eq!(line.as_deref(), Some(expected));
        let line = remedy(32_768, connections, Vec::new());
        let expected = "net.ipv4.ip_local_reserved_ports = 32768";
        assert_eq!(line.as_deref(), Some(expected));
    }
}
