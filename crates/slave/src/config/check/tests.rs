use std::time::Duration;

use crate::config::check::CHECKS_MAX;
use crate::config::probe::tests::load;

#[test]
fn a_check_takes_from_the_section_what_it_does_not_say() {
    let (_, checks) = load(
        r#"
[checks]
timeout = "7s"
environment.HOME = "/tmp"
[[check]]
name = "ssh"
command = ["/usr/lib/nagios/plugins/check_ssh", "localhost"]
[[check]]
name = "own"
command = ["check_own"]
interval = "5m"
timeout = "1m"
environment = { LC_ALL = "de_DE.UTF-8", TOKEN = "x" }
"#,
    )
    .unwrap();
    let [ssh, own] = checks.jobs.as_slice() else {
        panic!("{checks:?}");
    };
    assert_eq!(
        (ssh.interval, ssh.program.timeout),
        (Duration::from_secs(60), Duration::from_secs(7))
    );
    assert_eq!(
        ssh.program.argv,
        ["/usr/lib/nagios/plugins/check_ssh", "localhost"]
    );
    assert_eq!(ssh.program.environment["LC_ALL"], "C");
    assert_eq!(ssh.program.environment["HOME"], "/tmp");
    assert_eq!(
        (own.interval, own.program.timeout),
        (Duration::from_secs(300), Duration::from_secs(60))
    );
    assert_eq!(own.program.environment["LC_ALL"], "de_DE.UTF-8");
    assert_eq!(own.program.environment.len(), 4);
}

#[test]
fn all_faults_are_told_at_once() {
    let faults = load(
        r#"
[checks]
concurrency = 0
[[check]]
name = "a"
command = ["/bin/true"]
[[check]]
name = "a"
command = []
[[check]]
name = "disk:/"
command = ["relative/path"]
interval = "1ms"
[[check]]
name = "agent"
command = ["/bin/true"]
environment = { "A=B" = "" }
[[check]]
name = " b"
command = ["/bin/true"]
intervall = "10s"
"#,
    )
    .unwrap_err();
    let expected = [
        "checks.concurrency: out of range: 0 is not within 1 to 64",
        "check[1].name: another check has the name \"a\"",
        "check[1].command: empty: expected the program",
        "check[2].name: \"disk:/\" is the name of a built-in check",
        "check[2].command: bad program \"relative/path\"",
        "check[2].interval: out of range: 1ms",
        "check[3].name: \"agent\" is the name of a built-in check",
        "check[3].environment: bad variable \"A=B\"",
        "check[4].name: bad name \" b\"",
        "check[4].intervall: unknown key",
    ];
    for expected in expected {
        assert!(
            faults.iter().any(|fault| fault.starts_with(expected)),
            "{expected} is not in {faults:#?}"
        );
    }
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
}

#[test]
fn the_name_of_a_probe_is_free_where_the_probe_is_off() {
    let check = "[[check]]\nname = \"load\"\ncommand = [\"/bin/true\"]\n";
    assert!(load(check).is_err());
    let (_, checks) = load(&format!("[probe.load]\nenable = false\n{check}")).unwrap();
    assert_eq!(checks.jobs.len(), 1);
}

#[test]
fn too_many_checks_are_refused() {
    let list = |count| -> String {
        (0..count)
            .map(|i| format!("[[check]]\nname = \"c{i}\"\ncommand = [\"/bin/true\"]\n"))
            .collect()
    };
    assert_eq!(load(&list(CHECKS_MAX)).unwrap().1.jobs.len(), CHECKS_MAX);
    let faults = load(&list(CHECKS_MAX + 1)).unwrap_err();
    assert!(faults[0].contains("193 checks are too many"), "{faults:?}");
}
