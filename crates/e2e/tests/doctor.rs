//! `rollcall doctor`: what it finds on a host that is about to run out, and that it finds nothing on
//! one that is not.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{self, Command};

use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Daemon, Master, Namespace, Slave, binaries, wait_until};
use rustix::process::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// The keys of `--json`: they stay.
const KEYS: [&str; 10] = [
    "capacity",
    "destinations",
    "findings",
    "kernel",
    "listeners",
    "ports",
    "states",
    "time_ms",
    "users",
    "worst",
];
/// Of 100 ports.
const USED: usize = 96;

fn doctor(arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(binaries::path(binaries::CLI));
    let output = command.args(["doctor", "--json"]).args(arguments).output();
    let output = output.expect("the program can be started");
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), report)
}

fn finding<'a>(report: &'a Value, id: &str) -> Option<&'a Value> {
    let findings = report["findings"].as_array().expect("a list");
    findings.iter().find(|finding| finding["id"] == id)
}

/// A host with 100 source ports on which a client has closed first, time and again.
fn worn_out(namespace: &Namespace) -> (TcpListener, SocketAddr) {
    namespace.set("net.ipv4.ip_local_port_range", "40000 40099");
    namespace.set("net.ipv4.tcp_tw_reuse", "0");
    namespace.run(|| {
        let listener = TcpListener::bind("127.0.0.1:7412").expect("a port of our own");
        let address = listener.local_addr().expect("an address");
        for _ in 0..USED {
            let mut client = TcpStream::connect(address).expect("a port that is left");
            let (mut server, _) = listener.accept().expect("a connection");
            client
                .shutdown(Shutdown::Write)
                .expect("an open connection");
            server.read_to_end(&mut Vec::new()).expect("its end");
            drop(server);
            client.read_to_end(&mut Vec::new()).expect("its end");
        }
        (listener, address)
    })
}

#[test]
fn ports_that_run_out_are_critical_and_come_back_with_reuse() {
    let Some(namespace) = Namespace::new_or_skip_loudly("the doctor at a host without ports")
    else {
        return;
    };
    let (_listener, address) = worn_out(&namespace);
    let (code, report) = namespace.run(|| doctor(&[]));
    assert_eq!(
        (code, &report["worst"]),
        (Some(1), &"critical".into()),
        "{report:#}"
    );
    let destination = &report["destinations"][0];
    assert_eq!(
        destination["destination"],
        address.to_string(),
        "{report:#}"
    );
    assert_eq!(destination["time_wait"], USED, "{report:#}");
    assert_eq!(destination["ports_left"], 100 - USED, "{report:#}");
    assert_eq!(destination["ports_reusable"], 0, "{report:#}");
    let found = finding(&report, "destination").expect("a finding");
    assert_eq!(found["severity"], "critical", "{found:#}");
    assert_eq!(
        found["mend"], "sysctl -w net.ipv4.tcp_tw_reuse=1",
        "{found:#}"
    );
    assert_eq!(
        finding(&report, "port_range").expect("a finding")["severity"],
        "warning"
    );
    assert_eq!(report["capacity"]["elsewhere_per_s"], 1, "{report:#}");
    assert_eq!(report["states"]["TIME_WAIT"], USED, "{report:#}");

    namespace.set("net.ipv4.tcp_tw_reuse", "2");
    let report = wait_until(PATIENCE, "ports to be reusable", || {
        let (_, report) = namespace.run(|| doctor(&["--destination", "127.0.0.1:7412"]));
        (report["destinations"][0]["ports_reusable"] == USED).then_some(report)
    });
    let found = finding(&report, "destination").expect("a finding");
    assert_eq!(found["severity"], "ok", "{found:#}");
    assert_eq!(report["capacity"]["loopback_per_s"], 100, "{report:#}");
}

#[test]
fn an_unused_destination_has_all_ports() {
    let Some(namespace) = Namespace::new_or_skip_loudly("the doctor at an idle host") else {
        return;
    };
    let (code, report) = namespace.run(|| doctor(&["--destination", "127.0.0.1:7412"]));
    assert_eq!(report["worst"], "ok", "{report:#}");
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(
        report["destinations"][0]["ports_left"], 28_232,
        "{report:#}"
    );
    assert_eq!(report["capacity"]["elsewhere_per_s"], 470, "{report:#}");
    let found = finding(&report, "destination").expect("a finding");
    assert_eq!(found["severity"], "ok", "{found:#}");
}

/// A listener that never accepts, with room for two.
fn deaf() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let address = SocketAddr::from(([127, 0, 0, 1], 7412));
    socket.bind(&address.into()).expect("a port of our own");
    socket.listen(1).expect("a listener");
    (socket, address)
}

