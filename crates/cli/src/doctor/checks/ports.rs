//! The range that source ports come from, and the listeners that lie in it.

use rollcall_os::diag::ports::PortRange;

use super::Case;
use crate::doctor::finding::{Finding, Severity, set};
use crate::doctor::settings::Settings;
use crate::doctor::traffic::{Listener, Traffic};

const RANGE: &str = "net.ipv4.ip_local_port_range";
const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";
/// The kernel's default has 28,232.
const FEW: u32 = 20_000;
/// A burst of one-second jobs uses as many up.
const VERY_FEW: u32 = 5_000;
/// Below are the ports of well-known services.
const UNPRIVILEGED: u16 = 1024;
/// A wide range: most servers listen below.
const WIDE: PortRange = PortRange {
    first: 16_384,
    last: 65_535,
};

pub(super) fn check(case: Case<'_>) -> Vec<Finding> {
    let mut findings = vec![range(case), reserved(case.settings)];
    findings.extend(listeners(case));
    findings
}

fn range(case: Case<'_>) -> Finding {
    let ports = &case.settings.ports;
    let (range, usable) = (ports.range(), ports.usable());
    let severity = match usable {
        _ if range.first < UNPRIVILEGED => Severity::Warning,
        ..VERY_FEW => Severity::Warning,
        VERY_FEW..FEW => Severity::Notice,
        FEW.. => Severity::Ok,
    };
    let means = if range.first < UNPRIVILEGED {
        "Outgoing connections may be given ports that services of this host listen on: these get error 98 then."
            .to_owned()
    } else {
        format!(
            "Each address of this host can have that many connections to one destination (address and port) at \
             a time, or {} a second where it closes first.",
            usable / 60
        )
    };
    Finding::new(
        "port_range",
        severity,
        format!("{RANGE} = {range}: {usable} source ports"),
        means,
    )
    .mend_if(widen(case))
}

/// The command that gives more source ports, and keeps those of listeners out of it; none if there
/// are as many already.
pub(super) fn widen(case: Case<'_>) -> Option<String> {
    let range = case.settings.ports.range();
    if range.count() >= WIDE.count() && range.first >= UNPRIVILEGED {
        return None;
    }
    let inside: Vec<String> = case
        .traffic
        .listening()
        .into_iter()
        .filter(|port| WIDE.contains(*port) && !is_reserved(case.settings, *port))
        .map(|port| port.to_string())
        .collect();
    let wide = format!("{RANGE}=\"{} {}\"", WIDE.first, WIDE.last);
    if inside.is_empty() {
        return Some(format!("sysctl -w {wide}"));
    }
    let reserved = with_reserved(case.settings, &inside.join(","));
    Some(format!("sysctl -w {RESERVED}={reserved} {wide}"))
}

fn is_reserved(settings: &Settings, port: u16) -> bool {
    settings
        .reserved_ranges
        .iter()
        .any(|range| range.contains(port))
}

/// A new list of reserved ports: the parameter is replaced as a whole.
fn with_reserved(settings: &Settings, more: &str) -> String {
    match settings.reserved.as_str() {
        "" => more.to_owned(),
        old => format!("{old},{more}"),
    }
}

fn reserved(settings: &Settings) -> Finding {
    let count = settings.ports.reserved();
    let (severity, means) = if count > settings.ports.range().count() / 2 {
        (
            Severity::Warning,
            "More than half of the source ports are kept from connections.",
        )
    } else {
        (
            Severity::Ok,
            "Ports that no connection is given as its source port; a server can rely on them.",
        )
    };
    let list = match settings.reserved.as_str() {
        "" => "none",
        list => list,
    };
    Finding::new(
        "reserved_ports",
        severity,
        format!("{RESERVED} = {list}: {count} of the source ports"),
        means,
    )
    .mend(set(RESERVED, "\"\""))
}

