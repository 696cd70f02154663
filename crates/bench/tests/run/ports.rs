//! What is told of the local ports, and the bare loop of connections.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use super::*;

fn share(run: &Run) -> f64 {
    let share = run.json["time_wait_share"].as_f64();
    share.unwrap_or_else(|| panic!("no share in {}", run.json))
}

#[test]
fn who_closes_first_keeps_time_wait() {
    for (fault, close, kept) in [
        (Fault::None, "master-first", 0.0),
        (Fault::LeavesItOpen, "slave-first", 1.0),
        (Fault::LeavesItOpen, "abort", 0.0),
    ] {
        let server = Server::start(fault);
        let args = ["--slaves", "4", "--mode", "per-message", "--count", "400"];
        let run = bench(
            &server.address(),
            &[&args[..], &["--close", close]].concat(),
        );
        run.assert_good();
        assert_eq!(run.number("/connects"), 400, "{close}");
        assert_eq!(run.json["connects_failed"], serde_json::json!({}));
        // The last ones may not have come to it yet.
        let share = share(&run);
        assert!((share - kept).abs() < 0.05, "{close}: {}", run.json);
        assert_eq!(server.roll().applied(), 400);
    }
}

#[test]
fn connects_that_fail_are_told_by_their_number() {
    // A port that was free a moment ago.
    let address = Server::start(Fault::None).address();
    let args = ["--slaves", "2", "--mode", "per-message", "--count", "2"];
    let run = bench(&address, &[&args[..], &["--patience", "500ms"]].concat());
    assert_eq!(run.code, Some(1));
    // ECONNREFUSED.
    assert!(run.number("/connects_failed/111") >= 2, "{}", run.json);
    assert_eq!(
        run.number("/connects"),
        run.number("/connects_failed/111"),
        "{}",
        run.json
    );
}

#[test]
fn the_bare_loop_is_compared_with() {
    let server = Server::start(Fault::None);
    let args = ["--slaves", "4", "--mode", "per-message", "--count", "1000"];
    let run = bench(
        &server.address(),
        &[&args[..], &["--connect-loop"]].concat(),
    );
    run.assert_good();
    let bare = &run.json["connect_loop"];
    assert_eq!(bare["answered"], 1000, "{bare}");
    assert_eq!(bare["connects"], 1000, "{bare}");
    assert_eq!(bare["connects_failed"], serde_json::json!({}));
    assert_eq!(bare["time_wait"], 0, "the server closes first: {bare}");
    let ratio = run.json["rate_per_s"].as_f64().unwrap() / bare["rate_per_s"].as_f64().unwrap();
    assert!((bare["ratio"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-6);
}

/// The run against the master is over by then, and its result is what the signal asks for.
#[test]
fn a_signal_in_the_bare_loop_leaves_the_comparison_out() {
    let server = Server::start(Fault::None);
    // Says nothing: the loop waits for its first answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let child = Command::new(PROGRAM)
        .args(["--master", &server.address(), "--json"])
        .args(["--slaves", "2", "--mode", "per-message", "--count", "10"])
        .args(["--connect-loop-server", &address, "--patience", "1h"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _open = silent.accept().unwrap();
    let run = interrupted(child);
    run.assert_good();
    assert_eq!(run.number("/acked"), 10);
    assert_eq!(run.json.get("connect_loop"), None, "{}", run.json);
}
