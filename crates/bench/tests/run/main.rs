//! The real binary against a master that can misbehave, and against its own bare servers.

mod bare;
mod datagram;
mod ports;
mod support;

use std::collections::BTreeSet;
use std::process::Child;
use std::sync::mpsc;
use std::time::Duration;

use rollcall_os::clock;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use support::{Fault, Roll, Server};

const PROGRAM: &str = env!("CARGO_BIN_EXE_rollcall-bench");
/// No run in these tests takes nearly as long.
const LIMIT: Duration = Duration::from_secs(60);

/// How a run ended and what it printed.
struct Run {
    code: Option<i32>,
    json: Value,
    stderr: String,
}

fn bench(master: &str, args: &[&str]) -> Run {
    let output = assert_cmd::Command::new(PROGRAM)
        .args(["--master", master, "--json"])
        .args(args)
        .timeout(LIMIT)
        .output()
        .expect("the program can be started");
    Run {
        code: output.status.code(),
        json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// What a run says that gets a signal.
fn interrupted(child: Child) -> Run {
    let pid = Pid::from_child(&child);
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    kill_process(pid, Signal::INT).expect("it runs");
    let Ok(output) = ended.recv_timeout(LIMIT) else {
        kill_process(pid, Signal::KILL).expect("it runs");
        panic!("it goes on");
    };
    let output = output.expect("its output");
    Run {
        code: output.status.code(),
        json: serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Run {
    fn number(&self, pointer: &str) -> u64 {
        let value = self.json.pointer(pointer).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no {pointer} in {}; {}", self.json, self.stderr))
    }

    fn error(&self, kind: &str) -> u64 {
        self.json["errors"][kind].as_u64().unwrap_or(0)
    }

    fn assert_good(&self) {
        assert_eq!(self.code, Some(0), "{} {}", self.json, self.stderr);
        assert_eq!(self.number("/lost"), 0);
        assert_eq!(self.number("/acked"), self.number("/sent"));
    }
}

/// The lines of a ledger, which must agree with the roll slave by slave.
fn assert_ledger(path: &std::path::Path, roll: &Roll) {
    let text = std::fs::read_to_string(path).expect("a ledger");
    assert_eq!(text.lines().count(), roll.slaves.len());
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        let text = |key: &str| line[key].as_str().expect("a text");
        let entry = &roll.slaves[text("name")];
        assert_eq!(line["distinct_reports_acked"], entry.applied, "{line}");
        assert_eq!(line["sent"], entry.applied, "{line}");
        let stream = u64::from_str_radix(text("stream"), 16).expect("hexadecimal digits");
        assert_eq!(line["acked"], entry.marks[&stream], "{line}");
        assert_eq!(text("id").len(), 32);
    }
}

#[test]
fn a_count_is_met_exactly_and_the_ledger_agrees_with_the_roll() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let path = ledger.to_str().unwrap();
    for mode in ["pooled", "per-message", "mixed"] {
        let server = Server::start(Fault::None);
        let args = [
            "--slaves",
            "7",
            "--mode",
            mode,
            "--in-flight",
            "8",
            "--count",
            "1003",
        ];
        let run = bench(
            &server.address(),
            &[&args[..], &["--ledger", path]].concat(),
        );
        run.assert_good();
        assert_eq!(run.number("/acked"), 1003);
        assert_ledger(&ledger, &server.roll());
        let roll = server.roll();
        assert_eq!(roll.applied(), 1003);
        assert_eq!((roll.duplicates, &roll.violations[..]), (0, &[][..]));
        let per_message = roll
            .slaves
            .values()
            .filter(|entry| entry.per_message)
            .count();
        let expected = match mode {
            "pooled" => (0, 7),
            "per-message" => (7, 1003),
            _ => (3, roll.connections),
        };
        assert_eq!((per_message, roll.connections), expected, "{mode}");
        assert_eq!(run.json["errors"], serde_json::json!({}));
    }
}

#[test]
fn a_backlog_is_replayed_once_beside_live_reports() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let path = ledger.to_str().unwrap();
    for fault in [Fault::None, Fault::DropAtRandom] {
        let server = Server::start(fault);
        let args = [
            "--slaves",
            "5",
            "--replay",
            "700",
            "--live-slaves",
            "3",
            "--rate",
            "50",
            "--retry-longest",
            "50ms",
            "--ledger",
            path,
        ];
        let run = bench(&server.address(), &args);
        run.assert_good();
        let live = run.number("/acked") - 5 * 700;
        assert!(live > 0, "{}", run.json);
        assert_ledger(&ledger, &server.roll());
        let roll = server.roll();
        assert_eq!(roll.violations, [""; 0]);
        match fault {
            Fault::None => assert_eq!((roll.previews, roll.connections), (5, 8)),
            _ => assert!(roll.previews >= 5, "{}", roll.previews),
        }
        let figure = |pointer: &str| run.json.pointer(pointer).and_then(Value::as_f64).unwrap();
        assert!(figure("/live_ack_latency_ms/p50") > 0.0, "{}", run.json);
        assert!(figure("/backlog_rate_per_s") > 0.0, "{}", run.json);
        assert!(
            figure("/backlog_done_s") <= figure("/elapsed_s"),
            "{}",
            run.json
        );
    }
}

#[test]
fn an_open_loop_keeps_its_rate_for_its_time() {
    let server = Server::start(Fault::None);
    let started = clock::boot();
    let args = [
        "--slaves",
        "10",
        "--rate",
        "20",
        "--duration",
        "2s",
        "--mode",
        "mixed",
    ];
    let run = bench(&server.address(), &args);
    let took = clock::boot().saturating_since(started);
    run.assert_good();
    // 10 slaves, 20 a second, 2 s; on a busy machine the last turns fall behind the end.
    assert!((300..=400).contains(&run.number("/sent")), "{}", run.json);
    assert!(took >= Duration::from_secs(2), "{took:?}");
    let latency = &run.json["ack_latency_ms"];
    let figure = |key: &str| latency[key].as_f64().unwrap();
    assert!(
        figure("p50") > 0.0 && figure("p50") <= figure("p99"),
        "{latency}"
    );
    assert!(figure("p99") <= figure("max"), "{latency}");
}

/// Before its time, and with all that it made.
#[test]
fn a_signal_ends_a_run_with_its_result() {
    for mode in ["pooled", "per-message", "idle"] {
        let server = Server::start(Fault::None);
        let child = std::process::Command::new(PROGRAM)
            .args(["--master", &server.address(), "--json", "--mode", mode])
            .args(["--slaves", "4", "--duration", "1h"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert!(server.wait_for_applied(4, LIMIT));
        let run = interrupted(child);
        run.assert_good();
        assert_eq!(run.number("/acked"), server.roll().applied(), "{mode}");
        let elapsed = run.json["elapsed_s"].as_f64().unwrap();
        assert!(elapsed < LIMIT.as_secs_f64(), "{mode}: {elapsed}");
    }
}

#[test]
fn a_payload_is_exact_on_the_wire() {
    for bytes in ["64", "200", "5000"] {
        let server = Server::start(Fault::None);
        let args = [
            "--slaves",
            "3",
            "--count",
            "600",
            "--in-flight",
            "4",
            "--payload-bytes",
            bytes,
        ];
        bench(&server.address(), &args).assert_good();
        let sizes: Vec<_> = server.roll().report_bytes.iter().copied().collect();
        assert_eq!(sizes, [bytes.parse::<usize>().unwrap()]);
    }
    let run = bench("127.0.0.1:1", &["--slaves", "1", "--payload-bytes", "10"]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("the smallest has"), "{}", run.stderr);
}

#[test]
fn connections_dropped_at_random_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let server = Server::start(Fault::DropAtRandom);
    let args = [
        "--slaves",
        "16",
        "--mode",
        "mixed",
        "--in-flight",
        "6",
        "--count",
        "4000",
    ];
    let path = ledger.to_str().unwrap();
    let run = bench(
        &server.address(),
        &[&args[..], &["--ledger", path]].concat(),
    );
    run.assert_good();
    assert!(
        run.number("/reconnects") > 0 && run.number("/resent") > 0,
        "{}",
        run.json
    );
    assert!(run.json["recovery_ms"]["p50"].is_number(), "{}", run.json);
    assert_ledger(&ledger, &server.roll());
    let roll = server.roll();
    assert!(roll.duplicates > 0);
    assert_eq!(roll.violations, [""; 0]);
}

#[test]
fn an_ack_that_comes_twice_counts_once() {
    let server = Server::start(Fault::AckTwice);
    let run = bench(
        &server.address(),
        &["--slaves", "4", "--count", "400", "--in-flight", "2"],
    );
    run.assert_good();
    assert_eq!(run.number("/acked"), 400);
    // Of the last ones the second ack may come after the end.
    assert!(run.number("/repeated_acks") >= 300, "{}", run.json);
}

#[test]
fn a_master_that_goes_and_comes_back_loses_nothing() {
    let mut server = Server::start(Fault::None);
    let address = server.address();
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let args = [
            "--slaves",
            "20",
            "--mode",
            "mixed",
            "--rate",
            "50",
            "--duration",
            "3s",
        ];
        sender.send(bench(&address, &args)).unwrap();
    });
    for _ in 0..3 {
        let before = server.roll().applied();
        let reached = server.wait_for_applied(before + 101, LIMIT);
        assert!(reached, "nothing is being applied");
        server.stop();
        // The slaves find nobody there for a time that is longer than their first pauses.
        let refused = ended.recv_timeout(Duration::from_millis(150));
        assert!(refused.is_err(), "it ended before its time");
        server.resume();
    }
    let run = ended.recv_timeout(LIMIT).unwrap();
    run.assert_good();
    assert_eq!(server.roll().applied(), run.number("/sent"));
    assert_eq!(server.roll().violations, [""; 0]);
    assert!(run.error("connect_refused") > 0, "{}", run.json);
    assert!(run.number("/reconnects") >= 30, "{}", run.json);
}

