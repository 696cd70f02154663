//! The real slave and the real master, from a probe's figure to the row on the roll.

use std::fs;
use std::path::Path;

use rollcall_e2e::skip::skip_loudly;
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Slave, wait_until};
use rollcall_protocol::api::{CheckRow, EventKind, Health, Mode, Presence, SlaveDetail};

const PLUGINS: &str = "/usr/lib/nagios/plugins";

fn pair(folder: &tempfile::TempDir, interval: &str) -> (Master, Slave) {
    let mut master = Master::new(folder.path(), "master");
    // Of an interval of 100 ms a busy machine takes more than the half that is usual.
    master
        .config
        .set("presence.late_after", 40.0)
        .set("presence.missing_after", 50.0);
    master.start();
    let slave = Slave::new(folder.path(), "web-1", &[master.address()], interval);
    (master, slave)
}

fn check<'a>(detail: &'a SlaveDetail, name: &str) -> &'a CheckRow {
    let found = detail.checks.iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no check {name} in {:#?}", detail.checks))
}

fn metric(check: &CheckRow, name: &str) -> f64 {
    let found = check.metrics.iter().find(|metric| metric.name == name);
    found
        .and_then(|metric| metric.value)
        .unwrap_or_else(|| panic!("no figure {name} in {check:#?}"))
}

fn proc(path: &str) -> String {
    fs::read_to_string(Path::new("/proc").join(path)).expect("a file of /proc")
}

#[test]
fn a_host_is_on_the_roll_at_once_with_its_real_figures() {
    let folder = tempfile::tempdir().expect("a folder");
    // Longer than anything is waited for here: the first report does not wait for it.
    let (master, mut slave) = pair(&folder, "1m");
    slave.config.set("labels.site", "north");
    slave.start();
    let row = master.wait_for_row("web-1", "up", |row| row.presence == Presence::Up);
    assert_eq!((row.interval_ms, row.mode), (60_000, Mode::Pooled));
    assert_eq!(
        (row.sequence, row.applied, row.duplicates, row.gaps),
        (1, 1, 0, 0)
    );
    assert_eq!(row.labels["site"], "north");
    assert!(
        row.health.is_some() && row.connected_since_ms.is_some(),
        "{row:#?}"
    );

    let detail = master.api().slave("web-1").expect("a row");
    assert!(!detail.agent_version.is_empty());
    let load = check(&detail, "load");
    let known: Vec<f64> = proc("loadavg")
        .split(' ')
        .take(3)
        .map(|figure| figure.parse().expect("a figure"))
        .collect();
    let seen = ["load1", "load5", "load15"].map(|name| metric(load, name));
    for (seen, known) in seen.iter().zip(&known) {
        assert!(
            (seen - known).abs() < 3.0,
            "{seen} is far from {known}: {load:#?}"
        );
    }
    for name in ["cpu", "memory", "swap", "uptime", "processes"] {
        let check = check(&detail, name);
        assert!(!check.text.is_empty(), "{check:#?}");
        assert_ne!(check.state, Health::Unknown, "{check:#?}");
    }
    let total_kib = proc("meminfo").lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()
    });
    let total: f64 = total_kib.map(|kib: f64| kib * 1024.0).expect("MemTotal");
    let memory = check(&detail, "memory");
    let figures: Vec<f64> = memory
        .metrics
        .iter()
        .filter_map(|metric| metric.value)
        .collect();
    assert!(
        figures.contains(&total),
        "no total of {total} in {memory:#?}"
    );
    let uptime: f64 = proc("uptime")
        .split(' ')
        .next()
        .and_then(|figure| figure.parse().ok())
        .expect("an uptime");
    let seen = check(&detail, "uptime");
    let near = |value: f64| (uptime - value).abs() < 30.0;
    assert!(
        seen.metrics
            .iter()
            .filter_map(|metric| metric.value)
            .any(near),
        "{seen:#?}"
    );
    assert!(
        detail
            .checks
            .iter()
            .any(|check| check.name.starts_with("disk:/")),
        "no file system in {:#?}",
        detail.checks
    );
}

