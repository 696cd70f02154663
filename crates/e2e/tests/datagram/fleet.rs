//! A fleet of simulated slaves in datagram mode, and what the master allows an address.

use rollcall_e2e::bench::{Bench, Outcome};
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, wait_until};

use super::master;

const SLAVES: &str = "100";

fn fleet(folder: &std::path::Path, master: &Master, arguments: &[&str]) -> Outcome {
    let fixed = ["--mode", "datagram", "--slaves", SLAVES, "--count", "300"];
    let arguments = [&fixed[..], arguments].concat();
    let outcome = Bench::spawn(folder, master.address(), &arguments).wait(PATIENCE * 3);
    let result = &outcome.result;
    assert_eq!(outcome.code, Some(0), "{result} {}", outcome.stderr);
    assert_eq!(outcome.number("/acked"), 300, "{result}");
    assert_eq!(outcome.number("/connects"), 0, "{result}");
    outcome.assert_on_the_roll_of(master);
    outcome
}

/// Behind one address all slaves together have its rate. What is more is dropped unread and sent
/// again: late, and not lost. From several addresses each has its own.
#[test]
fn slaves_behind_one_address_share_its_rate_and_lose_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = master(folder.path());
    master
        .config
        .set("limits.datagram_rate", 100)
        .set("limits.datagram_burst", 50);
    master.start();
    let limited = |master: &Master| {
        let metric = master.api().metric("rollcall_datagrams_limited_total");
        metric.expect("a metric")
    };
    let outcome = fleet(folder.path(), &master, &[]);
    let again = outcome.number("/datagrams/sent_again");
    let dropped = wait_until(PATIENCE, "dropped datagrams to be counted", || {
        let dropped = limited(&master);
        (dropped > 0.0).then_some(dropped)
    });
    // Each of them was sent again; so were answers' questions that took their time.
    assert!(f64::from(u32::try_from(again).expect("few")) >= dropped);
    master.wait_for_event("datagrams_dropped");
    // 50 at once, and the other 250 at 100 a second.
    let elapsed = outcome.result["elapsed_s"].as_f64().expect("a time");
    assert!(elapsed > 2.0, "{}", outcome.result);

    let sources: Vec<_> = (1..=100).map(|host| format!("127.0.1.{host}")).collect();
    let sources = sources.join(",");
    fleet(folder.path(), &master, &["--source-addresses", &sources]);
    assert_eq!(limited(&master), dropped, "nobody had too much");
}
