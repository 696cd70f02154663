//! What does not fit the path, in network namespaces of the test's own.

use rollcall_e2e::{Master, Namespace, Slave};
use rollcall_protocol::api::{Mode, Presence};

use super::{master, slave};

/// A report of some 4 KB.
fn add_large_checks(slave: &mut Slave) {
    for number in 0..8 {
        let script = format!("printf '%0500d' {number}");
        slave.add_check(
            &format!("large-{number}"),
            &["/bin/sh", "-c", &script],
            "1s",
        );
    }
}

fn connections(master: &Master) -> f64 {
    let accepted = master.api().metric("rollcall_connections_accepted_total");
    accepted.expect("a metric")
}

#[test]
fn a_report_that_does_not_fit_goes_over_tcp() {
    let test = "a report that does not fit into a datagram";
    let Some(namespace) = Namespace::new_or_skip_loudly(test) else {
        return;
    };
    namespace.ip("link set lo mtu 1500");
    namespace.run(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut master = master(folder.path());
        master.start();
        let mut slave = slave(folder.path(), "web-1", master.address(), "200ms");
        slave.start();
        master.wait_for_row("web-1", "up", |row| row.sequence >= 5);
        assert_eq!(connections(&master), 0.0);
        let small = master.wait_for_row("web-1", "up", |_| true);
        assert!(slave.terminate().success());
        add_large_checks(&mut slave);
        slave.start();
        let before = master.wait_for_row("web-1", "back", |row| {
            row.presence == Presence::Up && row.stream != small.stream
        });
        let row = master.wait_for_row("web-1", "reporting", |row| {
            row.stream == before.stream && row.sequence >= before.sequence + 5
        });
        assert_eq!(row.mode, Mode::Datagram, "it is one all the same");
        assert_eq!((row.duplicates, row.gaps), (0, 0));
        assert!(connections(&master) >= 5.0);
        assert!(slave.terminate().success());
        let told = slave.log().events("datagram_too_large");
        assert_eq!(told.len(), 1, "once: {told:#?}");
        let detail = master.api().slave("web-1").expect("a row");
        let text = |name: &str| {
            let check = detail.checks.iter().find(|check| check.name == name);
            check.map(|check| check.text.len())
        };
        assert_eq!(text("large-7"), Some(500), "{detail:#?}");
    });
}

/// Two hosts with one router between them, whose cable to the master has an MTU of 700.
struct Routed {
    host: Namespace,
    router: Namespace,
    far: Namespace,
}

impl Routed {
    fn new_or_skip_loudly(test: &str) -> Option<Self> {
        let host = Namespace::new_or_skip_loudly(test)?;
        let router = Namespace::new_or_skip_loudly(test)?;
        let far = Namespace::new_or_skip_loudly(test)?;
        router.connect(&host, "10.1.0.1/24", "10.1.0.2/24");
        // The next cable has the same name.
        router.ip("link set rollcall0 down");
        router.ip("link set rollcall0 name near0");
        router.ip("link set near0 up");
        router.connect(&far, "10.2.0.1/24", "10.2.0.2/24");
        router.set("net.ipv4.ip_forward", "1");
        host.ip("route add default via 10.1.0.1");
        far.ip("route add default via 10.2.0.1");
        router.ip("link set rollcall0 mtu 700");
        far.ip("link set rollcall0 mtu 700");
        Some(Self { host, router, far })
    }

    /// A slave with a backlog for many datagrams, and what it takes for the master to have it.
    fn deliver_backlog(&self) -> (Slave, Master, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let mut master = Master::new(folder.path(), "master");
        master
            .config
            .set("listen.addresses", vec!["10.2.0.2:7412"])
            .set("listen.datagram", vec!["10.2.0.2:7412"])
            .set("tls.mode", "off");
        let address = "10.2.0.2:7412".parse().expect("an address");
        let mut slave = slave(folder.path(), "web-1", address, "50ms");
        slave.config.set("tls.mode", "off");
        self.host.run(|| {
            slave.start();
            slave.wait_for_spooled(40);
        });
        self.far.run(|| {
            master.start();
            master.wait_for_row("web-1", "caught up", |row| row.applied >= 60);
        });
        (slave, master, folder)
    }
}

/// The router says that a datagram is too large, and the slave asks with smaller ones.
#[test]
fn a_narrow_path_is_kept_to() {
    let Some(path) = Routed::new_or_skip_loudly("a narrow path") else {
        return;
    };
    let (mut slave, master, _folder) = path.deliver_backlog();
    path.far.run(|| assert_eq!(connections(&master), 0.0));
    assert!(slave.terminate().success());
    path.far.run(|| {
        let row = master.wait_for_row("web-1", "gone", |row| row.presence == Presence::Left);
        assert_eq!((row.applied, row.gaps), (row.sequence, 0));
    });
}

/// The router drops what is too large and is silent about it. So it may take a while, and what fits
/// nowhere goes over TCP.
#[test]
fn a_path_that_swallows_large_datagrams_is_found_out() {
    let Some(path) = Routed::new_or_skip_loudly("a path that swallows large datagrams") else {
        return;
    };
    // The far end drops what is larger than its own MTU, and the router does not know of it.
    path.router.ip("link set rollcall0 mtu 1500");
    path.far.ip("link set rollcall0 mtu 1300");
    let (mut slave, master, _folder) = path.deliver_backlog();
    path.far.run(|| assert_eq!(connections(&master), 0.0));
    assert!(slave.terminate().success());
    path.far.run(|| {
        let row = master.wait_for_row("web-1", "gone", |row| row.presence == Presence::Left);
        assert_eq!((row.applied, row.gaps), (row.sequence, 0));
    });
}