#[test]
fn a_refusal_fails_the_run_unless_errors_are_allowed() {
    let args = ["--slaves", "2", "--count", "10"];
    let refuse = Fault::Refuse {
        times: 2,
        retry: true,
    };
    let run = bench(&Server::start(refuse).address(), &args);
    assert_eq!((run.code, run.number("/lost")), (Some(1), 0));
    assert_eq!(run.error("refused_by_master"), 2);
    assert!(
        run.stderr.contains("refused 2 connections: not today"),
        "{}",
        run.stderr
    );
    let allowed = [&args[..], &["--allow-errors"]].concat();
    bench(&Server::start(refuse).address(), &allowed).assert_good();

    let for_good = Fault::Refuse {
        times: 1000,
        retry: false,
    };
    let run = bench(&Server::start(for_good).address(), &allowed);
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr.contains("not one slave got through"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_broken_promise_fails_the_run_in_any_case() {
    for (fault, kind) in [(Fault::AckAhead, "bad_ack"), (Fault::Forget, "forgotten")] {
        let mut server = Server::start(fault);
        let address = server.address();
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || {
            let args = [
                "--slaves",
                "1",
                "--rate",
                "100",
                "--duration",
                "2s",
                "--allow-errors",
            ];
            let patience = ["--patience", "1s"];
            sender
                .send(bench(&address, &[&args[..], &patience].concat()))
                .unwrap();
        });
        // A master that forgets does so between two connections. At most one report is unacked at
        // a time, so that at least one of those it forgets was acked.
        let enough = if fault == Fault::Forget { 5 } else { 1 };
        assert!(server.wait_for_applied(enough, LIMIT));
        server.stop();
        server.resume();
        let run = ended.recv_timeout(LIMIT).unwrap();
        assert_eq!(run.code, Some(1), "{fault:?} {}", run.json);
        assert!(run.error(kind) > 0, "{fault:?} {}", run.json);
        if fault == Fault::Forget {
            assert!(server.roll().gaps > 0);
            assert_eq!(server.roll().violations, [""; 0]);
        }
    }
}

#[test]
fn a_silent_master_ends_the_run_by_its_timeouts() {
    let server = Server::start(Fault::Silent);
    let times = ["--timeout", "300ms", "--patience", "1s"];
    let args = ["--slaves", "3", "--mode", "per-message", "--count", "10"];
    let run = bench(&server.address(), &[&args[..], &times].concat());
    assert_eq!(
        (run.code, run.number("/acked"), run.number("/lost")),
        (Some(1), 0, 3)
    );
    assert!(run.error("timeout") >= 3, "{}", run.json);
    assert!(
        run.stderr.contains("3 of 3 reports were never acked"),
        "{}",
        run.stderr
    );
}

#[test]
fn nobody_there_is_said_with_the_reason() {
    // A port that was free a moment ago.
    let address = Server::start(Fault::None).address();
    let run = bench(&address, &["--slaves", "3", "--patience", "500ms"]);
    assert_eq!(run.code, Some(1));
    for part in ["not one slave got through", "connect_refused", &address] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
}

#[test]
fn source_addresses_are_taken_in_turn() {
    let server = Server::start(Fault::None);
    let sources = ["--source-addresses", "127.0.0.2,127.0.0.3"];
    let args = ["--slaves", "4", "--mode", "mixed", "--count", "40"];
    bench(&server.address(), &[&args[..], &sources].concat()).assert_good();
    let peers = ["127.0.0.2", "127.0.0.3"].map(|peer| peer.parse().unwrap());
    assert_eq!(server.roll().peers, BTreeSet::from(peers));
}

#[test]
fn idle_slaves_report_once_and_stay() {
    let server = Server::start(Fault::None);
    let started = clock::boot();
    let pid = std::process::id().to_string();
    let args = [
        "--slaves",
        "100",
        "--mode",
        "idle",
        "--duration",
        "1s",
        "--master-pid",
        &pid,
    ];
    let run = bench(&server.address(), &args);
    run.assert_good();
    assert!(clock::boot().saturating_since(started) >= Duration::from_secs(1));
    assert_eq!(run.number("/acked"), 100);
    assert!(
        server
            .roll()
            .slaves
            .values()
            .all(|entry| entry.applied == 1)
    );
    assert!(run.number("/master/rss_kib") > 0 && run.number("/master/rss_kib_before") > 0);
    // The test master has a thread for each of them.
    assert!(
        run.json["master"]["kib_per_connection"].as_f64().unwrap() > 1.0,
        "{}",
        run.json
    );
}
