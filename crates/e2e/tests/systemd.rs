//! The units on a booted systemd: what it shows, and what becomes of the daemons under its commands.

use std::time::Duration;

use rollcall_e2e::binaries::{self, BENCH};
use rollcall_e2e::machine::{Machine, packages};
use rollcall_e2e::{source, wait_until};
use rollcall_os::clock;
use serde_json::Value;

/// systemd has many things to do, and this machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);
const SLAVE_CONFIG: &[u8] = b"name = \"web-1\"\ninterval = \"500ms\"\n";
const MASTER: &str = "rollcall-master.service";
const SLAVE: &str = "rollcall-slave.service";

fn boot(name: &str) -> Option<Machine> {
    let machine = Machine::boot_or_skip_loudly(name)?;
    machine.write("/etc/rollcall/slave.toml", SLAVE_CONFIG);
    machine.install();
    Some(machine)
}

/// The slave's row.
fn slave(machine: &Machine) -> Option<Value> {
    let (succeeded, said) = machine.try_run("rollcall ls --json");
    let roll: Value = succeeded.then(|| serde_json::from_str(&said).ok())??;
    roll["slaves"].get(0).cloned()
}

/// Waits for a report that came after now.
fn wait_for_report(machine: &Machine) -> Value {
    let applied = |row: &Value| row["applied"].as_u64();
    let before = slave(machine).as_ref().and_then(applied);
    wait_until(PATIENCE, "another report", || {
        slave(machine).filter(|row| row["presence"] == "up" && applied(row) > before)
    })
}

/// Changes of presence since the start.
fn presences(machine: &Machine) -> Vec<String> {
    machine
        .run("rollcall events --kind presence --json -n 1000")
        .lines()
        .map(|line| {
            let event: Value = serde_json::from_str(line).expect("an event is JSON");
            format!("{} -> {}", event["from"], event["to"])
        })
        .collect()
}

#[track_caller]
fn wait_for_status(machine: &Machine, unit: &str, words: &str) {
    wait_until(PATIENCE, words, || {
        let (_, said) = machine.try_run(&format!("systemctl status {unit}"));
        said.contains(words).then_some(())
    });
}

/// Waits until another process is the unit's.
#[track_caller]
fn wait_for_successor(machine: &Machine, unit: &str, before: &str) -> String {
    wait_until(PATIENCE, "a successor", || {
        let pid = machine.property(unit, "MainPID");
        let active = machine.property(unit, "ActiveState") == "active";
        (active && pid != "0" && pid != before).then_some(pid)
    })
}

/// The entries of the journal that match, as objects.
fn journal(machine: &Machine, matches: &str) -> Vec<Value> {
    machine
        .run(&format!("journalctl --no-pager -o json {matches}"))
        .lines()
        .map(|line| serde_json::from_str(line).expect("an entry is JSON"))
        .collect()
}

#[test]
fn status_reload_and_journal_tell_what_the_daemons_do() {
    let Some(machine) = boot("status_reload_and_journal_tell_what_the_daemons_do") else {
        return;
    };
    wait_for_report(&machine);
    let status = "Status: \"roll 1: 1 up, 0 late, 0 missing; 2 reports/s\"";
    wait_for_status(&machine, MASTER, status);
    let status = "Status: \"web-1: reports to 127.0.0.1:7412; backlog 0\"";
    wait_for_status(&machine, SLAVE, status);

    for unit in [MASTER, SLAVE] {
        let pid = machine.property(unit, "MainPID");
        machine.run(&format!("systemctl reload {unit}"));
        wait_until(PATIENCE, "the reload", || {
            let told = journal(&machine, &format!("-u {unit} EVENT=reloaded"));
            (!told.is_empty()).then_some(())
        });
        assert_eq!(machine.property(unit, "MainPID"), pid);
        wait_until(PATIENCE, "the unit to be active again", || {
            (machine.property(unit, "ActiveState") == "active").then_some(())
        });
    }

    let told = journal(&machine, &format!("-u {MASTER} SLAVE=web-1"));
    let enrolled = told.iter().find(|entry| entry["EVENT"] == "slave_enrolled");
    let enrolled = enrolled.expect("the slave's enrolment is in the journal");
    assert_eq!(enrolled["PRIORITY"], "6");
    assert_eq!(enrolled["SYSLOG_IDENTIFIER"], "rollcall-master");
    let message = enrolled["MESSAGE"].as_str().unwrap();
    assert!(message.contains("slave=web-1"), "{message}");

    machine.run(&format!("systemctl stop {SLAVE}"));
    // An interval later: a slave that is only restarted is no event.
    wait_until(PATIENCE, "the slave to have left", || {
        let row = slave(&machine)?;
        (row["presence"] == "left").then_some(())
    });
}

