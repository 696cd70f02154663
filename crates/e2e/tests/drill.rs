//! `rollcall drill`: it passes where all is well, and does not where something is wrong.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Daemon, binaries, wait_until};
use rustix::process::Signal;
use serde_json::Value;

/// How long a drill may take beyond its time: everything is delivered in the end.
const LIMIT: Duration = Duration::from_secs(180);
/// The keys of `--json`: they stay.
const KEYS: [&str; 24] = [
    "acked",
    "acked_unstored",
    "altered",
    "baseless_acks",
    "blackout_ms",
    "changes",
    "doubled",
    "false_alarms",
    "faults",
    "interrupted",
    "load_ms",
    "lost",
    "passed",
    "reordered",
    "resent",
    "restarts",
    "rows_wrong",
    "seed",
    "sent",
    "settled",
    "slaves",
    "stored",
    "unspooled",
    "version",
];

/// A drill that was run to its end: its exit code and its verdict.
fn drill(program: &Path, folder: &Path, arguments: &[&str]) -> (Option<i32>, Value) {
    let directory = folder.join("drill");
    let directory = directory.to_string_lossy();
    let fixed = ["drill", "--json", "--dir", &directory];
    let arguments = fixed.iter().chain(arguments);
    let mut drill = Daemon::spawn("drill", program, arguments, folder);
    let status = drill.wait(LIMIT);
    let verdict = serde_json::from_str(&drill.log().text());
    let verdict = verdict.unwrap_or_else(|error| panic!("{error}: {}", drill.stderr()));
    (status.code(), verdict)
}

fn number(verdict: &Value, pointer: &str) -> u64 {
    let number = verdict.pointer(pointer).and_then(Value::as_u64);
    number.unwrap_or_else(|| panic!("no {pointer} in {verdict:#}"))
}

#[test]
fn a_short_drill_passes_and_has_done_something() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = binaries::path(binaries::CLI);
    let arguments = [
        "--slaves", "6", "--for", "6s", "--every", "400ms", "--seed", "11",
    ];
    let (code, verdict) = drill(&program, folder.path(), &arguments);
    assert_eq!(code, Some(0), "{verdict:#}");
    let keys: BTreeSet<_> = verdict.as_object().expect("an object").keys().collect();
    assert_eq!(
        keys,
        KEYS.map(str::to_owned).iter().collect(),
        "{verdict:#}"
    );
    let sent = number(&verdict, "/sent");
    assert!(sent > 100, "{verdict:#}");
    for pointer in ["/acked", "/stored"] {
        assert_eq!(number(&verdict, pointer), sent, "{verdict:#}");
    }
    for pointer in ["/lost", "/doubled", "/reordered", "/false_alarms/missing"] {
        assert_eq!(number(&verdict, pointer), 0, "{verdict:#}");
    }
    for pointer in [
        "/restarts/master/killed",
        "/restarts/slaves/killed",
        "/blackout_ms/killed/count",
        "/blackout_ms/killed/max",
        "/changes/made",
    ] {
        assert!(number(&verdict, pointer) > 0, "{pointer}: {verdict:#}");
    }
}

#[test]
fn a_signal_ends_it_with_a_verdict_on_what_was_seen() {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path().join("drill");
    let program = binaries::path(binaries::CLI);
    let text = directory.to_string_lossy();
    let arguments = ["drill", "--slaves", "2", "--for", "10m", "--dir", &text];
    let mut drill = Daemon::spawn("drill", &program, arguments, folder.path());
    wait_until(PATIENCE, "the drill to begin", || {
        drill
            .log()
            .text()
            .contains("up      2 slaves")
            .then_some(())
    });
    drill.signal(Signal::INT);
    let status = drill.wait(LIMIT);
    let text = drill.log().text();
    assert_eq!(status.code(), Some(0), "{text} {}", drill.stderr());
    assert!(text.contains("stopped"), "{text}");
    assert!(text.contains("PASSED: nothing was lost"), "{text}");
}

/// A copy of the programs in which some daemons are replaced by scripts, each of which does harm
/// before it becomes the real one.
fn with_harmful(folder: &Path, harms: &[(&str, &str)]) -> PathBuf {
    for name in [binaries::CLI, binaries::MASTER, binaries::SLAVE] {
        let real = binaries::path(name);
        let copy = folder.join(name);
        let harm = harms.iter().find(|(program, _)| *program == name);
        let source = if let Some((_, harm)) = harm {
            let script = format!("#!/bin/sh\n{harm}\nexec {} \"$@\"\n", real.display());
            let path = folder.join(format!("{name}.sh"));
            fs::write(&path, script).expect("a script");
            path
        } else {
            real
        };
        binaries::install(&source, &copy);
    }
    folder.join(binaries::CLI)
}

#[test]
fn a_master_that_forgets_what_it_has_acked_is_found_out() {
    let folder = tempfile::tempdir().expect("a folder");
    // Of its command line the last word is the configuration, beside which its state lies.
    let harm = "for last; do :; done; rm -f \"${last%/*}\"/state/master.db*";
    let program = with_harmful(folder.path(), &[(binaries::MASTER, harm)]);
    let arguments = [
        "--slaves", "3", "--for", "4s", "--every", "400ms", "--kill", "master", "--seed", "5",
    ];
    let (code, verdict) = drill(&program, folder.path(), &arguments);
    assert_eq!(code, Some(1), "{verdict:#}");
    assert_eq!(verdict["passed"], false, "{verdict:#}");
    assert!(number(&verdict, "/lost") > 0, "{verdict:#}");
}

#[test]
fn slaves_that_forget_what_is_not_acked_are_found_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let forget = "for last; do :; done; rm -f \"${last%/*}\"/state/spool.db*";
    // A master that is slow to come back leaves every slave with reports that are not acked, so that
    // those who die meanwhile have something to forget, however quick the machine is.
    let harms = [(binaries::SLAVE, forget), (binaries::MASTER, "sleep 0.5")];
    let program = with_harmful(folder.path(), &harms);
    let arguments = [
        "--slaves",
        "8",
        "--for",
        "6s",
        "--every",
        "150ms",
        "--interval",
        "10ms",
        "--seed",
        "5",
    ];
    let (code, verdict) = drill(&program, folder.path(), &arguments);
    assert_eq!(code, Some(1), "{verdict:#}");
    assert!(number(&verdict, "/lost") > 0, "{verdict:#}");
    for pointer in ["/doubled", "/acked_unstored"] {
        assert_eq!(
            number(&verdict, pointer),
            0,
            "the master is a good one: {verdict:#}"
        );
    }
}
