//! A slave for whose master no local port is left (errno 99): it says who has them, loses nothing,
//! and goes on when one is free.

use std::net::TcpStream;
use std::time::Duration;

use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Namespace, Slave, wait_until};
use socket2::SockRef;

#[test]
fn who_has_the_ports_is_told_and_nothing_is_lost() {
    let name = "the exhaustion of local ports";
    let Some(namespace) = Namespace::new_or_skip_loudly(name) else {
        return;
    };
    namespace.run(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut master = Master::new(folder.path(), "master");
        // Whoever says no Hello stays until it was looked at.
        master.config.set("session.hello_timeout", "1m");
        master.start();
        // The master's own ports lie elsewhere.
        namespace.set("net.ipv4.ip_local_port_range", "20000 20005");
        namespace.set("net.ipv4.ip_local_reserved_ports", "20002-20003");
        let taken: Vec<_> = (0..4)
            .map(|_| TcpStream::connect(master.address()).expect("a port that is left"))
            .collect();
        let mut slave = Slave::new(folder.path(), "crowded", &[master.address()], "200ms");
        slave.start();
        let line = slave.wait_for_event("ports_exhausted");
        let wanted = [
            ("errno", 99),
            ("usable", 4),
            ("reserved", 2),
            ("left", 0),
            ("established", 4),
            ("time_wait", 0),
            ("most", 4),
            ("holder_pid", u64::from(std::process::id())),
        ];
        for (field, figure) in wanted {
            assert_eq!(line.number(field), Some(figure), "{field}: {line:?}");
        }
        assert_eq!(line.text("range"), "20000-20005");
        assert_eq!(line.text("peer"), master.address().to_string());
        let message = line.text("message");
        for part in [
            "all 4 local ports (20000-20005 less 2 reserved) for connections to ",
            "are taken: 4 established, 0 in TIME_WAIT; 4 are open by pid ",
            "stay in the spool",
        ] {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
        // An end that leaves no TIME_WAIT: the ports are free at once.
        for stream in &taken {
            let abort = Some(Duration::ZERO);
            SockRef::from(stream).set_linger(abort).expect("a socket");
        }
        drop(taken);
        let row = wait_until(PATIENCE, "the slave on the roll", || {
            master.api().slave("crowded").ok()
        });
        assert_eq!(row.row.gaps, 0);
        slave.terminate();
        master.terminate();
    });
}
