//! Per-message mode and the local ports: a connection for each report, as fast as it goes, runs out
//! of none, because the master closes first.
//!
//! `ROLLCALL_REPORTS` is how many reports each of the two long runs sends (60,000, which is twice the
//! number of ports that there are; 1,000,000 for the full length).

use std::env;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rollcall_e2e::bench::{Bench, Outcome};
use rollcall_e2e::relay::Relay;
use rollcall_e2e::site::{FAR, Site};
use rollcall_e2e::{Master, Namespace, binaries};
use serde_json::json;

const REPORTS: &str = "ROLLCALL_REPORTS";
const REPORTS_BY_DEFAULT: u64 = 60_000;
/// As many connections at a time as it takes for group commits to be worth it.
const SLAVES: u32 = 256;
/// For each report, on a machine that is very busy.
const MICROS_PER_REPORT: u64 = 4000;
const LIMIT_AT_LEAST: Duration = Duration::from_secs(60);

fn reports() -> u64 {
    match env::var(REPORTS) {
        Ok(text) => text.parse().expect("ROLLCALL_REPORTS is a number"),
        Err(_) => REPORTS_BY_DEFAULT,
    }
}

/// A master on an address of `namespace`.
fn start_master(folder: &Path, namespace: &Namespace, ip: Ipv4Addr) -> (Master, SocketAddr) {
    let mut master = Master::new(folder, "master");
    let address = SocketAddr::from((ip, 7412));
    master
        .config
        .set("listen.addresses", vec![address.to_string()])
        .set("tls.mode", "off")
        .set("limits.connections_max", 1000);
    namespace.run(|| master.start());
    (master, address)
}

fn send(
    folder: &Path,
    namespace: &Namespace,
    master: SocketAddr,
    count: u64,
    slaves: u32,
    more: &[&str],
) -> Outcome {
    let (count_text, slaves) = (count.to_string(), slaves.to_string());
    let fixed = [
        "--mode",
        "per-message",
        "--count",
        &count_text,
        "--slaves",
        &slaves,
    ];
    let arguments = [&fixed[..], more].concat();
    let bench = namespace.run(|| Bench::spawn(folder, master, &arguments));
    let limit = Duration::from_micros(MICROS_PER_REPORT.saturating_mul(count));
    bench.wait(limit.max(LIMIT_AT_LEAST))
}

/// All of them are acked and applied, each once.
fn assert_all_there(namespace: &Namespace, master: &Master, outcome: &Outcome, count: u64) {
    let json = &outcome.result;
    assert_eq!(outcome.code, Some(0), "{json} {}", outcome.stderr);
    assert_eq!(
        (outcome.number("/acked"), outcome.number("/lost")),
        (count, 0),
        "{json}"
    );
    let api = master.api();
    let metric = |name| namespace.run(|| api.metric(name)).expect("the metric");
    assert_eq!(
        metric("rollcall_reports_applied_total").to_string(),
        count.to_string()
    );
}

/// Not one connection failed, and none left TIME_WAIT on the slaves' side.
fn assert_no_port_is_lost(outcome: &Outcome, count: u64) {
    let json = &outcome.result;
    assert_eq!(json["errors"], json!({}), "{json}");
    assert_eq!(json["connects_failed"], json!({}), "{json}");
    assert_eq!(outcome.number("/connects"), count, "{json}");
    assert_eq!(outcome.number("/time_wait"), 0, "{json}");
}

fn tell(what: &str, outcome: &Outcome) {
    let json = &outcome.result;
    let float = |key: &str| json[key].as_f64().unwrap_or_default();
    println!(
        "{what}: {} reports, {:.0}/s, {} lost, {} connects ({:.0}/s), failed {}, left TIME_WAIT {:.2}%, {} of the bare loop",
        json["acked"],
        float("rate_per_s"),
        json["lost"],
        json["connects"],
        float("connects") / float("elapsed_s"),
        json["connects_failed"],
        float("time_wait_share") * 100.0,
        json["connect_loop"]["ratio"],
    );
}

