//! The packages, and the guide that begins with them.

use rollcall_e2e::machine::{Machine, packages};
use rollcall_e2e::source;

use crate::{MASTER, SLAVE, boot, presences, wait_for_report, wait_for_status, wait_for_successor};

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
