//! Datagram mode with the real daemons: what a network does to datagrams, what a master must not do
//! for strangers, and what does not fit.

mod audit;
mod fleet;
mod paths;
mod relay;
mod strangers;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Slave, wait_until};
use rollcall_protocol::api::{Mode, Presence};

use audit::{Streams, assert_no_conflict};
use relay::{Faults, Relay};

/// A master that takes datagrams on the port on which it listens.
fn master(folder: &Path) -> Master {
    loop {
        let mut master = Master::new(folder, "master");
        // The port is reserved for TCP only.
        if UdpSocket::bind(master.address()).is_err() {
            continue;
        }
        let address = master.address().to_string();
        master.config.set("listen.datagram", vec![address]);
        return master;
    }
}

/// One that has started and takes nobody for late.
fn patient_master(folder: &Path) -> Master {
    let mut master = master(folder);
    master
        .config
        .set("presence.late_after", 500.0)
        .set("presence.missing_after", 1000.0);
    master.start();
    master
}

/// A slave in datagram mode with small reports.
fn slave(folder: &Path, name: &str, master: SocketAddr, interval: &str) -> Slave {
    let mut slave = Slave::new(folder, name, &[master], interval);
    for probe in [
        "cpu",
        "disk",
        "memory",
        "network",
        "processes",
        "swap",
        "systemd",
        "uptime",
    ] {
        slave.config.set(&format!("probe.{probe}.enable"), false);
    }
    slave
        .config
        .set("connection.mode", "datagram")
        .set("connection.resend_first", "50ms")
        .set("connection.resend_longest", "500ms");
    slave
}

#[test]
fn reports_survive_kills_of_both_daemons() {
    let folder = tempfile::tempdir().expect("a folder");
    // A start of the slave takes longer than some of its intervals.
    let mut master = patient_master(folder.path());
    let mut slave = slave(folder.path(), "web-1", master.address(), "50ms");
    slave.start();
    let first = master.wait_for_row("web-1", "up", |row| row.sequence >= 5);
    assert_eq!((first.mode, first.duplicates), (Mode::Datagram, 0));
    let is_measured = first.clock_offset_ms.map(|ms| ms.abs() < 20_000);
    assert_eq!(is_measured, Some(true), "{first:#?}");
    let mut streams = Streams::default();
    for _ in 0..3 {
        let before = master.wait_for_row("web-1", "reporting", |row| {
            row.presence == Presence::Up && row.sequence >= 5
        });
        master.kill_and_wait();
        slave.wait_for_spooled(8);
        slave.kill_and_wait();
        streams.killed(folder.path(), &slave);
        slave.start();
        slave.wait_for_event("slave_ready");
        master.start();
        master.wait_for_row("web-1", "back", |row| {
            row.stream != before.stream && row.sequence >= 5
        });
    }
    assert!(streams.count() >= 3 * 13, "{streams:?}");
    streams.check(&master, &mut slave);
    assert_no_conflict(&master);
    let connections = master.api().metric("rollcall_connections_accepted_total");
    assert_eq!(
        connections.expect("a metric"),
        0.0,
        "no connection was made"
    );
    // Nobody is blamed for the outages.
    master.wait_for_presences("web-1", &["up", "left"]);
}

/// Up to two seconds late, and a restart of the slave in between: late copies of its predecessor's
/// last words are among them.
#[test]
fn a_network_that_loses_doubles_and_reorders_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    // What the network does to a slave is no absence.
    let mut master = patient_master(folder.path());
    let faults = Faults {
        lost: 20,
        doubled: 20,
        late: 20,
        late_by: Duration::from_secs(4),
    };
    let relay = Relay::start(master.address(), faults, 17);
    let mut slave = slave(folder.path(), "web-1", relay.address(), "50ms");
    // A goodbye may get lost a few times.
    slave.config.set("shutdown.drain", "20s");
    let mut streams = Streams::default();
    let reporting = |master: &Master, streams: &Streams| {
        master.wait_for_row("web-1", "reporting", |row| {
            row.sequence >= 40 && !streams.contain(&row.stream)
        })
    };
    for _ in 0..2 {
        slave.start();
        reporting(&master, &streams);
        streams.stopped(&master, &mut slave);
        wait_until(PATIENCE, "the end of the slave to be told", || {
            let presences = master.api().presences("web-1").ok()?;
            (presences.last()? == "left").then_some(())
        });
    }
    slave.start();
    reporting(&master, &streams);
    relay.cut(true);
    slave.wait_for_spooled(5);
    slave.kill_and_wait();
    streams.killed(folder.path(), &slave);
    relay.cut(false);
    slave.start();
    slave.wait_for_event("session_opened");
    master.kill_and_wait();
    master.start();
    reporting(&master, &streams);
    streams.check(&master, &mut slave);
    assert_no_conflict(&master);
    master.wait_for_presences("web-1", &["up", "left", "up", "left", "up", "left"]);
    let counts = relay.counts();
    for (what, count) in [
        ("passed", &counts.passed),
        ("lost", &counts.lost),
        ("doubled", &counts.doubled),
        ("late", &counts.late),
    ] {
        let count = count.load(Ordering::Relaxed);
        assert!(count >= 20, "{count} datagrams were {what}");
    }
}

