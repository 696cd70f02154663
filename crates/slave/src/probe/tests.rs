use rollcall_protocol::wire::Health;

use super::*;
use crate::check::child::tests::until;
use crate::config::probe::tests::load;

fn names(checks: &[Check]) -> Vec<&str> {
    checks.iter().map(|check| check.name.as_str()).collect()
}

fn metric(checks: &[Check], check: &str, metric: &str) -> f64 {
    let check = checks.iter().find(|found| found.name == check).unwrap();
    let metric = check.metrics.iter().find(|found| found.name == metric);
    metric.unwrap().value
}

/// The first sample after the shortest time.
async fn sample(probes: &mut Probes) -> Vec<Check> {
    let begun = clock::boot();
    until(|| (clock::boot().saturating_since(begun) > SAMPLE_INTERVAL_MIN).then_some(())).await;
    probes.sample().await
}

#[tokio::test]
async fn this_host_has_real_figures() {
    let (config, _) = load("").unwrap();
    let mut probes = Probes::new(config.clone());
    let checks = sample(&mut probes).await;
    for name in [
        "load",
        "cpu",
        "memory",
        "swap",
        "uptime",
        "processes",
        "disk:/",
    ] {
        let check = checks.iter().find(|check| check.name == name);
        let check = check.unwrap_or_else(|| panic!("{name} is missing: {:?}", names(&checks)));
        assert!(!check.text.is_empty());
        assert!(check.state() != Health::Unknown, "{check:?}");
    }
    assert!(metric(&checks, "memory", "total") > 1e6);
    assert!((0.0..=100.0).contains(&metric(&checks, "cpu", "used")));
    assert!(metric(&checks, "uptime", "uptime") > 0.0);
    assert!(metric(&checks, "processes", "processes") >= 1.0);
    for check in &checks {
        assert!(
            super::names(&config, &check.name),
            "{} is not reserved",
            check.name
        );
    }
}

#[tokio::test]
async fn a_sample_too_early_is_the_last_one_again() {
    let (config, _) = load("").unwrap();
    let mut probes = Probes::new(config);
    probes.counted = clock::boot();
    assert_eq!(probes.sample().await, []);
    let first = sample(&mut probes).await;
    probes.counted = clock::boot();
    assert_eq!(probes.sample().await, first);
}

#[tokio::test]
async fn probes_that_are_off_are_not_there() {
    let mut probes = Probes::new(Config::default());
    assert_eq!(sample(&mut probes).await, []);
    let (config, _) = load("").unwrap();
    probes.configure(Config {
        load: config.load,
        cpu: config.cpu,
        ..Config::default()
    });
    let checks = sample(&mut probes).await;
    assert_eq!(names(&checks), ["load", "cpu"]);
}

#[test]
fn names_are_reserved_where_the_probe_is_on() {
    let (on, _) = load("").unwrap();
    for name in ["load", "disk", "disk:/var", "network:eth0", "systemd"] {
        assert!(super::names(&on, name), "{name}");
        assert!(!super::names(&Config::default(), name), "{name}");
    }
    for name in ["", "loads", "disks", "load:1", "agent"] {
        assert!(!super::names(&on, name), "{name}");
    }
}

#[test]
fn a_percentage_has_one_decimal_and_survives_nothing() {
    assert_eq!(percent(1, 3), 33.3);
    assert_eq!(percent(5, 0), 0.0);
}
