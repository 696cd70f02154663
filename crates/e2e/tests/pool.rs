//! The slave's connections over time: where they go, how long they last, and how dead ones are
//! found.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rollcall_e2e::binaries;
use rollcall_e2e::relay::Relay;
use rollcall_e2e::site::{FAR, INTERFACE, NAME, NEAR};
use rollcall_e2e::wait::{PATIENCE, poll_until, watch_for};
use rollcall_e2e::{Daemon, LogLine, Master, Site, Slave, wait_until};
use rollcall_os::diag::sockets::{self, Filter, States, TcpState};
use rollcall_protocol::api::{Mode, SlaveRow};
use socket2::SockRef;
use toml::Table;

const PORT: u16 = 7412;
/// Where the first master listens, and the second.
const MASTERS: [&str; 2] = ["10.77.0.1:7412", "10.77.0.1:7512"];

fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// A site with its first master.
fn site(name: &str) -> Option<(Site, Master)> {
    let site = Site::new_or_skip_loudly(name)?;
    let mut master = site.master("first", PORT);
    site.start_master(&mut master);
    Some((site, master))
}

fn masters_of_sessions(slave: &Daemon) -> Vec<String> {
    let opened = slave.log().events("session_opened");
    opened
        .iter()
        .map(|line| line.text("master").to_owned())
        .collect()
}

/// A number of reports more than now, each applied once.
#[track_caller]
fn nothing_is_missing(site: &Site, master: &Master, more: u64) -> SlaveRow {
    let before = site.wait_for_row(master, "there", |_| true);
    let row = site.wait_for_row(master, "reporting", |row| {
        row.sequence >= before.sequence + more
    });
    assert_eq!((row.gaps, row.applied), (0, row.sequence), "{row:#?}");
    row
}

fn presences(site: &Site, master: &Master) -> Vec<String> {
    site.far
        .run(|| master.api().presences(NAME))
        .expect("events")
}

#[test]
fn the_next_master_takes_over_and_the_first_gets_it_back_once_it_is_there() {
    let name = "the_next_master_takes_over_and_the_first_gets_it_back_once_it_is_there";
    let Some((site, mut first)) = site(name) else {
        return;
    };
    let mut second = site.master("second", 7512);
    site.start_master(&mut second);
    let mut slave = site.slave(&MASTERS);
    slave.config.set("connection.return_after", "1s");
    site.start_slave(&mut slave);
    slave.wait_for_event("session_opened");
    first.kill_and_wait();
    slave.wait_for_events("session_opened", 2);
    let before = site.wait_for_row(&second, "there", |row| row.sequence > 0);
    // The first one is looked for again and again meanwhile, and the session goes on.
    let left = watch_for(Duration::from_secs(4), || {
        (masters_of_sessions(&slave).len() > 2).then_some(())
    });
    assert!(left.is_none(), "{:?}", masters_of_sessions(&slave));
    let row = site.wait_for_row(&second, "reporting", |row| {
        row.sequence > before.sequence + 20
    });
    assert_eq!(row.connected_since_ms, before.connected_since_ms);
    site.start_master(&mut first);
    slave.wait_for_events("session_opened", 3);
    let [a, b] = MASTERS;
    assert_eq!(masters_of_sessions(&slave), [a, b, a]);
    // What the second one has acked is not sent again: the first is told of the gap.
    let row = site.wait_for_row(&first, "reporting", |row| {
        row.sequence > before.sequence + 30
    });
    assert_eq!(row.duplicates, 0, "{row:#?}");
}

#[test]
fn a_connection_is_made_anew_when_it_is_old_and_nobody_notices() {
    let name = "a_connection_is_made_anew_when_it_is_old_and_nobody_notices";
    let Some((site, master)) = site(name) else {
        return;
    };
    let mut slave = site.slave(&MASTERS[..1]);
    slave.config.set("connection.lifetime_max", "1s");
    site.start_slave(&mut slave);
    slave.wait_for_events("session_opened", 5);
    let row = nothing_is_missing(&site, &master, 5);
    assert!(row.reconnects >= 4, "{row:#?}");
    assert_eq!(row.duplicates, 0, "{row:#?}");
    assert_eq!(presences(&site, &master), ["up"]);
}

