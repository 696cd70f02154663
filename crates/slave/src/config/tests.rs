use std::time::Duration;

use super::*;

pub(super) fn load(text: &str, host: &str) -> Result<Config, ConfigError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    load_with(DEFAULTS, Some(file.path()), |raw, faults| {
        resolve(raw, host, faults)
    })
}

#[test]
fn the_shipped_file_is_the_defaults() {
    let config = load("", "My_Host").unwrap();
    assert_eq!(config.link.name, "my-host");
    assert_eq!(config.link.masters, ["127.0.0.1:7412"]);
    assert_eq!(config.collect.interval, Duration::from_secs(10));
    assert!(config.collect.probes.load.is_some());
    assert_eq!(config.collect.checks.jobs, []);
}

#[test]
fn what_check_prints_can_be_read_back() {
    let text = "[labels]\nsite = \"north\"\n[[check]]\nname = \"x\"\ncommand = [\"/bin/true\"]\n";
    let config = load(text, "a").unwrap();
    let printed = rollcall_os::config::to_toml(&config.raw).unwrap();
    let again = load(&printed, "other").unwrap();
    assert_eq!(again.link, config.link);
    assert_eq!(again.spool, config.spool);
    assert_eq!(again.collect, config.collect);
    assert_eq!(again.state_directory, config.state_directory);
}

#[test]
fn all_faults_are_told_at_once() {
    let text = "name = \"A b\"\n\
                interval = \"1ms\"\n\
                [labels]\n\
                \"\" = \"x\"\n\
                [connection]\n\
                masters = [\"127.0.0.1:7412\", \"10.0.0.1:7412\", \"nowhere\"]\n\
                retry_first = \"1m\"\n\
                [probe.load]\n\
                critical = 0.5\n\
                [[check]]\n\
                name = \"x\"\n\
                command = [\"/bin/true\"]\n\
                [[check]]\n\
                name = \"x\"\n\
                command = [\"/bin/true\"]\n";
    let error = load(text, "host").unwrap_err();
    let keys: Vec<_> = error
        .faults()
        .iter()
        .map(|fault| fault.key.as_str())
        .collect();
    let expected = [
        "name",
        "interval",
        "labels",
        "connection.masters[1]",
        "connection.masters[2]",
        "connection.retry_longest",
        "probe.load.critical",
        "check[1].name",
    ];
    for key in expected {
        assert!(keys.contains(&key), "{key} of {keys:?}\n{error}");
    }
    assert_eq!(keys.len(), expected.len(), "{error}");
}

#[test]
fn a_host_that_cannot_name_a_slave_is_told_to_name_it() {
    let error = load("", "häst").unwrap_err().to_string();
    assert!(
        error.contains("name") && error.contains("set one of"),
        "{error}"
    );
}
