//! `rollcall lab`: each failure happens and is cured on this machine, and what does not turn out as
//! expected is said.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rollcall_e2e::skip::{require_root_or_skip_loudly, skip_loudly};
use rollcall_e2e::{Namespace, binaries};
use rustix::process::geteuid;
use serde_json::Value;

const EXPERIMENTS: [&str; 8] = [
    "98-server-closed-first",
    "98-another-listener",
    "98-source-port-taken",
    "99-connect-loop",
    "99-bound-source",
    "linger-loses-data",
    "time-wait-assassination",
    "same-port-many-addresses",
];

fn lab(arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(binaries::path(binaries::CLI));
    command.args(["lab", "--json"]).args(arguments);
    run(&mut command)
}

fn run(command: &mut Command) -> (Option<i32>, Value) {
    let output = command.output().expect("the program can be started");
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), report)
}

/// Runs one experiment, and returns its facts and whether it had a namespace of its own; nothing if
/// it can't be run here, which is said.
fn facts(name: &str) -> Option<(Value, bool)> {
    let (code, report) = lab(&[name]);
    let is_own = report["arena"] != "host";
    let tale = &report["experiments"][0];
    assert_eq!(tale["name"], name, "{report:#}");
    assert_eq!(
        (code, &report["passed"]),
        (Some(0), &true.into()),
        "{report:#}"
    );
    if tale["verdict"] == "not_run" {
        skip_loudly(name, "it takes root, or user namespaces");
        return None;
    }
    assert_eq!(tale["verdict"], "as_expected", "{report:#}");
    Some((tale["facts"].clone(), is_own))
}

#[track_caller]
fn assert_facts(facts: &Value, wanted: &[(&str, u64)]) {
    for (name, value) in wanted {
        assert_eq!(facts[name], *value, "{name} in {facts:#}");
    }
}

#[test]
fn a_server_that_closed_first_gets_98_and_is_cured_by_reuseaddr_on_both_starts() {
    if let Some((facts, _)) = facts("98-server-closed-first") {
        assert_eq!(facts["cause"], "connections_of_a_listener", "{facts:#}");
        assert_facts(
            &facts,
            &[
                ("time_wait", 1),
                ("restart_errno", 98),
                ("restart_with_reuse_errno", 98),
                ("cured_beside_time_wait", 1),
            ],
        );
    }
}

#[test]
fn another_listener_gives_98_and_reuseport_loses_clients() {
    if let Some((facts, _)) = facts("98-another-listener") {
        assert_eq!(facts["cause"], "listener", "{facts:#}");
        assert_facts(&facts, &[("errno", 98), ("reuse_port_clients", 60)]);
        let reset = facts["reuse_port_reset"].as_u64().expect("a number");
        assert!((1..60).contains(&reset), "{facts:#}");
    }
}

#[test]
fn a_source_port_gives_98_and_a_reserved_one_does_not() {
    if let Some((facts, is_own)) = facts("98-source-port-taken") {
        assert_eq!(facts["cause"], "outgoing_connection", "{facts:#}");
        assert_facts(
            &facts,
            &[("established_errno", 98), ("time_wait_errno", 98)],
        );
        if is_own {
            assert_facts(&facts, &[("connected_beside_reserved", 98)]);
        }
    }
}

#[test]
fn a_loop_gets_99_and_none_when_the_server_closes_first() {
    if let Some((facts, is_own)) = facts("99-connect-loop") {
        assert_facts(
            &facts,
            &[
                ("server_first_connections", 1000),
                ("server_first_client_time_wait", 0),
            ],
        );
        if is_own {
            assert_facts(
                &facts,
                &[
                    ("connections_before_failure", 100),
                    ("errno", 99),
                    ("client_time_wait", 100),
                ],
            );
        }
    }
}

#[test]
fn a_bound_source_gets_98_and_99_and_neither_without_a_port() {
    if let Some((facts, is_own)) = facts("99-bound-source") {
        assert_facts(
            &facts,
            &[
                ("fixed_port_errno", 98),
                ("open_errno", 99),
                ("server_first_connections", 100),
            ],
        );
        if is_own {
            assert_facts(
                &facts,
                &[
                    ("without_timestamps_errno", 99),
                    ("with_timestamps_connections", 100),
                    ("bound_connections", 97),
                    ("bound_other_errno", 98),
                    ("no_port_connections", 2 * 97),
                ],
            );
        }
    }
}