#[test]
fn no_end_of_the_master_is_an_event_of_its_slaves() {
    let Some(machine) = boot("no_end_of_the_master_is_an_event_of_its_slaves") else {
        return;
    };
    wait_for_report(&machine);
    let mut pid = machine.property(MASTER, "MainPID");
    let before = presences(&machine);

    machine.run(&format!("systemctl restart {MASTER}"));
    pid = wait_for_successor(&machine, MASTER, &pid);
    wait_for_report(&machine);

    // More often than systemd's own limit of starts would allow.
    for _ in 0..6 {
        machine.run(&format!("kill -KILL {pid}"));
        pid = wait_for_successor(&machine, MASTER, &pid);
    }
    wait_for_report(&machine);

    let watchdog = b"[Service]\nWatchdogSec=2s\n";
    machine.write(
        "/etc/systemd/system/rollcall-master.service.d/watchdog.conf",
        watchdog,
    );
    machine.run(&format!(
        "systemctl daemon-reload; systemctl restart {MASTER}"
    ));
    pid = wait_for_successor(&machine, MASTER, &pid);
    wait_for_report(&machine);
    // It is fed: this is longer than its time.
    let is_bitten = || (machine.property(MASTER, "MainPID") != pid).then_some(());
    let bitten = rollcall_e2e::wait::watch_for(Duration::from_secs(5), is_bitten);
    assert_eq!(bitten, None, "the watchdog has bitten a master that works");
    machine.run(&format!("kill -STOP {pid}"));
    wait_for_successor(&machine, MASTER, &pid);
    let told = machine.run(&format!("journalctl --no-pager -u {MASTER}"));
    assert!(told.contains("Watchdog timeout"), "{told}");
    let row = wait_for_report(&machine);

    assert_eq!(presences(&machine), before);
    assert_eq!(row["gaps"], 0, "{row}");
    assert_eq!(row["duplicates"], 0, "{row}");
    // Its one connection has outlived nine processes.
    assert_eq!(row["reconnects"], 0, "{row}");
    assert!(journal(&machine, &format!("-u {SLAVE} EVENT=master_goodbye")).is_empty());

    // A stop for good is another thing: the slave is told.
    machine.run(&format!("systemctl stop {MASTER}"));
    wait_until(PATIENCE, "the goodbye", || {
        let told = journal(&machine, &format!("-u {SLAVE} EVENT=master_goodbye"));
        (!told.is_empty()).then_some(())
    });
    machine.run(&format!("systemctl start {MASTER}"));
    wait_for_report(&machine);
    assert_eq!(presences(&machine), before);
}

#[test]
fn units_are_sound_and_sandboxed() {
    let Some(machine) = boot("units_are_sound_and_sandboxed") else {
        return;
    };
    // It exits with 0 on many faults: any word of it is one.
    let units = "rollcall-master.service rollcall-master.socket rollcall-slave.service rollcall-slave@a.service";
    let said = machine.run(&format!("systemd-analyze verify --man=no {units}"));
    assert_eq!(said, "");
    for (unit, exposure_max) in [(MASTER, 1.1), (SLAVE, 1.7)] {
        let said = machine.run(&format!("systemd-analyze security --no-pager {unit}"));
        let words = format!("Overall exposure level for {unit}: ");
        let (_, level) = said.split_once(&words).expect("it has a verdict");
        let level = level.split_whitespace().next().unwrap();
        let level: f64 = level.parse().unwrap();
        assert!(level <= exposure_max, "{unit}: {level}\n{said}");
    }
}

#[test]
fn a_socket_unit_listens_while_the_master_is_away() {
    let name = "a_socket_unit_listens_while_the_master_is_away";
    let Some(machine) = boot(name) else {
        return;
    };
    wait_for_report(&machine);
    machine.run(
        "systemctl stop rollcall-master.service
         systemctl start rollcall-master.socket",
    );
    // Whoever connects starts it: the slave does.
    wait_for_successor(&machine, MASTER, "0");
    wait_for_report(&machine);
}

