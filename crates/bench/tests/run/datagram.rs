//! Datagram mode, against a master that loses and doubles datagrams.

use super::support::DatagramServer;
use super::*;

fn datagrams(server: &DatagramServer, args: &[&str]) -> Run {
    bench(&server.address(), &[&["--mode", "datagram"], args].concat())
}

#[test]
fn each_report_is_asked_about_once_where_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let path = ledger.to_str().unwrap();
    let server = DatagramServer::start(Fault::None);
    let args = ["--slaves", "7", "--count", "1003", "--ledger", path];
    let run = datagrams(&server, &args);
    run.assert_good();
    assert_eq!(run.number("/acked"), 1003);
    assert_eq!(run.number("/datagrams/questions"), 1003);
    assert_eq!(run.number("/datagrams/given_up"), 0);
    assert_eq!(
        (run.number("/connects"), run.number("/resent")),
        (0, 0),
        "{}",
        run.json
    );
    assert_eq!(run.json["errors"], serde_json::json!({}));
    assert_ledger(&ledger, &server.roll());
    let roll = server.roll();
    assert_eq!((roll.applied(), roll.duplicates), (1003, 0));
    assert_eq!(roll.copies, run.number("/datagrams/sent_again"));
    assert_eq!(roll.violations, [""; 0]);
    assert_eq!(roll.report_bytes.iter().copied().collect::<Vec<_>>(), [200]);
}

#[test]
fn what_is_lost_is_sent_again_and_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let path = ledger.to_str().unwrap();
    let server = DatagramServer::start(Fault::DropAtRandom);
    let args = ["--slaves", "200", "--count", "1000", "--ledger", path];
    let run = datagrams(&server, &args);
    run.assert_good();
    assert_ledger(&ledger, &server.roll());
    let roll = server.roll();
    assert_eq!((roll.applied(), roll.duplicates), (1000, 0));
    assert_eq!(roll.violations, [""; 0]);
    // One in ten questions and one in ten answers.
    assert!(roll.copies > 0, "no answer was lost");
    let again = run.number("/datagrams/sent_again");
    assert!((100..1000).contains(&again), "{}", run.json);
    // The pause before it is 188 ms at least.
    let latency = run.json["ack_latency_ms"]["max"].as_f64().unwrap();
    assert!(latency > 180.0, "{}", run.json);
}

#[test]
fn an_answer_that_comes_twice_counts_once() {
    let server = DatagramServer::start(Fault::AckTwice);
    let run = datagrams(&server, &["--slaves", "4", "--count", "400"]);
    run.assert_good();
    assert_eq!(run.number("/acked"), 400);
    // Of the last ones the second answer may come after the end.
    let repeated = run.number("/datagrams/answers_repeated");
    assert!((390..=400).contains(&repeated), "{}", run.json);
    assert_eq!(server.roll().duplicates, 0);
}

/// What is made while a question is out goes into the next one together.
#[test]
fn what_waits_goes_in_one_datagram() {
    let server = DatagramServer::start(Fault::DropAtRandom);
    let args = ["--slaves", "2", "--rate", "200", "--duration", "2s"];
    let run = datagrams(&server, &args);
    run.assert_good();
    assert_eq!(server.roll().applied(), run.number("/sent"));
    assert_eq!(server.roll().duplicates, 0);
    assert!(
        run.number("/datagrams/questions") < run.number("/sent") * 9 / 10,
        "{}",
        run.json
    );
}

#[test]
fn a_silent_master_is_asked_again_and_given_up() {
    let server = DatagramServer::start(Fault::Silent);
    let times = ["--timeout", "500ms", "--patience", "1s"];
    let args = ["--slaves", "3", "--count", "10"];
    let run = datagrams(&server, &[&args[..], &times].concat());
    assert_eq!(
        (run.code, run.number("/acked"), run.number("/lost")),
        (Some(1), 0, 3)
    );
    let given_up = run.number("/datagrams/given_up");
    assert!(given_up >= 3, "{}", run.json);
    assert_eq!(run.error("timeout"), given_up);
    assert!(run.number("/datagrams/sent_again") >= 3, "{}", run.json);
    assert!(run.stderr.contains("3 of 3 reports were never acked"));
}

#[test]
fn a_refusal_fails_the_run_unless_errors_are_allowed() {
    let refuse = Fault::Refuse {
        times: 2,
        retry: true,
    };
    let args = ["--slaves", "2", "--count", "10"];
    let run = datagrams(&DatagramServer::start(refuse), &args);
    assert_eq!((run.code, run.number("/lost")), (Some(1), 0));
    assert!(run.stderr.contains("not today"), "{}", run.stderr);
    let allowed = [&args[..], &["--allow-errors"]].concat();
    datagrams(&DatagramServer::start(refuse), &allowed).assert_good();
}

#[test]
fn a_payload_that_fits_no_datagram_is_refused_before_anything_is_sent() {
    let server = DatagramServer::start(Fault::None);
    // The largest frame has 65,536 bytes, and a datagram over loopback 65,507.
    let run = datagrams(
        &server,
        &["--slaves", "1", "--count", "1", "--payload-bytes", "65500"],
    );
    assert_eq!(run.code, Some(1));
    for part in ["--payload-bytes 65500", "65507 bytes", "--mode per-message"] {
        assert!(run.stderr.contains(part), "{part}: {}", run.stderr);
    }
    let room = run.stderr.split("has room for ").nth(1).unwrap();
    let room = room.split(' ').next().unwrap();
    let args = ["--slaves", "1", "--count", "3", "--payload-bytes", room];
    datagrams(&server, &args).assert_good();
    assert_eq!(server.roll().applied(), 3);
}

#[test]
fn nobody_there_is_told_and_sources_are_taken_in_turn() {
    let server = DatagramServer::start(Fault::None);
    let sources = ["--source-addresses", "127.0.0.2,127.0.0.3"];
    let args = ["--slaves", "4", "--count", "40"];
    datagrams(&server, &[&args[..], &sources].concat()).assert_good();
    let peers = ["127.0.0.2", "127.0.0.3"].map(|peer| peer.parse().unwrap());
    assert_eq!(server.roll().peers, BTreeSet::from(peers));
    let address = server.address();
    drop(server);
    let args = ["--mode", "datagram", "--slaves", "2", "--count", "2"];
    let run = bench(&address, &[&args[..], &["--patience", "500ms"]].concat());
    assert_eq!((run.code, run.number("/lost")), (Some(1), 2));
    assert!(run.error("connect_refused") >= 2, "{}", run.json);
    assert_eq!(run.json["connects_failed"], serde_json::json!({}));
}
