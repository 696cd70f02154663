//! Passwords of check plugins: from root's folder through systemd to the plugin, and to nobody else.

use rollcall_e2e::machine::Machine;
use rollcall_e2e::{Api, wait_until};
use rollcall_protocol::api::{CheckRow, Health};

use crate::{PATIENCE, SLAVE, wait_for_report};

const CHECK: &str = r#"
[[check]]
name = "password"
interval = "500ms"
command = ["sh", "-c", "test \"$(cat \"$CREDENTIALS_DIRECTORY/check_web\")\" = s3cret && echo it fits"]
"#;
const FOLDER: &str = "/etc/rollcall/credentials";

/// What the plugin says, once it says anything.
fn check(machine: &Machine, slave: &str) -> CheckRow {
    let api = Api::new(([127, 0, 0, 1], 7413).into());
    let network = machine.network();
    wait_until(PATIENCE, "the plugin's result", || {
        let shown = network.run(|| api.slave(slave)).ok()?;
        let mut checks = shown.checks.into_iter();
        checks.find(|check| check.name == "password" && check.state != Health::Unknown)
    })
}

#[test]
fn a_plugin_reads_its_password() {
    let Some(machine) = Machine::boot_or_skip_loudly("a_plugin_reads_its_password") else {
        return;
    };
    let config =
        |name: &str, rest: &str| format!("name = \"{name}\"\ninterval = \"500ms\"\n{rest}");
    let first = config("web-1", CHECK);
    machine.write("/etc/rollcall/slave.toml", first.as_bytes());
    machine.install();
    assert_eq!(
        machine.run(&format!("stat -c '%a %U %G' {FOLDER}")),
        "700 root root\n"
    );
    assert_ne!(check(&machine, "web-1").state, Health::Ok);

    machine.run(&format!(
        "(umask 077; echo s3cret >{FOLDER}/web); systemctl restart {SLAVE}"
    ));
    wait_until(PATIENCE, "the password to fit", || {
        let found = check(&machine, "web-1");
        (found.state == Health::Ok && found.text == "it fits").then_some(())
    });
    let copy = "/run/credentials/rollcall-slave.service/check_web";
    for path in [copy, "/etc/rollcall/credentials/web"] {
        let others = machine.try_run(&format!("setpriv --reuid=nobody --clear-groups cat {path}"));
        assert!(!others.0, "{others:?}");
    }

    // A further slave has the same passwords.
    let state = "[state]\ndirectory = \"/var/lib/rollcall-slave-web-2\"\n";
    let second = config("web-2", &format!("{state}{CHECK}"));
    machine.write("/etc/rollcall/slave-web-2.toml", second.as_bytes());
    machine.run("systemctl start rollcall-slave@web-2");
    assert_eq!(check(&machine, "web-2").state, Health::Ok);

    // Whoever needs none may remove the folder.
    machine.run(&format!("rm -r {FOLDER}; systemctl restart {SLAVE}"));
    wait_for_report(&machine);
    wait_until(PATIENCE, "the password to be gone", || {
        (check(&machine, "web-1").state != Health::Ok).then_some(())
    });
}
