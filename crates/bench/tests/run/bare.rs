//! The bare servers that a master is compared with.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::*;

#[test]
fn the_bare_servers_go_through_the_same_loop() {
    let server = Server::start(Fault::None);
    for mode in ["pooled", "per-message"] {
        let pid = std::process::id().to_string();
        let args = [
            "--slaves",
            "8",
            "--in-flight",
            "4",
            "--count",
            "3000",
            "--mode",
            mode,
        ];
        let measured = ["--baseline", "--master-pid", &pid];
        let run = bench(&server.address(), &[&args[..], &measured].concat());
        run.assert_good();
        for name in ["echo", "group_commit"] {
            let baseline = &run.json["baseline"][name];
            assert_eq!(baseline["acked"], 3000, "{mode} {baseline}");
            assert_eq!(baseline["lost"], 0, "{mode} {baseline}");
            assert_eq!(
                baseline["errors"],
                serde_json::json!({}),
                "{mode} {baseline}"
            );
            assert!(baseline["master"]["rss_kib"].as_u64().unwrap() > 0);
            assert!(baseline["ack_latency_ms"]["p99"].as_f64().unwrap() > 0.0);
            let (own, its) = (&run.json["rate_per_s"], &baseline["rate_per_s"]);
            let ratio = own.as_f64().unwrap() / its.as_f64().unwrap();
            let told = baseline["ratio"]["rate"].as_f64().unwrap();
            assert!((told / ratio - 1.0).abs() < 1e-6, "{told} {ratio}");
        }
    }
}

#[test]
fn a_bare_server_ends_with_its_parent() {
    for kind in ["echo", "group-commit", "connect-loop"] {
        let mut child = Command::new(PROGRAM)
            .args(["baseline-server", kind, "--log-directory"])
            .arg(std::env::temp_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(line.starts_with("127.0.0.1:"), "{line}");
        drop(child.stdin.take());
        let end = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let limit = Timespec::try_from(LIMIT).unwrap();
        let ended = poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&limit)) == Ok(1);
        if !ended {
            child.kill().unwrap();
        }
        assert!(ended, "{kind} lives on");
        assert!(child.wait().unwrap().success());
    }
}
