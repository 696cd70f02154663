use std::fs;

use rollcall_protocol::limits;

use super::*;
use crate::check::child::tests::{Script, dies};
use crate::check::finding::Thresholds;
use crate::check::schedule::Reading;
use crate::config::probe::tests::load;

const LONG: Duration = Duration::from_secs(20);
const BEAT: Duration = Duration::from_millis(50);

fn config(scripts: &[(&str, &Script)]) -> Config {
    let jobs = scripts
        .iter()
        .map(|(name, script)| Job {
            name: (*name).to_owned(),
            program: script.program.clone(),
            interval: Duration::from_millis(100),
            reading: Reading::Plugin,
        })
        .collect();
    Config {
        interval: BEAT,
        probes: ProbesConfig::default(),
        checks: Checks {
            concurrency: 4,
            jobs,
        },
    }
}

fn start(config: Config) -> Collector {
    Collector::start(config, watch::channel(None).1)
}

async fn next(collector: &mut Collector) -> Collected {
    tokio::time::timeout(LONG, collector.next())
        .await
        .unwrap()
        .unwrap()
}

/// Waits for a status in which the health is `health`.
async fn until_health(collector: &mut Collector, health: Health) -> Collected {
    let turned = async {
        loop {
            let collected = collector.next().await.unwrap();
            if collected.health == health {
                return collected;
            }
        }
    };
    tokio::time::timeout(LONG, turned).await.unwrap()
}

#[tokio::test]
async fn a_plugin_turns_the_health_critical_and_back() {
    let script = Script::new("echo \"code $(cat $DIR/code)\"; exit $(cat $DIR/code)");
    let code = script.folder.path().join("code");
    fs::write(&code, "2").unwrap();
    let mut collector = start(config(&[("own", &script)]));
    let critical = until_health(&mut collector, Health::Critical).await;
    assert_eq!(critical.status.checks[0].text, "code 2");
    // In place at once: the script must never read an empty file.
    fs::write(code.with_extension("new"), "0").unwrap();
    fs::rename(code.with_extension("new"), &code).unwrap();
    let ok = until_health(&mut collector, Health::Ok).await;
    assert_eq!(ok.status.checks[0].text, "code 0");
    collector.stop().await;
}

#[tokio::test]
async fn a_check_that_has_not_run_is_not_in_the_status() {
    let script = Script::new("while [ ! -e $DIR/go ]; do sleep 0.01; done; echo fine");
    let mut collector = start(config(&[("own", &script)]));
    let first = next(&mut collector).await;
    assert_eq!((first.health, first.status.checks.len()), (Health::Ok, 0));
    fs::write(script.folder.path().join("go"), "").unwrap();
    let came = async { while collector.next().await.unwrap().status.checks.is_empty() {} };
    tokio::time::timeout(LONG, came).await.unwrap();
    collector.stop().await;
}

#[tokio::test]
async fn this_host_is_on_the_first_status_which_does_not_wait_for_the_interval() {
    let (probes, checks) = load("").unwrap();
    let mut collector = start(Config {
        interval: Duration::from_secs(3600),
        probes,
        checks,
    });
    let first = next(&mut collector).await;
    let names: Vec<_> = first
        .status
        .checks
        .iter()
        .map(|check| check.name.as_str())
        .collect();
    for name in [
        "cpu",
        "disk:/",
        "load",
        "memory",
        "processes",
        "swap",
        "uptime",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert!(names.is_sorted() && names.len() <= limits::CHECKS_MAX);
    assert!(clock::wall_ms() - first.time_ms < 60_000);
    collector.stop().await;
}

#[tokio::test]
async fn statuses_that_nobody_took_are_skipped() {
    let mut collector = start(config(&[]));
    next(&mut collector).await;
    tokio::time::sleep(BEAT * 20).await;
    let begun = clock::boot();
    for _ in 0..4 {
        next(&mut collector).await;
    }
    // One was waiting and one was due; the others take their time.
    assert!(clock::boot().saturating_since(begun) >= BEAT);
    collector.stop().await;
}

#[tokio::test]
async fn slaves_that_start_together_report_at_different_moments() {
    const INTERVAL: Duration = Duration::from_secs(1);
    let config = Config {
        interval: INTERVAL,
        ..config(&[])
    };
    let mut fleet = JoinSet::new();
    for _ in 0..8 {
        let mut collector = start(config.clone());
        fleet.spawn(async move {
            let mut moments = Vec::new();
            for _ in 0..3 {
                next(&mut collector).await;
                moments.push(clock::boot());
            }
            [1, 2].map(|at| moments[at].saturating_since(moments[at - 1]))
        });
    }
    let pauses = tokio::time::timeout(LONG, fleet.join_all()).await.unwrap();
    let early = |pause: &[Duration; 2]| pause[0] < INTERVAL * 8 / 10;
    assert!(pauses.iter().any(early), "{pauses:?}");
    for [_, pause] in pauses {
        assert!(pause > INTERVAL / 2, "{pause:?}");
    }
}

#[tokio::test]
async fn a_new_configuration_takes_the_place_of_the_old() {
    let (bad, good) = (Script::new("exit 2"), Script::new("exit 0"));
    let mut collector = start(config(&[("bad", &bad), ("good", &good)]));
    until_health(&mut collector, Health::Critical).await;
    collector.reconfigure(config(&[("good", &good)]));
    let status = until_health(&mut collector, Health::Ok).await.status;
    assert!(status.checks.iter().all(|check| check.name == "good"));
    collector.stop().await;
}

#[tokio::test]
async fn stop_ends_what_runs() {
    let script = Script::new("echo $$ > $DIR/pid; exec sleep 1000");
    let collector = start(config(&[("own", &script)]));
    let pid = script.pid("pid").await;
    tokio::time::timeout(LONG, collector.stop()).await.unwrap();
    dies(pid).await;
}

#[tokio::test]
async fn what_the_link_tells_of_its_ports_is_a_check() {
    let (told, port_use) = watch::channel(None);
    let mut config = config(&[]);
    config.probes.connection = Some(Thresholds {
        warning: Some(80.0),
        critical: None,
    });
    let mut collector = Collector::start(config, port_use);
    assert_eq!(next(&mut collector).await.status.checks, []);
    told.send_replace(Some(PortUse {
        destination: "127.0.0.1:7412".parse().unwrap(),
        budget: Some(10),
        used: 9,
        time_wait: 9,
        exhaustions: 0,
        is_exhausted: false,
    }));
    let collected = next(&mut collector).await;
    assert_eq!(collected.status.checks[0].name, "connection");
    assert_eq!(collected.health, Health::Warning);
}
