//! What systemd's own commands show of the daemons and do to them.

use std::time::Duration;

use rollcall_e2e::wait_until;

use crate::{
    MASTER, PATIENCE, SLAVE, boot, journal, presences, slave, wait_for_report, wait_for_status,
    wait_for_successor,
};

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
    for (unit, exposure_max) in [
        (MASTER, 1.1),
        (SLAVE, 1.7),
        ("rollcall-slave@a.service", 1.7),
    ] {
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