#[test]
fn an_idle_connection_is_closed_and_the_slave_stays_up() {
    let name = "an_idle_connection_is_closed_and_the_slave_stays_up";
    let Some((site, master)) = site(name) else {
        return;
    };
    let mut slave = site.slave(&MASTERS[..1]);
    slave
        .config
        .set("interval", "2s")
        .set("connection.idle_timeout", "1s");
    site.start_slave(&mut slave);
    site.wait_for_row(&master, "without a connection", |row| {
        row.sequence > 0 && row.connected_since_ms.is_none()
    });
    slave.wait_for_events("session_opened", 3);
    nothing_is_missing(&site, &master, 1);
    assert_eq!(presences(&site, &master), ["up"]);
}

/// Starts a slave of the master "two.example", with a resolver of its own that knows `hosts`.
fn start_with_hosts(site: &Site, slave: &Slave, hosts: &Path) -> Daemon {
    let file = slave.config_file();
    slave.config.write(&file);
    let command = format!(
        "mount --bind {} /etc/hosts && exec {} --config {} --log-format json",
        hosts.display(),
        binaries::path(binaries::SLAVE).display(),
        file.display()
    );
    let words = ["--mount", "sh", "-c", &command];
    site.spawn_near("slave", Path::new("unshare"), &words)
}

/// A name with a dead IPv6 and a good IPv4 address.
#[test]
fn a_dead_first_address_costs_a_moment() {
    let name = "a_dead_first_address_costs_a_moment";
    let Some((site, master)) = site(name) else {
        return;
    };
    let hosts = site.folder().join("hosts");
    let both = format!("fd00:77::99 two.example\n{FAR} two.example\n");
    fs::write(&hosts, both).expect("a file");
    let mut slave = site.slave(&["two.example:7412"]);
    slave.config.set("connection.connect_timeout", "1m");
    // The kernel asks for the dead neighbour once a second, and finds it dead after a minute: nobody
    // waits here for so long.
    site.near
        .set(&format!("net.ipv6.neigh.{INTERFACE}.mcast_solicit"), "60");
    let mut slave = start_with_hosts(&site, &slave, &hosts);
    let opened = slave.wait_for_event("session_opened");
    assert_eq!(opened.text("peer"), format!("{FAR}:{PORT}"));
    let neighbours = site.near.run(|| {
        let mut ip = Command::new("ip");
        ip.args(["-6", "neighbour", "show", "dev", INTERFACE])
            .output()
    });
    let neighbours = String::from_utf8(neighbours.expect("ip").stdout).expect("text");
    assert!(
        neighbours.contains("fd00:77::99"),
        "not tried: {neighbours}"
    );
    site.wait_for_row(&master, "reporting", |row| row.sequence > 3);
}

#[test]
fn a_name_is_looked_up_for_each_connection() {
    let name = "a_name_is_looked_up_for_each_connection";
    let Some((site, master)) = site(name) else {
        return;
    };
    site.far
        .ip(&format!("address add 10.77.0.5/24 dev {INTERFACE}"));
    let hosts = site.folder().join("hosts");
    fs::write(&hosts, format!("{FAR} two.example\n")).expect("a file");
    let mut slave = site.slave(&["two.example:7412"]);
    slave.config.set("connection.lifetime_max", "1s");
    let mut slave = start_with_hosts(&site, &slave, &hosts);
    let opened = slave.wait_for_event("session_opened");
    assert_eq!(opened.text("peer"), format!("{FAR}:{PORT}"));
    // In its place: the slave sees the file, not its name.
    fs::write(&hosts, "10.77.0.5 two.example\n").expect("a file");
    wait_until(PATIENCE, "a session with the new address", || {
        let opened = slave.log().events("session_opened");
        let is_new = |line: &LogLine| line.text("peer") == "10.77.0.5:7412";
        opened.iter().any(is_new).then_some(())
    });
    nothing_is_missing(&site, &master, 5);
}

/// Lets the master's answers go nowhere, and waits for the slave to notice: sooner than it would by any
/// of the defaults.
fn cut(site: &Site, slave: &mut Slave) {
    site.far.ip(&format!("route add blackhole {NEAR}/32"));
    let lost = slave.wait_for_event("session_lost");
    assert!(lost.text("error").contains("timed out"), "{lost:?}");
    site.far.ip(&format!("route del blackhole {NEAR}/32"));
    slave.wait_for_events("session_opened", 2);
}

#[test]
fn a_half_open_connection_is_found_while_idle() {
    let name = "a_half_open_connection_is_found_while_idle";
    let Some((site, master)) = site(name) else {
        return;
    };
    let mut slave = site.slave(&MASTERS[..1]);
    slave
        .config
        .set("interval", "1h")
        .set("connection.keepalive_idle", "2s")
        .set("connection.keepalive_interval", "1s")
        .set("connection.user_timeout", "3s");
    site.start_slave(&mut slave);
    site.wait_for_row(&master, "idle", |row| row.sequence == 1);
    cut(&site, &mut slave);
}