fn listeners(case: Case<'_>) -> Option<Finding> {
    let Traffic { listeners, .. } = case.traffic;
    let is_exposed = |listener: &&Listener| case.settings.ports.contains(listener.address.port());
    let mut exposed: Vec<_> = listeners.iter().filter(is_exposed).collect();
    exposed.dedup_by_key(|listener| listener.address.port());
    if exposed.is_empty() {
        return None;
    }
    let told: Vec<_> = exposed
        .iter()
        .map(|listener| format!("{} ({})", listener.address.port(), listener.owner))
        .collect();
    let ports: Vec<_> = exposed
        .iter()
        .map(|listener| listener.address.port().to_string())
        .collect();
    Some(
        Finding::new(
            "listener_in_range",
            Severity::Notice,
            format!("listeners on source ports: {}", told.join(", ")),
            "While such a server is down the kernel may give its port to an outgoing connection, and it gets \
             error 98 at its next start; ports that are different at each start don't matter.",
        )
        .mend(set(RESERVED, with_reserved(case.settings, &ports.join(",")))),
    )
}

#[cfg(test)]
mod tests {
    use super::super::testing::{find, severity};
    use super::*;

    const FILE: &str = "proc/sys/net/ipv4/ip_local_port_range";
    const RESERVED_FILE: &str = "proc/sys/net/ipv4/ip_local_reserved_ports";

    fn listener(address: &str) -> Listener {
        Listener {
            address: address.parse().unwrap(),
            queue: 0,
            limit: 128,
            owner: "app (pid 7)".to_owned(),
        }
    }

    #[test]
    fn few_ports_are_worse_the_fewer_they_are() {
        assert_eq!(severity("port_range", &[]), Severity::Ok);
        assert_eq!(
            severity("port_range", &[(FILE, "30000 49000")]),
            Severity::Notice
        );
        assert_eq!(
            severity("port_range", &[(FILE, "61000 61099")]),
            Severity::Warning
        );
        assert_eq!(
            severity("port_range", &[(FILE, "1000 60999")]),
            Severity::Warning
        );
    }

    #[test]
    fn a_range_that_is_wide_is_not_made_narrower() {
        let mend = |range| {
            find("port_range", &[(FILE, range)], &Traffic::default())
                .remove(0)
                .mend
        };
        let reserved = (RESERVED_FILE, "10100-65000");
        let few = find(
            "port_range",
            &[(FILE, "10000 65535"), reserved],
            &Traffic::default(),
        );
        assert_eq!((few[0].severity, &few[0].mend), (Severity::Warning, &None));
        let command = "sysctl -w net.ipv4.ip_local_port_range=\"16384 65535\"";
        assert_eq!(mend("1000 65535").as_deref(), Some(command));
    }

    #[test]
    fn reserving_most_ports_is_told() {
        assert_eq!(severity("reserved_ports", &[]), Severity::Ok);
        let files = [(RESERVED_FILE, "33000-60000")];
        assert_eq!(severity("reserved_ports", &files), Severity::Warning);
    }

    #[test]
    fn a_listener_in_the_range_is_told_with_all_that_is_reserved() {
        let traffic = Traffic {
            listeners: ["0.0.0.0:22", "0.0.0.0:40000", "0.0.0.0:45000", "[::]:45000"]
                .map(listener)
                .to_vec(),
            ..Traffic::default()
        };
        let found = find("listener_in_range", &[], &traffic);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].severity, Severity::Notice);
        assert_eq!(
            found[0].what,
            "listeners on source ports: 45000 (app (pid 7))"
        );
        let command = "sysctl -w net.ipv4.ip_local_reserved_ports=40000,50000-50001,45000";
        assert_eq!(found[0].mend.as_deref(), Some(command));
        assert!(find("listener_in_range", &[], &Traffic::default()).is_empty());
        let range = find("port_range", &[(FILE, "61000 61099")], &traffic);
        let command = "sysctl -w net.ipv4.ip_local_reserved_ports=40000,50000-50001,45000 \
                       net.ipv4.ip_local_port_range=\"16384 65535\"";
        assert_eq!(range[0].mend.as_deref(), Some(command));
    }
}
