//! The operator's command against the real daemons.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Daemon, Master, Slave, binaries, wait_until};
use rollcall_os::clock;
use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::Value;

/// A row of `rollcall ls --json` and of `/v1/slaves`: the contract of the design, section 9.
const ROW: [&str; 18] = [
    "name",
    "id",
    "presence",
    "health",
    "since",
    "last_seen",
    "interval_ms",
    "stream",
    "sequence",
    "applied",
    "duplicates",
    "gaps",
    "clock_offset_ms",
    "mode",
    "peer",
    "connected_since",
    "reconnects",
    "labels",
];

fn up(folder: &Path, arguments: &[&str]) -> Daemon {
    let directory = folder.join("dir");
    let directory = directory.to_string_lossy();
    let fixed = ["up", "--dir", &directory];
    let arguments = fixed.iter().chain(arguments);
    Daemon::spawn("up", &binaries::path(binaries::CLI), arguments, folder)
}

/// Waits for a line of output that has this text, and returns it.
fn line(up: &mut Daemon, part: &str) -> String {
    wait_until(PATIENCE, &format!("{part:?} from rollcall up"), || {
        let text = up.log().text();
        let found = text
            .lines()
            .find(|line| line.contains(part))
            .map(str::to_owned);
        let ended = up.ended();
        assert!(
            found.is_some() || ended.is_none(),
            "{ended:?}: {text} {}",
            up.stderr()
        );
        found
    })
}

/// The pids of the master and the slave that it started.
fn pids(up: &mut Daemon) -> [Pid; 2] {
    ["master  pid ", "slave   pid "].map(|prefix| {
        let line = line(up, prefix);
        let digits = line
            .split_once("pid ")
            .expect("a pid")
            .1
            .split(|c: char| !c.is_ascii_digit());
        let pid = digits.into_iter().next().and_then(|pid| pid.parse().ok());
        Pid::from_raw(pid.expect("a number")).expect("a pid")
    })
}

fn assert_gone(pids: [Pid; 2]) {
    for pid in pids {
        wait_until(PATIENCE, "the end of a daemon", || {
            test_kill_process(pid).is_err().then_some(())
        });
    }
}

#[test]
fn up_shows_this_host_and_ends_both_when_time_is_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut up = up(
        folder.path(),
        &["--free-ports", "--for", "5s", "--interval", "200ms"],
    );
    line(&mut up, "up in ");
    let pids = pids(&mut up);
    line(&mut up, "PRESENCE");
    wait_until(PATIENCE, "this host's row", || {
        up.log()
            .text()
            .lines()
            .any(|line| line.contains("  up  "))
            .then_some(())
    });
    assert_eq!(
        up.wait(PATIENCE).code(),
        Some(0),
        "{} {}",
        up.log().text(),
        up.stderr()
    );
    assert_gone(pids);
    let log = |name: &str| {
        let path = folder.path().join("dir").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    // Whether the slave has left for good the master would tell an interval later.
    assert!(log("slave.log").contains("\"slave_stopped\""));
    assert!(log("master.log").contains("\"master_stopped\""));
}

#[test]
fn ctrl_c_ends_both() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut up = up(folder.path(), &["--free-ports"]);
    line(&mut up, "up in ");
    let pids = pids(&mut up);
    let began = clock::boot();
    up.signal(Signal::INT);
    assert_eq!(
        up.wait(PATIENCE).code(),
        Some(0),
        "{} {}",
        up.log().text(),
        up.stderr()
    );
    let took = clock::boot().saturating_since(began);
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_gone(pids);
}

#[test]
fn taken_ports_are_replaced_and_named() {
    // Whoever else has them will do as well.
    let _held = [7412, 7413].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    let folder = tempfile::tempdir().expect("a folder");
    let mut up = up(folder.path(), &["--for", "100ms"]);
    line(&mut up, "up in ");
    assert_eq!(up.wait(PATIENCE).code(), Some(0), "{}", up.stderr());
    let text = up.log().text();
    for port in ["7412", "7413"] {
        let note = format!("port {port} is taken by another program; using ");
        assert!(text.contains(&note), "{text}");
    }
}