/// A backlog goes out several reports at a time.
#[test]
fn a_backlog_drains_many_reports_to_a_datagram() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = master(folder.path());
    let mut slave = slave(folder.path(), "web-1", master.address(), "20ms");
    slave.start();
    slave.wait_for_spooled(200);
    slave.kill_and_wait();
    let mut streams = Streams::default();
    streams.killed(folder.path(), &slave);
    master.start();
    // What takes its time is not asked for again, which would be a datagram more.
    slave
        .config
        .set("interval", "5s")
        .set("connection.resend_first", "5s")
        .set("connection.resend_longest", "5s");
    slave.start();
    let all = streams.count();
    master.wait_for_row("web-1", "caught up", |row| row.applied > all);
    let received = master.api().metric("rollcall_datagrams_received_total");
    let received = received.expect("a metric");
    let most = f64::from(u32::try_from(all).expect("few")) / 5.0;
    assert!(received < most, "{all} reports in {received} datagrams");
    streams.check(&master, &mut slave);
}

/// A copy of a running slave's state folder: one of both is refused, by name.
#[test]
fn a_copy_of_a_slave_is_found_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = master(folder.path());
    master.start();
    let mut first = slave(folder.path(), "web-1", master.address(), "100ms");
    first.start();
    master.wait_for_row("web-1", "up", |row| row.sequence >= 3);
    assert!(first.terminate().success());
    let copied = folder.path().join("copy-state");
    std::fs::create_dir(&copied).expect("a folder");
    let state = folder.path().join("web-1-state");
    for file in std::fs::read_dir(&state).expect("a folder") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), copied.join(file.file_name())).expect("a copy");
    }
    first.start();
    master.wait_for_row("web-1", "up", |row| row.presence == Presence::Up);
    let mut copy = slave(folder.path(), "copy", master.address(), "100ms");
    copy.config.set("name", "web-1");
    copy.start();
    // Whichever of them is the second one.
    wait_until(PATIENCE, "one of them to be refused", || {
        let refused = [first.log(), copy.log()].map(|log| log.events("session_refused"));
        let refused = refused.into_iter().flatten().next()?;
        assert_eq!(
            refused.text("code"),
            "ERROR_CODE_ID_CONFLICT",
            "{refused:?}"
        );
        assert!(refused.text("error").contains("--new-identity"));
        Some(())
    });
    master.wait_for_event("slave_conflict");
}

/// The first master is silent, without a word from the kernel: the next one is asked.
#[test]
fn a_silent_master_is_passed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = master(folder.path());
    master.start();
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    let silent_address = silent.local_addr().expect("an address");
    let mut slave = slave(folder.path(), "web-1", silent_address, "100ms");
    let masters = [silent_address, master.address()].map(|address| address.to_string());
    slave
        .config
        .set("connection.masters", masters.to_vec())
        .set("connection.welcome_timeout", "5s");
    slave.start();
    let lost = slave.wait_for_event("session_lost");
    assert_eq!(lost.text("master"), silent_address.to_string());
    master.wait_for_row("web-1", "up", |row| row.sequence >= 3);
    // It was asked more than once, the same every time.
    let mut buffer = [0; 2048];
    let questions: Vec<Vec<u8>> = std::iter::repeat_with(|| {
        silent.set_nonblocking(true).ok()?;
        let length = silent.recv(&mut buffer).ok()?;
        Some(buffer[..length].to_vec())
    })
    .map_while(|question| question)
    .collect();
    assert!(questions.len() >= 3, "{}", questions.len());
    assert_eq!(questions[0], questions[1]);
    assert!(slave.terminate().success());
}
