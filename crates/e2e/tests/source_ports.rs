//! Where a slave's connections come from, as its master sees it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::Path;

use rollcall_e2e::binaries;
use rollcall_e2e::site::{FAR, INTERFACE};
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Site, Slave, wait_until};
use rollcall_protocol::api::SlaveRow;
use rustix::process::Signal;

const PORT: u16 = 7412;
/// The master's address.
const MASTER: &str = "10.77.0.1:7412";

/// A site with a master that runs.
fn site(name: &str) -> Option<(Site, Master)> {
    let site = Site::new_or_skip_loudly(name)?;
    let mut master = site.master("master", PORT);
    site.start_master(&mut master);
    Some((site, master))
}

fn peer(row: &SlaveRow) -> Option<SocketAddr> {
    let peer = row.peer.as_ref()?;
    // "[fe80::2%3]:4": with the number of the interface.
    peer.parse::<SocketAddrV6>()
        .map(SocketAddr::V6)
        .ok()
        .or_else(|| peer.parse().ok())
}

/// Waits until the master has taken something from a peer that `is_as_wanted`.
fn wait_for_peer(
    site: &Site,
    master: &Master,
    what: &str,
    is_as_wanted: impl Fn(SocketAddr) -> bool + Send + Sync,
) -> SocketAddr {
    let fits = |row: &SlaveRow| row.sequence > 0 && peer(row).is_some_and(&is_as_wanted);
    let row = site.wait_for_row(master, what, fits);
    peer(&row).expect("it was there")
}

#[test]
fn source_addresses_take_turns_and_each_message_has_one() {
    let name = "source_addresses_take_turns_and_each_message_has_one";
    let Some((site, master)) = site(name) else {
        return;
    };
    for number in [3, 4] {
        site.near
            .ip(&format!("address add 10.77.0.{number}/24 dev {INTERFACE}"));
    }
    let mut slave = site.slave(&[MASTER]);
    slave.config.set("connection.mode", "per-message").set(
        "connection.source_addresses",
        ["10.77.0.3", "10.77.0.4"].to_vec(),
    );
    site.start_slave(&mut slave);
    let mut seen = BTreeSet::new();
    let api = master.api();
    site.far.run(|| {
        wait_until(PATIENCE, "both source addresses", || {
            let row = api.slave("web-1").ok()?.row;
            seen.extend(peer(&row).map(|peer| peer.ip()));
            (seen.len() >= 2).then_some(())
        });
    });
    let wanted = ["10.77.0.3", "10.77.0.4"].map(|ip| ip.parse::<IpAddr>().expect("an address"));
    assert_eq!(seen, BTreeSet::from(wanted));
}

#[test]
fn ports_come_from_the_range_inside_and_outside_of_the_kernels() {
    let name = "ports_come_from_the_range_inside_and_outside_of_the_kernels";
    let Some((site, master)) = site(name) else {
        return;
    };
    let mut slave = site.slave(&[MASTER]);
    slave.config.set("connection.source_ports", "40000-40009");
    site.start_slave(&mut slave);
    wait_for_peer(&site, &master, "within 40000-40009", |peer| {
        (40_000..=40_009).contains(&peer.port())
    });
    // SIGHUP takes another range; the kernel's own is 32768 to 60999.
    slave.config.set("connection.source_ports", "20000-20009");
    slave.config.write(&slave.config_file());
    slave.signal(Signal::HUP);
    wait_for_peer(&site, &master, "within 20000-20009", |peer| {
        (20_000..=20_009).contains(&peer.port())
    });
}