/// Begins to connect; whether that succeeds is of no interest.
fn knock(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
    let _ = socket.connect(&address.into());
    socket
}

#[test]
fn a_full_queue_is_told_with_its_owner_and_followed() {
    let Some(namespace) = Namespace::new_or_skip_loudly("the doctor at a deaf listener") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let (_socket, address) = namespace.run(deaf);
    let mut clients = namespace.run(|| vec![knock(address), knock(address)]);
    let (code, report) = namespace.run(|| doctor(&[]));
    assert_eq!(code, Some(1), "{report:#}");
    let found = finding(&report, "listen_queue").expect("a finding");
    assert_eq!(found["severity"], "critical", "{found:#}");
    let owner = report["listeners"][0]["owner"].as_str().expect("a name");
    assert!(
        owner.ends_with(&format!("(pid {})", process::id())),
        "{report:#}"
    );

    let program = binaries::path(binaries::CLI);
    let arguments = ["doctor", "--json", "--watch", "--every", "100ms"];
    let mut watch = namespace.run(|| Daemon::spawn("doctor", &program, arguments, folder.path()));
    let reports = |watch: &Daemon| -> Vec<Value> {
        let text = watch.log().text();
        text.lines().flat_map(serde_json::from_str).collect()
    };
    wait_until(PATIENCE, "a first look", || {
        (!reports(&watch).is_empty()).then_some(())
    });
    wait_until(PATIENCE, "an overflow to be told", || {
        clients.push(namespace.run(|| knock(address)));
        let warned = |report: &Value| {
            let found = finding(report, "listen_overflows");
            found.is_some_and(|found| found["severity"] == "warning")
        };
        reports(&watch).iter().any(warned).then_some(())
    });
    watch.signal(Signal::INT);
    assert_eq!(watch.wait(PATIENCE).code(), Some(1), "{}", watch.stderr());
}

/// By the slave before it runs, by its check on the roll, and by the doctor of its host.
#[test]
fn the_budget_is_the_same_wherever_it_is_told() {
    let Some(namespace) = Namespace::new_or_skip_loudly("the budget of a slave's ports") else {
        return;
    };
    namespace.set("net.ipv4.ip_local_port_range", "40000 40099");
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    namespace.run(|| master.start());
    let mut slave = Slave::new(folder.path(), "web-1", &[master.address()], "100ms");
    slave.config.set("connection.mode", "per-message");
    namespace.run(|| slave.start());
    let on_the_roll = namespace.run(|| {
        wait_until(PATIENCE, "the check of its ports", || {
            let checks = master.api().slave("web-1").ok()?.checks;
            let check = checks.iter().find(|check| check.name == "connection")?;
            let mut metrics = check.metrics.iter();
            metrics.find(|metric| metric.name == "budget")?.value
        })
    });
    assert_eq!(on_the_roll, 90.0);
    let mut check = Command::new(binaries::path(binaries::SLAVE));
    check.args(["--check", "--config"]).arg(slave.config_file());
    let output = namespace.run(|| check.output()).expect("the slave");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("(40000-40099)"), "{text}");
    assert!(text.contains(" at most 90 in use"), "{text}");
    let (_, report) = namespace.run(|| doctor(&[]));
    let found = finding(&report, "slave_budget").expect("a finding");
    let what = found["what"].as_str().expect("a text");
    assert!(what.contains("keeps to 90 of 100 source ports"), "{what}");
}

#[test]
fn anybody_can_ask_and_the_keys_stay() {
    let (code, report) = doctor(&[]);
    let keys: BTreeSet<_> = report.as_object().expect("an object").keys().collect();
    assert_eq!(keys, KEYS.map(str::to_owned).iter().collect(), "{report:#}");
    let is_bad = report["worst"] == "warning" || report["worst"] == "critical";
    assert_eq!(code, Some(i32::from(is_bad)), "{report:#}");
    for id in [
        "port_range",
        "tcp_tw_reuse",
        "somaxconn",
        "open_files",
        "capacity",
        "slave_budget",
    ] {
        let found = finding(&report, id).unwrap_or_else(|| panic!("no {id} in {report:#}"));
        assert!(
            found["means"]
                .as_str()
                .is_some_and(|means| means.len() > 20),
            "{found:#}"
        );
    }
}

#[test]
fn a_watch_ends_by_itself_and_is_readable_in_a_pipe() {
    let mut command = Command::new(binaries::path(binaries::CLI));
    command.args(["doctor", "--watch", "--every", "500ms", "--for", "5s"]);
    let output = command.output().expect("the program can be started");
    let text = String::from_utf8(output.stdout).expect("text");
    let looks = text.matches("rollcall doctor  ").count();
    assert!((2..=10).contains(&looks), "{looks} looks: {text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}
