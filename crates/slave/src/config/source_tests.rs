use rollcall_os::diag::ports::PortRange;

use super::tests::load;

/// The keys and messages of the faults of `[connection]` with these lines.
fn faults(lines: &str) -> Vec<(String, String)> {
    let text = format!("[tls]\nmode = \"off\"\n[connection]\n{lines}\n");
    match load(&text, "host") {
        Ok(_) => Vec::new(),
        Err(error) => error
            .faults()
            .iter()
            .map(|fault| (fault.key.clone(), fault.message.clone()))
            .collect(),
    }
}

#[track_caller]
fn has_fault(lines: &str, key: &str, word: &str) {
    let found = faults(lines);
    let fits = |(at, message): &(String, String)| at == key && message.contains(word);
    assert!(
        found.len() == 1 && found.iter().all(fits),
        "{lines}: {found:#?}"
    );
}

#[test]
fn sources_are_resolved() {
    let text = "[connection]\nsource_addresses = [\"127.0.0.2\", \"127.0.0.3\"]\nsource_ports = \"40000-41000\"\ninterface = \"lo\"\nidle_timeout = \"5m\"\n";
    let link = load(text, "host").unwrap().link;
    assert_eq!(link.outgoing.source_addresses.len(), 2);
    let range = PortRange {
        first: 40_000,
        last: 41_000,
    };
    assert_eq!(link.outgoing.source_ports, Some(range));
    assert_eq!(link.outgoing.interface.as_deref(), Some("lo"));
    assert_eq!(link.idle_timeout, Some(std::time::Duration::from_secs(300)));
    assert_eq!(link.lifetime_max, None);
}

#[test]
fn a_range_of_ports_is_checked() {
    has_fault(
        "source_ports = \"41000-40000\"",
        "connection.source_ports",
        "the lower one first",
    );
    has_fault(
        "source_ports = \"0-10\"",
        "connection.source_ports",
        "1 or more",
    );
    has_fault(
        "source_ports = \"40000-41000\"\nprivileged_source_port = true",
        "connection.source_ports",
        "contradict",
    );
}

#[test]
fn source_addresses_are_checked() {
    let key = "connection.source_addresses[0]";
    has_fault("source_addresses = [\"here\"]", key, "is no address");
    has_fault(
        "source_addresses = [\"0.0.0.0\"]",
        key,
        "no address to send from",
    );
    has_fault(
        "masters = [\"master.example:7412\"]\nsource_addresses = [\"fe80::5\"]",
        key,
        "%eth0",
    );
    has_fault(
        "masters = [\"10.0.0.1:7412\"]\nsource_addresses = [\"127.0.0.1\", \"10.0.0.2\"]",
        key,
        "no master can be reached",
    );
    has_fault(
        "masters = [\"master.example:7412\"]\nsource_addresses = [\"10.0.0.2\", \"10.0.0.2\"]",
        "connection.source_addresses[1]",
        "listed twice",
    );
}

#[test]
fn each_master_has_a_source() {
    has_fault(
        "masters = [\"10.0.0.1:7412\", \"[2001:db8::1]:7412\"]\nsource_addresses = [\"10.0.0.2\"]",
        "connection.masters[1]",
        "its family",
    );
    let both = "masters = [\"10.0.0.1:7412\", \"[2001:db8::1]:7412\"]\nsource_addresses = [\"10.0.0.2\", \"2001:db8::2\"]";
    assert_eq!(faults(both), []);
    // What a name stands for shows later.
    let name = "masters = [\"master.example:7412\"]\nsource_addresses = [\"10.0.0.2\"]";
    assert_eq!(faults(name), []);
}

#[test]
fn a_link_local_master_needs_its_interface() {
    has_fault(
        "masters = [\"[fe80::1]:7412\"]",
        "connection.masters[0]",
        "name its interface",
    );
    assert_eq!(faults("masters = [\"[fe80::1%eth0]:7412\"]"), []);
    assert_eq!(
        faults("masters = [\"[fe80::1]:7412\"]\ninterface = \"eth0\""),
        []
    );
    has_fault("interface = \"a/b\"", "connection.interface", "ip link");
}

#[test]
fn spans_can_be_off_and_have_a_range() {
    let link = load("[connection]\nlifetime_max = \"12h\"\n", "host")
        .unwrap()
        .link;
    assert_eq!(
        link.lifetime_max,
        Some(std::time::Duration::from_secs(43_200))
    );
    has_fault(
        "idle_timeout = \"10ms\"",
        "connection.idle_timeout",
        "\"off\"",
    );
    has_fault(
        "lifetime_max = \"31d\"",
        "connection.lifetime_max",
        "\"off\"",
    );
}