#[test]
fn a_privileged_port_is_had_with_the_capability_and_told_without() {
    let name = "a_privileged_port_is_had_with_the_capability_and_told_without";
    let Some(site) = Site::new_or_skip_loudly(name) else {
        return;
    };
    let mut master = site.master("master", PORT);
    master
        .config
        .set("listen.addresses", [MASTER].to_vec())
        .set("listen.privileged", [MASTER].to_vec());
    site.start_master(&mut master);
    let mut slave = site.slave(&[MASTER]);
    slave.config.set("connection.privileged_source_port", true);
    let file = slave.config_file();
    slave.config.write(&file);
    let program = binaries::path(binaries::SLAVE);
    let words = [
        "--bounding-set=-net_bind_service",
        "--inh-caps=-net_bind_service",
        &program.to_string_lossy(),
        "--config",
        &file.to_string_lossy(),
        "--log-format=json",
    ];
    let mut powerless = site.spawn_near("powerless", Path::new("setpriv"), &words);
    let told = powerless.wait_for_event("master_unreachable");
    let text = told.text("error");
    assert!(
        text.contains("512-1023") && text.contains("AmbientCapabilities=CAP_NET_BIND_SERVICE"),
        "{text}"
    );
    powerless.terminate();
    site.start_slave(&mut slave);
    wait_for_peer(&site, &master, "from a privileged port", |peer| {
        (512..1024).contains(&peer.port())
    });
}

#[test]
fn the_interface_holds_whatever_the_routes_say() {
    let name = "the_interface_holds_whatever_the_routes_say";
    let Some((site, master)) = site(name) else {
        return;
    };
    let mut slave = site.slave(&[MASTER]);
    let reconfigure = |slave: &mut Slave, interface: &str| {
        slave.config.set("connection.interface", interface);
        slave.config.write(&slave.config_file());
    };
    reconfigure(&mut slave, "none-such");
    site.start_slave(&mut slave);
    let told = slave.wait_for_event("master_unreachable");
    let text = told.text("error");
    assert!(
        text.contains("none-such") && text.contains("no such interface"),
        "{text}"
    );
    // The way to the master does not go over loopback.
    reconfigure(&mut slave, "lo");
    slave.signal(Signal::HUP);
    let told = slave.wait_for_events("master_unreachable", 2).remove(1);
    assert!(told.text("error").contains(FAR), "{told:?}");
    assert_eq!(slave.log().events("session_opened"), []);
    reconfigure(&mut slave, INTERFACE);
    slave.signal(Signal::HUP);
    slave.wait_for_event("session_opened");
    wait_for_peer(&site, &master, "there", |_| true);
}

#[test]
fn ipv6_and_link_local_addresses_with_their_interface() {
    let name = "ipv6_and_link_local_addresses_with_their_interface";
    let Some((site, master)) = site(name) else {
        return;
    };
    let mut slave = site.slave(&["[fd00:77::1]:7412"]);
    slave
        .config
        .set("connection.source_addresses", ["fd00:77::2"].to_vec());
    site.start_slave(&mut slave);
    let here = "fd00:77::2".parse::<IpAddr>().expect("an address");
    wait_for_peer(&site, &master, "over IPv6", |peer| peer.ip() == here);
    // Outside of the kernel's range ports are searched for: with an address and its scope, too.
    let link_local = format!("[fe80::1%{INTERFACE}]:7412");
    slave
        .config
        .set("connection.masters", [link_local.as_str()].to_vec())
        .set(
            "connection.source_addresses",
            [format!("fe80::2%{INTERFACE}")].to_vec(),
        )
        .set("connection.source_ports", "20000-20009");
    slave.config.write(&slave.config_file());
    slave.signal(Signal::HUP);
    let here = "fe80::2".parse::<IpAddr>().expect("an address");
    let port = wait_for_peer(&site, &master, "over the link", |peer| peer.ip() == here).port();
    assert!((20_000..=20_009).contains(&port), "{port}");
}

/// What is not there at the start may come: an address, an interface.
#[test]
fn a_source_address_that_comes_later_is_used_then() {
    let name = "a_source_address_that_comes_later_is_used_then";
    let Some((site, master)) = site(name) else {
        return;
    };
    let mut slave = site.slave(&[MASTER]);
    slave
        .config
        .set("connection.source_addresses", ["10.77.0.9"].to_vec());
    site.start_slave(&mut slave);
    let told = slave.wait_for_event("master_unreachable");
    let text = told.text("error");
    assert!(
        text.contains("no address 10.77.0.9") && text.contains("ip address"),
        "{text}"
    );
    site.near
        .ip(&format!("address add 10.77.0.9/24 dev {INTERFACE}"));
    slave.wait_for_event("session_opened");
    wait_for_peer(&site, &master, "from 10.77.0.9", |peer| {
        peer.ip().to_string() == "10.77.0.9"
    });
}
