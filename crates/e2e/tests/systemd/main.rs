//! The units on a booted systemd: what it shows, and what becomes of the daemons under its commands.

mod commands;
mod credentials;
mod fleet;
mod packages;

use std::time::Duration;

use rollcall_e2e::machine::Machine;
use rollcall_e2e::wait_until;
use serde_json::Value;

/// systemd has many things to do, and this machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const SLAVE_CONFIG: &[u8] = b"name = \"web-1\"\ninterval = \"500ms\"\n";
/// A busy machine may take some seconds between two reports.
const MASTER_CONFIG: &[u8] = b"[presence]\nlate_after = 8.0\nmissing_after = 10.0\n";
pub(crate) const MASTER: &str = "rollcall-master.service";
pub(crate) const SLAVE: &str = "rollcall-slave.service";

pub(crate) fn boot(name: &str) -> Option<Machine> {
    let machine = Machine::boot_or_skip_loudly(name)?;
    machine.write("/etc/rollcall/master.toml", MASTER_CONFIG);
    machine.write("/etc/rollcall/slave.toml", SLAVE_CONFIG);
    machine.install();
    Some(machine)
}

/// The slave's row.
pub(crate) fn slave(machine: &Machine) -> Option<Value> {
    let (succeeded, said) = machine.try_run("rollcall ls --json");
    let roll: Value = succeeded.then(|| serde_json::from_str(&said).ok())??;
    roll["slaves"].get(0).cloned()
}

/// Waits for a report that came after now.
pub(crate) fn wait_for_report(machine: &Machine) -> Value {
    let applied = |row: &Value| row["applied"].as_u64();
    let before = slave(machine).as_ref().and_then(applied);
    wait_until(PATIENCE, "another report", || {
        slave(machine).filter(|row| row["presence"] == "up" && applied(row) > before)
    })
}

/// Changes of presence since the start.
pub(crate) fn presences(machine: &Machine) -> Vec<String> {
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
pub(crate) fn wait_for_status(machine: &Machine, unit: &str, words: &str) {
    wait_until(PATIENCE, words, || {
        let (_, said) = machine.try_run(&format!("systemctl status {unit}"));
        said.contains(words).then_some(())
    });
}

/// Waits until another process is the unit's.
#[track_caller]
pub(crate) fn wait_for_successor(machine: &Machine, unit: &str, before: &str) -> String {
    wait_until(PATIENCE, "a successor", || {
        let pid = machine.property(unit, "MainPID");
        let active = machine.property(unit, "ActiveState") == "active";
        (active && pid != "0" && pid != before).then_some(pid)
    })
}

/// The entries of the journal that match, as objects.
pub(crate) fn journal(machine: &Machine, matches: &str) -> Vec<Value> {
    machine
        .run(&format!("journalctl --no-pager -o json {matches}"))
        .lines()
        .map(|line| serde_json::from_str(line).expect("an entry is JSON"))
        .collect()
}
