use std::fs;
use std::path::Path;

use rollcall_protocol::wire::Health;

use super::*;
use crate::check::child::tests::{Script, dies};

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);

fn job(name: &str, script: &Script, interval: Duration) -> Job {
    Job {
        name: name.to_owned(),
        program: script.program.clone(),
        interval,
        reading: Reading::Plugin,
    }
}

async fn next(results: &mut mpsc::Receiver<Check>) -> Check {
    timeout(LONG, results.recv()).await.unwrap().unwrap()
}

/// Waits for a result of that name and text.
async fn until(results: &mut mpsc::Receiver<Check>, name: &str, text: &str) {
    loop {
        let check = next(results).await;
        if check.name == name && check.text == text {
            return;
        }
    }
}

/// The most `+` that were ahead of the `-` at any time.
fn depth_max(log: &Path) -> i32 {
    let log = fs::read_to_string(log).unwrap();
    let depths = log.lines().scan(0, |depth, line| {
        *depth += if line == "+" { 1 } else { -1 };
        Some(*depth)
    });
    depths.max().unwrap()
}

#[tokio::test]
async fn no_more_than_the_permits_run_at_a_time() {
    let script = Script::new("echo + >> $DIR/log; sleep 0.1; echo - >> $DIR/log");
    let jobs = (0..6)
        .map(|i| job(&i.to_string(), &script, SHORT))
        .collect();
    let (sender, mut results) = mpsc::channel(1);
    let scheduler = Scheduler::start(jobs, 2, sender);
    for _ in 0..12 {
        next(&mut results).await;
    }
    scheduler.stop().await;
    assert_eq!(depth_max(&script.folder.path().join("log")), 2);
}

#[tokio::test]
async fn runs_of_one_check_never_overlap() {
    let script = Script::new("echo + >> $DIR/log; sleep 0.25; echo - >> $DIR/log");
    let (sender, mut results) = mpsc::channel(1);
    let scheduler = Scheduler::start(vec![job("a", &script, SHORT)], 4, sender);
    let begun = Instant::now();
    for _ in 0..3 {
        next(&mut results).await;
    }
    // At 0, 300 and 600 ms: the ticks in between are skipped, not made up for.
    assert!(
        begun.elapsed() >= Duration::from_millis(800),
        "{:?}",
        begun.elapsed()
    );
    scheduler.stop().await;
    assert_eq!(depth_max(&script.folder.path().join("log")), 1);
}

#[test]
fn missed_ticks_are_skipped_and_the_beat_is_kept() {
    let due = Instant::now();
    let next = |after_ms| {
        let now = due + Duration::from_millis(after_ms);
        (next_due(due, now, SHORT) - due).as_millis()
    };
    assert_eq!(
        [next(0), next(99), next(100), next(250)],
        [100, 100, 200, 300]
    );
    assert_eq!(next_due(due, due - SHORT, SHORT) - due, SHORT);
}

#[test]
fn first_runs_are_spread() {
    let spread =
        |interval| (0..4).map(move |i| stagger(Duration::from_secs(interval), i, 4).as_secs());
    assert!(spread(20).eq([0, 5, 10, 15]));
    assert!(spread(86_400).eq([0, 15, 30, 45]));
}

#[tokio::test]
async fn a_check_that_the_stop_has_killed_is_no_result() {
    let script = Script::new("echo $$ > $DIR/pid; exec sleep 1000");
    let (sender, mut results) = mpsc::channel(1);
    let scheduler = Scheduler::start(vec![job("a", &script, SHORT)], 4, sender);
    let pid = script.pid("pid").await;
    timeout(LONG, scheduler.stop()).await.unwrap();
    dies(pid).await;
    assert!(results.recv().await.is_none());
}

#[tokio::test]
async fn a_new_list_leaves_alone_what_stays() {
    let stays =
        Script::new("echo $$ > $DIR/pid; while [ ! -e $DIR/go ]; do sleep 0.01; done; echo stayed");
    let goes = Script::new("echo $$ > $DIR/pid; exec sleep 1000");
    let comes = Script::new("echo came");
    let (sender, mut results) = mpsc::channel(1);
    let old = vec![
        job("stays", &stays, SHORT),
        job("goes", &goes, SHORT),
        job("changes", &goes, LONG),
    ];
    let mut scheduler = Scheduler::start(old, 4, sender);
    let (_, gone) = (stays.pid("pid").await, goes.pid("pid").await);
    let new = vec![
        job("stays", &stays, SHORT),
        job("changes", &comes, SHORT),
        job("new", &comes, SHORT),
    ];
    scheduler.replace(new, 4);
    dies(gone).await;
    for name in ["changes", "new"] {
        until(&mut results, name, "came").await;
    }
    fs::write(stays.folder.path().join("go"), "").unwrap();
    until(&mut results, "stays", "stayed").await;
    scheduler.stop().await;
}

#[tokio::test]
async fn a_panic_is_told() {
    let (sender, _results) = mpsc::channel(1);
    let mut scheduler = Scheduler::start(Vec::new(), 1, sender);
    scheduler.tasks.spawn(async { panic!("a bug") });
    let error = timeout(LONG, scheduler.ended()).await.unwrap().unwrap_err();
    assert!(error.is_panic());
}

#[tokio::test]
async fn the_plugins_of_debian_run() {
    let folder = Path::new("/usr/lib/nagios/plugins");
    if !folder.join("check_dummy").exists() {
        eprintln!(
            "SKIPPED: no {}: install monitoring-plugins-basic",
            folder.display()
        );
        return;
    }
    let plugin = |name: &str, arguments: &[&str]| {
        let program = folder.join(name).display().to_string();
        let mut job = job(
            &format!("{name} {}", arguments.join(" ")),
            &Script::new(""),
            LONG,
        );
        job.program.argv = [program]
            .into_iter()
            .chain(arguments.iter().map(|argument| (*argument).to_owned()))
            .collect();
        job.interval = SHORT;
        job
    };
    let cases = [
        (
            plugin("check_dummy", &["0", "fine"]),
            Health::Ok,
            "OK: fine",
            "",
        ),
        (
            plugin("check_dummy", &["2", "broken"]),
            Health::Critical,
            "CRITICAL: broken",
            "",
        ),
        (
            plugin("check_load", &["-w", "9999", "-c", "9999"]),
            Health::Ok,
            "load average",
            "load1",
        ),
        (
            plugin("check_disk", &["-w", "0%", "-c", "0%", "-p", "/"]),
            Health::Ok,
            "DISK OK",
            "/",
        ),
        (
            plugin("check_procs", &["-c", "1:1"]),
            Health::Critical,
            "PROCS CRITICAL",
            "procs",
        ),
    ];
    for (job, state, words, metric) in cases {
        let (sender, mut results) = mpsc::channel(1);
        let scheduler = Scheduler::start(vec![job], 1, sender);
        let check = next(&mut results).await;
        scheduler.stop().await;
        assert_eq!(check.state(), state, "{check:?}");
        assert!(check.text.contains(words), "{check:?}");
        assert!(
            metric.is_empty() || check.metrics.iter().any(|found| found.name == metric),
            "{check:?}"
        );
    }
}