#[test]
fn a_check_that_fails_is_seen_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let check = "demo=echo it is broken; exit 2";
    let mut up = up(
        folder.path(),
        &["--free-ports", "--interval", "200ms", "--check", check],
    );
    line(&mut up, "it is broken");
    wait_until(PATIENCE, "a critical host", || {
        up.log().text().contains("critical").then_some(())
    });
    up.signal(Signal::TERM);
    assert_eq!(up.wait(PATIENCE).code(), Some(0));
}

fn rollcall(master: &Master, arguments: &[&str]) -> Output {
    Command::new(binaries::path(binaries::CLI))
        .args(["--master", master.api().url()])
        .args(arguments)
        .output()
        .expect("the program can be started")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn json_has_the_fields_of_the_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = Master::started(folder.path());
    let mut slave = Slave::new(folder.path(), "web-1", &[master.address()], "200ms");
    slave.start();
    master.wait_for_row("web-1", "reporting", |row| {
        row.sequence >= 2 && row.clock_offset_ms.is_some()
    });
    let contract: BTreeSet<&str> = ROW.into_iter().collect();
    let list = json(&rollcall(&master, &["ls", "--json"]));
    let row = &list["slaves"][0];
    assert_eq!(keys(row), contract, "rollcall ls --json");
    let (_, served) = master.api().get("/v1/slaves").expect("an answer");
    let served: Value = serde_json::from_str(&served).expect("JSON");
    assert_eq!(keys(&served["slaves"][0]), contract, "GET /v1/slaves");
    assert_eq!(
        (&row["name"], &row["presence"]),
        (&"web-1".into(), &"up".into())
    );
    for time in ["since", "last_seen", "connected_since"] {
        let text = row[time].as_str().unwrap_or_default();
        assert!(
            text.ends_with('Z') && text.contains('T'),
            "{time} is {}",
            row[time]
        );
    }

    let shown = json(&rollcall(&master, &["show", "web-1", "--json"]));
    let of_detail: BTreeSet<&str> = ROW
        .into_iter()
        .chain(["agent_version", "report_time", "checks"])
        .collect();
    assert_eq!(keys(&shown), of_detail, "rollcall show --json");
    let check = &shown["checks"][0];
    let of_check = ["name", "state", "text", "duration_ms", "time", "metrics"];
    assert_eq!(keys(check), of_check.into_iter().collect(), "{check}");

    let output = rollcall(&master, &["events", "--json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("one event a line"))
        .collect();
    let of_event = [
        "id", "time", "recorded", "kind", "slave", "subject", "from", "to", "text", "replayed",
    ];
    assert!(events.len() >= 3, "{text}");
    for event in &events {
        assert_eq!(keys(event), of_event.into_iter().collect(), "{event}");
    }
    assert!(
        events.iter().any(|event| event["kind"] == "master_start"),
        "{text}"
    );
    assert!(events.iter().any(|event| event["to"] == "up"), "{text}");
}

#[test]
fn readable_tables_and_errors() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::started(folder.path());
    let mut slave = Slave::new(folder.path(), "web-1", &[master.address()], "200ms");
    slave.start();
    master.wait_for_row("web-1", "reporting", |row| row.sequence >= 2);
    let text = |arguments: &[&str]| {
        let output = rollcall(&master, arguments);
        assert!(output.status.success(), "{output:?}");
        assert!(
            !output.stdout.contains(&0x1b),
            "colour where there is no terminal"
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let list = text(&["ls"]);
    assert!(list.starts_with("NAME") && list.contains("web-1"), "{list}");
    let shown = text(&["show", "web-1"]);
    assert!(
        shown.contains("load") && shown.contains("memory"),
        "{shown}"
    );
    assert!(text(&["events"]).contains("web-1"));
    assert!(!text(&["ls", "--presence", "missing"]).contains("web-1"));

    let absent = rollcall(&master, &["show", "web-2"]);
    assert_eq!(absent.status.code(), Some(1), "{absent:?}");
    assert!(
        String::from_utf8_lossy(&absent.stderr).contains("web-1"),
        "{absent:?}"
    );
    master.kill_and_wait();
    let gone = rollcall(&master, &["ls"]);
    assert_eq!(gone.status.code(), Some(69), "{gone:?}");
    assert!(
        String::from_utf8_lossy(&gone.stderr).contains("can't reach the master"),
        "{gone:?}"
    );
}