/// Over loopback, where the kernel would help itself after a second (tcp_tw_reuse = 2).
#[test]
fn loopback_runs_out_of_no_port() {
    let Some(namespace) = Namespace::new_or_skip_loudly("per-message mode over loopback") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (master, address) = start_master(folder.path(), &namespace, Ipv4Addr::LOCALHOST);
    let count = reports();
    let more = ["--connect-loop"];
    let outcome = send(folder.path(), &namespace, address, count, SLAVES, &more);
    tell("loopback", &outcome);
    assert_all_there(&namespace, &master, &outcome, count);
    assert_no_port_is_lost(&outcome, count);
    assert_eq!(outcome.number("/connect_loop/time_wait"), 0);
}

/// Between two hosts, as it were, where it would not.
#[test]
fn veth_runs_out_of_no_port() {
    let Some(site) = Site::new_or_skip_loudly("per-message mode between two hosts") else {
        return;
    };
    let (master, address) = start_master(site.folder(), &site.far, far());
    let count = reports();
    let bare = site.far.run(BareServer::start);
    let more = ["--connect-loop-server", &bare.address];
    let outcome = send(site.folder(), &site.near, address, count, SLAVES, &more);
    tell("veth", &outcome);
    assert_all_there(&site.far, &master, &outcome, count);
    assert_no_port_is_lost(&outcome, count);
    assert_eq!(outcome.number("/connect_loop/answered"), count);
}

/// The bench's own server for the bare loop of connections. It ends with its standard input.
struct BareServer {
    child: Child,
    address: String,
}

impl BareServer {
    fn start() -> Self {
        let mut child = Command::new(binaries::path(binaries::BENCH))
            .args(["baseline-server", "connect-loop", "--log-directory", "."])
            .arg("--listen")
            .arg(SocketAddr::from((far(), 7500)).to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let stdout = child.stdout.take().expect("a pipe");
        let mut address = String::new();
        let read = BufReader::new(stdout).read_line(&mut address);
        read.expect("the address of the server");
        Self {
            child,
            address: address.trim().to_owned(),
        }
    }
}

impl Drop for BareServer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It is this process's own child, and whatever it ends with is no matter.
        let _ = self.child.wait();
    }
}

/// The masters' host.
fn far() -> Ipv4Addr {
    FAR.parse().expect("an address")
}

/// A hundred ports and twice as many slaves: connects fail with 99 while all ports are in use, which
/// costs time and no report.
#[test]
fn a_hundred_ports_lose_nothing() {
    let Some(site) = Site::new_or_skip_loudly("per-message mode on 100 ports") else {
        return;
    };
    site.near.set("net.ipv4.ip_local_port_range", "40000 40099");
    let (master, address) = start_master(site.folder(), &site.far, far());
    let count = 20_000;
    let outcome = send(site.folder(), &site.near, address, count, 200, &[]);
    tell("100 ports", &outcome);
    assert_all_there(&site.far, &master, &outcome, count);
    let failed = outcome.number("/connects_failed/99");
    assert!(failed > 0, "{}", outcome.result);
    assert_eq!(
        outcome.number("/connects"),
        count + failed,
        "no other errno"
    );
    assert_eq!(outcome.number("/time_wait"), 0);
}

/// The same behind something that keeps the master's end of the stream to itself, with slaves that
/// close at once: TIME_WAIT is ours, and each port is good for one report a second.
#[test]
fn ports_held_in_time_wait_cost_time_and_lose_nothing() {
    let Some(site) = Site::new_or_skip_loudly("per-message mode with TIME_WAIT on 100 ports")
    else {
        return;
    };
    site.near.set("net.ipv4.ip_local_port_range", "40000 40099");
    // A port is given back after 1 s instead of 60.
    site.near.set("net.ipv4.tcp_tw_reuse", "1");
    let (master, address) = start_master(site.folder(), &site.far, far());
    let start = || Relay::start(SocketAddr::from((far(), 7413)), address);
    let relay = site.far.run(start).expect("a relay");
    let count = 400;
    let more = ["--close", "slave-first"];
    let outcome = send(site.folder(), &site.near, relay.address(), count, 50, &more);
    tell("100 ports in TIME_WAIT", &outcome);
    assert_all_there(&site.far, &master, &outcome, count);
    assert!(
        outcome.number("/connects_failed/99") > 0,
        "{}",
        outcome.result
    );
    let held = outcome.number("/time_wait");
    assert!((50..=100).contains(&held), "{}", outcome.result);
}