#[test]
fn a_plugin_that_exits_2_turns_the_host_critical_with_its_text_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (master, mut slave) = pair(&folder, "200ms");
    let broken = folder.path().join("broken");
    let script = format!(
        "if test -e {}; then echo 'web is DOWN | time=9;1;5;0;10'; exit 2; fi; echo 'web is up | time=0.25s'",
        broken.display()
    );
    slave.add_check("web", &["/bin/sh", "-c", &script], "200ms");
    slave.start();
    let plugin = |state: Health| {
        wait_until(PATIENCE, &format!("the check to be {state:?}"), || {
            let detail = master.api().slave("web-1").ok()?;
            let web = detail.checks.iter().find(|check| check.name == "web")?;
            (web.state == state).then(|| (web.clone(), detail.row.health))
        })
    };
    let (web, before) = plugin(Health::Ok);
    assert_eq!((&*web.text, metric(&web, "time")), ("web is up", 0.25));
    assert_ne!(
        before,
        Some(Health::Critical),
        "the host itself is critical"
    );
    fs::write(&broken, "").expect("a file");
    let (web, health) = plugin(Health::Critical);
    assert_eq!(health, Some(Health::Critical));
    assert_eq!((&*web.text, metric(&web, "time")), ("web is DOWN", 9.0));
    fs::remove_file(&broken).expect("a file");
    let (web, health) = plugin(Health::Ok);
    assert_eq!((&*web.text, health), ("web is up", before));
    let changes = || {
        let mut events = master.api().events().ok()?;
        events.retain(|event| {
            event.kind == EventKind::Check && event.subject.as_deref() == Some("web")
        });
        Some(events)
    };
    let events = wait_until(PATIENCE, "the events of the check", || {
        changes().filter(|events| {
            events
                .iter()
                .any(|event| event.from.as_deref() == Some("critical"))
        })
    });
    let critical = events
        .iter()
        .find(|event| event.to.as_deref() == Some("critical"));
    let critical = critical.expect("an event");
    assert!(critical.text.contains("web is DOWN"), "{critical:#?}");
    assert!(!critical.replayed, "{critical:#?}");
}

#[test]
fn a_slave_that_is_stopped_has_left_and_one_that_is_killed_is_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (master, mut slave) = pair(&folder, "100ms");
    slave.start();
    master.wait_for_row("web-1", "up", |row| row.sequence >= 2);
    assert!(slave.terminate().success());
    let left = master.wait_for_row("web-1", "gone", |row| row.presence == Presence::Left);
    assert_eq!(
        (left.duplicates, left.gaps, left.applied),
        (0, 0, left.sequence)
    );
    master.wait_for_presences("web-1", &["up", "left"]);

    slave.start();
    let back = master.wait_for_row("web-1", "up again", |row| row.presence == Presence::Up);
    assert_ne!(back.stream, left.stream, "a new process has a new stream");
    master.wait_for_row("web-1", "reporting", |row| row.sequence >= 2);
    slave.kill_and_wait();
    // Late before that, for no longer than a busy machine may take between two looks: the events tell.
    let missing = master.wait_for_row("web-1", "missing", |row| row.presence == Presence::Missing);
    assert!(missing.health.is_some(), "it keeps its last health");

    slave.start();
    let again = master.wait_for_row("web-1", "up again", |row| {
        row.presence == Presence::Up && row.stream != missing.stream && row.sequence >= 2
    });
    assert!(again.applied >= missing.applied + 2, "{again:#?}");
    assert_eq!((again.duplicates, again.gaps), (0, 0), "{again:#?}");
    master.wait_for_presences("web-1", &["up", "left", "up", "late", "missing", "up"]);
}

/// While the master is down, the slave's reports go to its spool; then they all arrive, in order,
/// each once. Both modes.
#[test]
fn reports_of_an_outage_arrive_once_it_is_over() {
    for mode in ["pooled", "per-message"] {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut master, mut slave) = pair(&folder, "100ms");
        slave.config.set("connection.mode", mode);
        slave.start();
        let before = master.wait_for_row("web-1", "up", |row| row.sequence >= 3);
        assert_eq!(before.mode == Mode::PerMessage, mode == "per-message");
        master.kill_and_wait();
        let event = if mode == "pooled" {
            "session_lost"
        } else {
            "master_unreachable"
        };
        slave.wait_for_event(event);
        slave.wait_for_spooled(20);
        master.start();
        let target = before.sequence + 20;
        master.wait_for_row("web-1", "caught up", |row| row.sequence >= target);
        assert!(slave.terminate().success());
        let row = master.wait_for_row("web-1", "gone", |row| row.presence == Presence::Left);
        assert_eq!(
            (row.applied, row.gaps),
            (row.sequence, 0),
            "{mode}: {row:#?}"
        );
        assert_eq!(row.stream, before.stream, "{mode}: the same process");
        // Nobody is blamed for the outage.
        master.wait_for_presences("web-1", &["up", "left"]);
        // Nothing is left in the spool for the next start.
        assert!(slave.log().events("backlog_kept").is_empty(), "{mode}");
    }
}

