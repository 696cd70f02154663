use std::io::Write;
use std::time::Duration;

use garde::Validate;
use rollcall_os::config::{ConfigError, load_with, to_toml};
use serde::{Deserialize, Serialize};

use super::*;
use crate::config::DEFAULTS;
use crate::config::check::{Checks, RawCheck, RawChecks};

/// The sections of the default file that are about probes and checks.
#[derive(Debug, Deserialize, Serialize, Validate)]
pub(crate) struct Sections {
    #[garde(dive)]
    probe: RawProbes,
    #[garde(dive)]
    checks: RawChecks,
    #[serde(default)]
    #[garde(dive)]
    check: Vec<RawCheck>,
}

/// Loads `text` over the defaults; the faults as they are shown, without the place.
pub(crate) fn load(text: &str) -> Result<(Probes, Checks), Vec<String>> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let loaded = load_with(DEFAULTS, Some(file.path()), |raw: Sections, faults| {
        let mut report = |found: Vec<Fault>| {
            let mut reported = None;
            for (path, message) in found {
                reported = Some(faults.add(&path, message));
            }
            reported.unwrap()
        };
        let probes = raw.probe.resolve().map_err(&mut report);
        let none = Probes::default();
        let checks = raw
            .checks
            .resolve(&raw.check, probes.as_ref().unwrap_or(&none));
        Ok((probes?, checks.map_err(&mut report)?))
    });
    loaded.map_err(|error| match error {
        ConfigError::Faulty(faults) => faults
            .into_iter()
            .map(|fault| format!("{}: {}", fault.key, fault.message))
            .collect(),
        other => panic!("{other}"),
    })
}

#[test]
fn the_defaults_are_sound() {
    let (probes, checks) = load("").unwrap();
    assert_eq!(
        probes.load,
        Some(Thresholds {
            warning: Some(2.0),
            critical: Some(4.0)
        })
    );
    assert_eq!(probes.cpu, Some(Thresholds::default()));
    assert_eq!(probes.uptime, Some(Uptime::default()));
    let disk = probes.disk.unwrap();
    assert!(disk.types_exclude.matches("nfs4") && !disk.types_exclude.matches("ext4"));
    assert!(disk.mounts_exclude.matches("/run/user/1000") && !disk.mounts_exclude.matches("/run"));
    assert_eq!((checks.concurrency, checks.jobs.len()), (4, 0));
}

#[test]
fn probes_can_be_switched_off_and_limits_too() {
    let (probes, _) = load(
        "[probe]\nload.enable = false\nmemory.critical = \"off\"\nuptime.warning_below = \"10m\"\ncpu.warning = 99.5\n",
    )
    .unwrap();
    assert_eq!(probes.load, None);
    let memory = probes.memory.unwrap();
    assert_eq!((memory.warning, memory.critical), (Some(90.0), None));
    assert_eq!(probes.cpu.unwrap().warning, Some(99.5));
    let uptime = probes.uptime.unwrap();
    assert_eq!(uptime.warning_below, Some(Duration::from_secs(600)));
}

#[test]
fn all_faults_are_told_at_once() {
    let faults = load(
        r#"
[probe.load]
warning = 5
[probe.memory]
warning = 101
critical = "never"
[probe.disk]
mounts_exclude = ["*/tmp"]
timeout = "1ms"
[probe.uptime]
warning_below = "soon"
critical_below = "10m"
[probe.network]
interface_exclude = []
"#,
    )
    .unwrap_err();
    let expected = [
        "probe.load.critical: 4 is below warning (5); give at least that, or \"off\"",
        "probe.memory.warning: out of range: 101 is not 0 to 100 or \"off\"",
        "probe.memory.critical: ",
        "probe.disk.mounts_exclude: bad pattern \"*/tmp\"",
        "probe.disk.timeout: out of range: 1ms",
        "probe.uptime.warning_below: bad duration \"soon\"",
        "probe.network.interface_exclude: unknown key",
    ];
    for expected in expected {
        assert!(
            faults.iter().any(|fault| fault.starts_with(expected)),
            "{expected} is not in {faults:#?}"
        );
    }
    assert_eq!(
        faults.len(),
        expected.len() + 1,
        "memory.critical is below 101, too: {faults:#?}"
    );
}

#[test]
fn a_printed_configuration_reads_back_as_itself() {
    let raw: Sections = load_with(DEFAULTS, None, |raw, _| Ok(raw)).unwrap();
    let printed = to_toml(&raw).unwrap();
    assert_eq!(load(&printed), load(""));
    assert!(printed.contains("warning_below = \"off\""), "{printed}");
}

#[test]
fn patterns_are_whole_names_or_beginnings() {
    let patterns = Patterns::new(vec!["lo".to_owned(), "veth*".to_owned()]);
    for (name, fits) in [
        ("lo", true),
        ("lo0", false),
        ("veth", true),
        ("veth1", true),
        ("xveth", false),
    ] {
        assert_eq!(patterns.matches(name), fits, "{name}");
    }
}