#[test]
fn an_abortive_close_loses_what_has_not_arrived_and_nothing_after_the_answer() {
    if let Some((facts, _)) = facts("linger-loses-data") {
        let bytes = |name: &str| facts[name].as_u64().expect("a number");
        assert!(
            bytes("aborted_read_bytes") < bytes("aborted_written_bytes"),
            "{facts:#}"
        );
        assert_eq!(
            bytes("closed_read_bytes"),
            bytes("closed_written_bytes"),
            "{facts:#}"
        );
        assert_facts(
            &facts,
            &[
                ("aborted_after_answer", 1000),
                ("aborted_after_answer_time_wait", 0),
            ],
        );
    }
}

#[test]
fn a_stray_packet_ends_time_wait_unless_rfc1337_is_on() {
    if let Some((facts, _)) = facts("time-wait-assassination") {
        assert_facts(
            &facts,
            &[("time_wait_after_with_0", 0), ("time_wait_after_with_1", 1)],
        );
    }
}

#[test]
fn a_port_is_one_of_an_address() {
    if let Some((facts, _)) = facts("same-port-many-addresses") {
        assert_facts(
            &facts,
            &[("wildcard_errno", 98), ("connections", 400), ("ports", 100)],
        );
    }
}

#[test]
fn the_list_has_every_experiment_and_needs_nothing() {
    let (code, listed) = lab(&["--list"]);
    let names: Vec<_> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!(code, Some(0));
    assert_eq!(names, EXPERIMENTS);
}

/// What can be shown without any privilege, where there are no namespaces to be had.
#[test]
fn a_host_without_namespaces_shows_all_but_one() {
    let show = || lab(&["--on-host", "--all"]);
    // As root a host of its own, whose ports no other test takes.
    let own = geteuid()
        .is_root()
        .then(|| Namespace::new_or_skip_loudly("a host of its own"));
    let (code, report) = own.flatten().map_or_else(show, |host| host.run(show));
    assert_eq!(
        (code, &report["arena"]),
        (Some(0), &"host".into()),
        "{report:#}"
    );
    for tale in report["experiments"].as_array().expect("a list") {
        let wanted = match tale["name"] == "time-wait-assassination" {
            true => "not_run",
            false => "as_expected",
        };
        assert_eq!(tale["verdict"], wanted, "{tale:#}");
    }
}

/// A user without any privilege has namespaces too, where the host gives them to users.
#[test]
fn a_user_needs_no_root_where_user_namespaces_are_allowed() {
    const NOBODY: u32 = 65_534;
    if !require_root_or_skip_loudly("the lab as another user") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join(binaries::CLI);
    binaries::install(&binaries::path(binaries::CLI), &program);
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("a readable folder");
    let by_nobody = |program: &Path| {
        let mut command = Command::new(program);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    };
    let tried = by_nobody(Path::new("unshare"))
        .args(["--user", "--map-root-user", "--net", "true"])
        .status();
    let arena = match tried.is_ok_and(|status| status.success()) {
        true => "user_namespace",
        false => "host",
    };
    let (code, report) = run(by_nobody(&program).args(["lab", "--json", "--all"]));
    assert_eq!(
        (code, &report["arena"]),
        (Some(0), &arena.into()),
        "{report:#}"
    );
}

/// In a namespace whose loopback is down nothing turns out as expected.
#[test]
fn what_is_not_as_expected_is_said_and_ends_with_code_1() {
    let within = |program: &Path| {
        let mut command = Command::new("unshare");
        command.arg("--net");
        if !geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.arg(program);
        command
    };
    let tried = within(Path::new("true")).status();
    if !tried.is_ok_and(|status| status.success()) {
        skip_loudly(
            "the lab without a network",
            "unshare(1) makes no namespace here",
        );
        return;
    }
    let mut command = within(&binaries::path(binaries::CLI));
    command.args(["lab", "--json", "--on-host", "99-connect-loop"]);
    let (code, report) = run(&mut command);
    assert_eq!(
        (code, &report["passed"]),
        (Some(1), &false.into()),
        "{report:#}"
    );
    assert_eq!(
        report["experiments"][0]["verdict"], "unexpected",
        "{report:#}"
    );
}