#[test]
fn a_half_open_connection_is_found_with_data_in_flight() {
    let name = "a_half_open_connection_is_found_with_data_in_flight";
    let Some((site, master)) = site(name) else {
        return;
    };
    let mut slave = site.slave(&MASTERS[..1]);
    slave
        .config
        .set("connection.keepalive_idle", "1m")
        .set("connection.user_timeout", "2s");
    site.start_slave(&mut slave);
    site.wait_for_row(&master, "reporting", |row| row.sequence > 3);
    cut(&site, &mut slave);
    nothing_is_missing(&site, &master, 10);
}

/// Where a dead master's kernel still answers, only the missing ack tells.
#[test]
fn a_master_that_hangs_is_left_for_the_next() {
    let name = "a_master_that_hangs_is_left_for_the_next";
    let Some((site, first)) = site(name) else {
        return;
    };
    let mut second = site.master("second", 7512);
    site.start_master(&mut second);
    let mut slave = site.slave(&MASTERS);
    slave
        .config
        .set("connection.ack_timeout", "4s")
        .set("connection.welcome_timeout", "4s");
    site.start_slave(&mut slave);
    site.wait_for_row(&first, "reporting", |row| row.sequence > 3);
    first.signal(rustix::process::Signal::STOP);
    site.wait_for_row(&second, "reporting", |row| row.sequence > 10);
    let lost = slave.wait_for_event("session_lost");
    assert!(lost.text("error").contains("did not ack"), "{lost:?}");
    first.signal(rustix::process::Signal::CONT);
}

/// What `--check` prints is the file that it stands for, with the budget as a comment.
#[test]
fn check_tells_the_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut slave = Slave::new(folder.path(), "web-1", &[], "10s");
    slave
        .config
        .set("connection.masters", ["127.0.0.1:7412"].to_vec())
        .set("connection.mode", "per-message")
        .set("connection.source_ports", "40000-40099");
    slave.config.write(&slave.config_file());
    let output = Command::new(binaries::path(binaries::SLAVE))
        .args(["--check", "--config"])
        .arg(slave.config_file())
        .output()
        .expect("the slave");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text.lines().find(|line| line.starts_with("# Per-message"));
    let line = line.unwrap_or_else(|| panic!("no budget: {text}"));
    assert!(
        line.contains("40000-40099") && line.contains("at most 90"),
        "{line}"
    );
    let table: Table = text.parse().expect("TOML");
    let pool = table["connection"]["on_exhaustion"].as_str();
    assert_eq!(pool, Some("pool"));
}

/// Sockets of the slave's host that are connected to the port, in one of these states.
fn sockets(site: &Site, port: u16, states: States) -> usize {
    let filter = Filter {
        states,
        remote_port: Some(port),
        ..Filter::default()
    };
    let found = site.near.run(|| sockets::tcp(&filter));
    found.expect("the sockets").len()
}