/// What a killed slave had spooled is sent by its successor.
#[test]
fn a_spool_outlives_a_kill_of_the_slave() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut master, mut slave) = pair(&folder, "100ms");
    slave.start();
    let before = master.wait_for_row("web-1", "up", |row| row.sequence >= 3);
    master.kill_and_wait();
    slave.wait_for_spooled(10);
    slave.kill_and_wait();
    slave.start();
    let ready = slave.wait_for_event("slave_ready");
    let backlog = ready.number("backlog").expect("a number");
    assert!(backlog >= 10, "{ready:?}");
    master.start();
    let row = master.wait_for_row("web-1", "caught up", |row| {
        row.stream != before.stream && row.applied >= before.applied + backlog
    });
    assert!(
        row.applied >= before.sequence + backlog - 1 + row.sequence,
        "{row:#?}"
    );
    assert_eq!(row.gaps, 0, "{row:#?}");
    assert!(slave.terminate().success());
}

#[test]
fn the_second_master_is_used_while_the_first_is_down() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = Master::new(folder.path(), "first");
    let mut second = Master::new(folder.path(), "second");
    second.start();
    let masters = [first.address(), second.address()];
    let mut slave = Slave::new(folder.path(), "web-1", &masters, "200ms");
    slave.config.set("connection.return_after", "1s");
    slave.start();
    second.wait_for_row("web-1", "up", |row| row.sequence >= 2);
    // The preferred one is back, and so is the slave.
    first.start();
    let row = first.wait_for_row("web-1", "up", |row| {
        row.presence == Presence::Up && row.sequence > 2
    });
    assert!(
        row.applied < row.sequence,
        "the second one has the first reports: {row:#?}"
    );
    first.kill_and_wait();
    let seen = second.wait_for_row("web-1", "known", |_| true).sequence;
    let row = second.wait_for_row("web-1", "up again", |row| row.sequence > seen + 2);
    assert!(
        row.gaps > 0,
        "what only the first one has is told as a gap: {row:#?}"
    );
    assert_eq!(row.applied + row.gaps, row.sequence, "{row:#?}");
    assert!(slave.terminate().success());
}

/// Real plugins of Debian's monitoring-plugins-basic.
#[test]
fn real_plugins_report() {
    let plugins: [(&str, &[&str]); 5] = [
        (
            "check_load",
            &["-w", "1000,1000,1000", "-c", "2000,2000,2000"],
        ),
        ("check_disk", &["-w", "1", "-c", "1", "-p", "/"]),
        ("check_procs", &["-w", "1:", "-c", "1:"]),
        ("check_users", &["-w", "10000", "-c", "20000"]),
        ("check_dummy", &["1", "a warning by order"]),
    ];
    let path = |plugin: &str| format!("{PLUGINS}/{plugin}");
    if let Some((plugin, _)) = plugins
        .iter()
        .find(|(plugin, _)| !Path::new(&path(plugin)).exists())
    {
        let why = format!(
            "there is no {}; install monitoring-plugins-basic",
            path(plugin)
        );
        return skip_loudly("real check plugins", &why);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (master, mut slave) = pair(&folder, "500ms");
    for (plugin, arguments) in &plugins {
        let program = path(plugin);
        let command: Vec<&str> = std::iter::once(&*program)
            .chain(arguments.iter().copied())
            .collect();
        slave.add_check(plugin, &command, "1s");
    }
    slave.start();
    let detail = wait_until(PATIENCE, "a result of each plugin", || {
        let detail = master.api().slave("web-1").ok()?;
        let has = |plugin: &str| {
            detail
                .checks
                .iter()
                .any(|check| check.name == plugin && check.time_ms > 0)
        };
        plugins
            .iter()
            .all(|(plugin, _)| has(plugin))
            .then_some(detail)
    });
    for (plugin, _) in &plugins {
        let check = check(&detail, plugin);
        let expected = if *plugin == "check_dummy" {
            Health::Warning
        } else {
            Health::Ok
        };
        assert_eq!(check.state, expected, "{check:#?}");
    }
    assert!(
        check(&detail, "check_dummy")
            .text
            .contains("a warning by order")
    );
    assert!(metric(check(&detail, "check_load"), "load1") >= 0.0);
    assert!(metric(check(&detail, "check_disk"), "/") > 0.0);
    assert!(metric(check(&detail, "check_procs"), "procs") >= 2.0);
    assert_eq!(detail.row.health, Some(Health::Warning));
    assert!(slave.terminate().success());
}