/// A fleet outlives whatever systemd does with the master: no connection breaks, nothing is lost, and nobody
/// is overdue. `ROLLCALL_FLEET` is its size (1000).
#[test]
fn a_fleet_outlives_restarts_and_kills_of_the_master() {
    const REPORTING_S: u64 = 60;
    const DISTURBED: Duration = Duration::from_secs(40);
    let Some(machine) = boot("a_fleet_outlives_restarts_and_kills_of_the_master") else {
        return;
    };
    let size = std::env::var("ROLLCALL_FLEET").unwrap_or_else(|_| "1000".to_owned());
    let slaves: usize = size.parse().expect("ROLLCALL_FLEET is a number");
    machine.run(&format!("systemctl stop {SLAVE}"));
    let bench = std::fs::read(binaries::path(BENCH)).expect("the bench can be read");
    machine.write("/usr/bin/rollcall-bench", &bench);
    machine.run(&format!(
        "chmod 755 /usr/bin/rollcall-bench
         systemd-run --quiet --unit=fleet --property=RemainAfterExit=yes --property=LimitNOFILE=65536 \\
             rollcall-bench --master 127.0.0.1:7412 --slaves {slaves} --rate 0.5 --duration {REPORTING_S}s"
    ));
    wait_until(PATIENCE, "the fleet to report", || {
        let up = machine.run("rollcall ls --presence up --json");
        (up.matches("\"name\"").count() == slaves).then_some(())
    });

    let begun = clock::boot();
    let mut rounds = 0;
    while clock::boot().saturating_since(begun) < DISTURBED {
        let mut pid = machine.property(MASTER, "MainPID");
        machine.run(&format!("systemctl restart {MASTER}"));
        pid = wait_for_successor(&machine, MASTER, &pid);
        machine.run(&format!("kill -KILL {pid}"));
        wait_for_successor(&machine, MASTER, &pid);
        machine.run("systemctl daemon-reexec");
        rounds += 1;
    }
    assert!(rounds > 2, "only {rounds} rounds in {DISTURBED:?}");
    wait_until(PATIENCE, "the fleet to end", || {
        (machine.property("fleet.service", "SubState") != "running").then_some(())
    });
    let said = machine.run("journalctl --no-pager -u fleet -o cat");
    // It ends with 0 only if every report was acked on the connection that it was sent on.
    assert_eq!(
        machine.property("fleet.service", "Result"),
        "success",
        "{said}"
    );
    let overdue = machine.run(
        "rollcall events --kind presence --json -n 10000 | jq -c 'select(.to == \"late\" or .to == \"missing\")'",
    );
    assert_eq!(overdue, "", "{said}");
    // What had been committed and not yet consumed when the master was killed is read again, and
    // counted as a duplicate instead of being applied again.
    let counted = machine.run(
        "rollcall ls --json | jq -c '[.slaves[] | select(.name != \"web-1\")] | [(map(.applied) | add), (map(.gaps) | add), (map(.reconnects) | add)]'",
    );
    let acked = |line: &str| {
        line.trim()
            .strip_prefix("reports acked")?
            .trim()
            .parse()
            .ok()
    };
    let acked: u64 = said.lines().find_map(acked).expect("a number of reports");
    let planned = u64::try_from(slaves).expect("a small number") * REPORTING_S / 2;
    assert!(acked + planned / 100 > planned, "{said}");
    assert_eq!(counted.trim(), format!("[{acked},0,0]"), "{said}");
}

#[test]
fn packages_start_restart_keep_and_purge() {
    let name = "packages_start_restart_keep_and_purge";
    if packages().is_none() {
        eprintln!("NOT TESTED {name}: ROLLCALL_E2E_PACKAGES names no packages");
        return;
    }
    let Some(machine) = boot(name) else {
        return;
    };
    for unit in [MASTER, SLAVE] {
        assert_eq!(
            machine.run(&format!("systemctl is-enabled {unit}")),
            "enabled\n"
        );
        assert_eq!(
            machine.run(&format!("systemctl is-active {unit}")),
            "active\n"
        );
    }
    wait_for_report(&machine);
    let before = presences(&machine);
    let pid = machine.property(MASTER, "MainPID");
    machine.run("dpkg --install --force-confold rollcall-master_*.deb");
    wait_for_successor(&machine, MASTER, &pid);
    let row = wait_for_report(&machine);
    assert_eq!(row["reconnects"], 0, "{row}");
    assert_eq!(presences(&machine), before);

    for file in [
        "/usr/share/man/man8/rollcall-master.8*",
        "/usr/share/man/man1/rollcall-ls.1*",
        "/usr/share/bash-completion/completions/rollcall",
        "/usr/share/zsh/vendor-completions/_rollcall-slave",
    ] {
        // Debian's smallest variant leaves no documents out.
        machine.run(&format!("ls {file}"));
    }

    machine.run("dpkg --remove rollcall-master rollcall-slave");
    assert!(!machine.try_run("systemctl is-active rollcall-master").0);
    machine.run("test -e /var/lib/rollcall-master/master.db; test -e /etc/rollcall/master.toml");
    machine.run("dpkg --purge rollcall-master rollcall-slave");
    machine.run("! test -e /var/lib/rollcall-master; ! test -e /etc/rollcall");
}

/// Each `sh` block of docs/operations.md, in order, on one machine.
#[test]
fn every_command_of_the_operations_guide_works() {
    let name = "every_command_of_the_operations_guide_works";
    if packages().is_none() {
        eprintln!("NOT TESTED {name}: ROLLCALL_E2E_PACKAGES names no packages");
        return;
    }
    let Some(machine) = Machine::boot_or_skip_loudly(name) else {
        return;
    };
    machine.bring_packages();
    let guide = std::fs::read_to_string(source::root().join("docs/operations.md")).unwrap();
    let blocks: Vec<_> = guide
        .split("\n```sh\n")
        .skip(1)
        .map(|block| block.split_once("\n```").expect("the block ends").0)
        .collect();
    assert!(blocks.len() > 10, "there are {} blocks", blocks.len());
    for block in blocks {
        let said = machine.run(block);
        for fault in ["jq: error", "not found", "could not be found"] {
            assert!(!said.contains(fault), "{block}\nsaid: {said}");
        }
        // What is shown next must be there to be shown.
        for unit in ["rollcall-slave", "rollcall-slave@web-2"] {
            let active = machine.property(unit, "ActiveState") == "active";
            if active && machine.property(MASTER, "ActiveState") == "active" {
                wait_for_status(&machine, unit, "reports to 127.0.0.1:7412; backlog 0");
            }
        }
    }
}