/// Something in between keeps the master's close back, so each message leaves a TIME_WAIT on the
/// slave's side; with 100 ports it keeps to its budget of 90, goes on over one connection, and comes
/// back when ports are free, about a minute later.
#[test]
fn the_budget_of_ports_is_kept_and_what_is_more_goes_over_one_connection() {
    let name = "the_budget_of_ports_is_kept_and_what_is_more_goes_over_one_connection";
    let Some(site) = Site::new_or_skip_loudly(name) else {
        return;
    };
    let mut master = site.master("first", PORT);
    // The interval is short, and a message to such a peer takes up to 0.25 s.
    master
        .config
        .set("presence.late_after", 500.0)
        .set("presence.missing_after", 1000.0);
    site.start_master(&mut master);
    site.near.set("net.ipv4.ip_local_port_range", "40000 40099");
    let start = || Relay::start(address(FAR, 7413), address("127.0.0.1", PORT));
    let relay = site.far.run(start).expect("a relay");
    let mut slave = site.slave(&["10.77.0.1:7413"]);
    slave
        .config
        .set("interval", "20ms")
        .set("connection.mode", "per-message");
    site.start_slave(&mut slave);
    let used_up = poll_until(Duration::from_secs(60), || {
        slave.log().events("port_budget_used_up").pop()
    });
    let used_up = used_up.expect("the budget is used up within a minute");
    assert_eq!(used_up.number("budget"), Some(90));
    assert!(used_up.number("time_wait") > Some(60), "{used_up:?}");
    // One more, the pooled one, and it stays.
    let row = site.wait_for_row(&master, "pooled", |row| row.mode == Mode::Pooled);
    let so_far = relay.connections();
    let mut most = 0;
    let back = poll_until(Duration::from_secs(90), || {
        most = most.max(sockets(&site, 7413, States::default()));
        let free = slave.log().events("port_budget_free");
        if free.is_empty() {
            assert!(
                relay.connections() <= so_far + 1,
                "it keeps to one connection"
            );
        }
        free.first().cloned()
    });
    let back = back.expect("the ports are free again within 90 s");
    assert!(most <= 92, "{most} ports were in use");
    assert!(back.number("used") <= Some(68), "{back:?}");
    site.wait_for_row(&master, "per message", |row| row.mode == Mode::PerMessage);
    let row = site.wait_for_row(&master, "reporting", |now| {
        now.sequence > row.sequence + 100
    });
    assert_eq!((row.gaps, row.applied), (0, row.sequence), "{row:#?}");
    // The kernel never had to say no.
    assert_eq!(slave.log().events("ports_exhausted"), []);
    assert_eq!(presences(&site, &master), ["up"]);
    let api = master.api();
    let detail = site.far.run(|| api.slave(NAME)).expect("the slave");
    let mut checks = detail.checks.iter();
    let check = checks.find(|check| check.name == "connection");
    let metrics = &check.expect("the check of the ports").metrics;
    let exhaustions = metrics.iter().find(|metric| metric.name == "exhaustions");
    assert!(
        exhaustions.expect("a count").value >= Some(1.0),
        "{metrics:?}"
    );
}

/// Another program has every port: reports wait, the log says who it is, and nothing is lost.
#[test]
fn ports_that_another_program_has_are_waited_for() {
    let name = "ports_that_another_program_has_are_waited_for";
    let Some((site, master)) = site(name) else {
        return;
    };
    site.near.set("net.ipv4.ip_local_port_range", "40000 40019");
    let hog = || {
        let mut held = Vec::new();
        while let Ok(stream) = TcpStream::connect(MASTERS[0]) {
            let linger = Some(Duration::ZERO);
            SockRef::from(&stream).set_linger(linger).expect("a socket");
            held.push(stream);
        }
        held
    };
    let held = site.near.run(hog);
    assert_eq!(held.len(), 20);
    let mut slave = site.slave(&MASTERS[..1]);
    slave.config.set("connection.mode", "per-message");
    site.start_slave(&mut slave);
    let told = slave.wait_for_event("ports_exhausted");
    assert_eq!(told.number("errno"), Some(99));
    assert_eq!(told.number("usable"), Some(20));
    let pid = u64::from(std::process::id());
    assert_eq!(told.number("holder_pid"), Some(pid), "{told:?}");
    slave.wait_for_spooled(3);
    drop(held);
    let row = site.wait_for_row(&master, "reporting", |row| row.sequence > 5);
    assert_eq!((row.gaps, row.applied), (0, row.sequence), "{row:#?}");
    site.wait_for_row(&master, "per message", |row| row.mode == Mode::PerMessage);
    assert_eq!(slave.log().events("ports_exhausted").len(), 1, "told once");
}

/// With `close = "abort"` the same thing in between takes no port from the slave.
#[test]
fn an_abort_takes_no_port_whoever_keeps_the_close_back() {
    let name = "an_abort_takes_no_port_whoever_keeps_the_close_back";
    let Some((site, master)) = site(name) else {
        return;
    };
    let start = || Relay::start(address(FAR, 7413), address("127.0.0.1", PORT));
    let relay = site.far.run(start).expect("a relay");
    let mut slave = site.slave(&["10.77.0.1:7413"]);
    slave
        .config
        .set("interval", "20ms")
        .set("connection.mode", "per-message")
        .set("connection.close", "abort");
    site.start_slave(&mut slave);
    // A slow machine sends more than one report over each.
    wait_until(2 * PATIENCE, "many connections", || {
        (relay.connections() > 50).then_some(())
    });
    let row = site.wait_for_row(&master, "reporting", |row| row.sequence > 100);
    assert_eq!((row.gaps, row.applied), (0, row.sequence), "{row:#?}");
    let left = sockets(
        &site,
        7413,
        States::of(&[TcpState::TimeWait, TcpState::FinWait2]),
    );
    assert_eq!(left, 0);
}
