//! `ls`, `show` and `events` against a master that says what the test wants.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::Stdio;

use crate::fake::{self, FakeMaster, answer, event, message, ok, run, slave, slaves, stream, text};

fn master_of(fake: &FakeMaster) -> String {
    fake.address.to_string()
}

#[test]
fn ls_shows_the_roll() {
    let roll = slaves(&[slave("db-1", "missing", 1), slave("web-1", "up", 1)]);
    let fake = FakeMaster::start(move |request| match request.target.as_str() {
        "/v1/slaves" => ok(&roll),
        _ => answer(
            "503 Service Unavailable",
            r#"{"ready":false,"reason":"disk\u001b full"}"#,
        ),
    });
    let out = run(&master_of(&fake), &["ls"]);
    assert!(out.status.success(), "{out:?}");
    let stdout = text(&out.stdout);
    assert_eq!(stdout.lines().count(), 3, "{stdout}");
    assert!(stdout.contains("db-1   missing   ok"), "{stdout}");
    let stderr = text(&out.stderr);
    assert!(
        stderr.contains("not storing reports") && stderr.contains("disk\\u{1b} full"),
        "{stderr}"
    );
}

#[test]
fn ls_filters_colors_and_speaks_json() {
    let roll = slaves(&[slave("db-1", "missing", 1), slave("web-1", "up", 1)]);
    let fake = FakeMaster::start(move |_| ok(&roll));
    let json = run(
        &master_of(&fake),
        &["ls", "--presence", "late,missing", "--json"],
    );
    assert_eq!(
        text(&json.stdout),
        format!("{{\"slaves\":[\n{}\n]}}\n", slave("db-1", "missing", 1))
    );
    let colored = run(&master_of(&fake), &["ls", "--color", "always"]);
    assert!(text(&colored.stdout).contains("\u{1b}["), "{colored:?}");
    let plain = run(&master_of(&fake), &["ls"]);
    assert!(!text(&plain.stdout).contains('\u{1b}'), "{plain:?}");
}

#[test]
fn a_master_that_is_not_there_is_named_with_the_remedy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let master = listener.local_addr().unwrap().to_string();
    drop(listener);
    for command in [
        &["ls"][..],
        &["show", "a"],
        &["events"],
        &["events", "--follow"],
    ] {
        let out = run(&master, command);
        assert_eq!(out.status.code(), Some(69), "{out:?}");
        let stderr = text(&out.stderr);
        for part in [
            master.as_str(),
            "rollcall up",
            "systemctl status rollcall-master",
            "refused",
        ] {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
    }
}

#[test]
fn another_server_is_recognised() {
    let fake = FakeMaster::start(|_| ok("<html>hello</html>"));
    let out = run(&master_of(&fake), &["ls"]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(
        text(&out.stderr).contains("not as a Rollcall master does"),
        "{out:?}"
    );
}

#[test]
fn an_unknown_slave_is_refused_in_the_master_s_words() {
    let fake = FakeMaster::start(|_| {
        answer(
            "404 Not Found",
            r#"{"error":"no slave \"Web/1\"; did you mean web-1?\u001b[2J"}"#,
        )
    });
    let out = run(&master_of(&fake), &["show", "Web/1"]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert_eq!(
        text(&out.stderr),
        "rollcall: no slave \"Web/1\"; did you mean web-1?\\u{1b}[2J\n"
    );
    assert_eq!(fake.requests.recv().unwrap().target, "/v1/slaves/Web%2F1");
}

#[test]
fn show_tells_of_the_checks() {
    let row = slave("web-1", "up", 1);
    let detail = format!(
        r#"{},"agent_version":"0.1.0","report_time":"1970-01-01T00:00:00.001Z","checks":[{{"name":"disk","state":"critical","text":"92 % full","duration_ms":3,"time":"1970-01-01T00:00:00.001Z","metrics":[{{"name":"/","value":92.0,"unit":"%"}}]}}]}}"#,
        row.strip_suffix('}').unwrap()
    );
    let fake = FakeMaster::start(move |_| ok(&detail));
    let out = run(&master_of(&fake), &["show", "web-1"]);
    let stdout = text(&out.stdout);
    assert!(stdout.starts_with("web-1\n  presence   up\n"), "{stdout}");
    let check = stdout.lines().last().unwrap();
    assert!(
        check.starts_with("disk   critical") && check.ends_with("/=92%    92 % full"),
        "{stdout}"
    );
    let json = run(&master_of(&fake), &["show", "web-1", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["checks"][0]["metrics"][0]["value"], 92.0);
}

#[test]
fn show_tells_the_past() {
    let gap = event(20, "gap: 12 reports, 00:00-00:40, spool full")
        .replace(r#""presence""#, r#""gap""#)
        .replace(r#""from":"up""#, r#""from":"1970-01-01T00:00:20.000Z""#)
        .replace(r#""to":"late""#, r#""to":"1970-01-01T00:40:00.000Z""#);
    let history = format!(
        r#"{{"name":"web-1","since":"1970-01-01T00:00:00.000Z","until":"1970-01-02T00:00:00.000Z","events":[{},{gap}],"events_cut":false,"reports":[{{"time":"1970-01-01T00:00:30.000Z","stream":"01","sequence":3,"health":"ok","checks":[]}}]}}"#,
        event(10, "no report")
    );
    let fake = FakeMaster::start(move |_| ok(&history));
    let out = run(&master_of(&fake), &["show", "web-1", "--history", "2h"]);
    let stdout = text(&out.stdout);
    assert!(out.status.success(), "{out:?}");
    let target = fake.requests.recv().unwrap().target;
    assert!(
        target.starts_with("/v1/slaves/web%2D1/history?since="),
        "{target}"
    );
    let lines: Vec<_> = stdout.lines().collect();
    assert!(lines[2].ends_with("presence      up -> late  no report"));
    assert!(lines[3].contains("  gap           gap: 12 reports, "));
    assert!(lines[6].contains("-       gap: 12 reports, "), "{stdout}");
    assert!(lines[7].ends_with("ok      0 ok"), "{stdout}");
    let json = run(&master_of(&fake), &["show", "web-1", "--json", "--history"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["events"][1]["kind"], "gap");
}

#[test]
fn events_since_a_moment_are_all_fetched_and_the_newest_kept() {
    let pages = [
        format!(r#"{{"events":[{},{}]}}"#, event(1, "one"), event(5, "five")),
        format!(
            r#"{{"events":[{}]}}"#,
            event(7, "seven").replace(":07.000Z", ":02.000Z")
        ),
        r#"{"events":[]}"#.to_owned(),
    ];
    let fake = FakeMaster::script(pages.iter().map(|page| ok(page)));
    let arguments = [
        "events",
        "--since",
        "1970-01-01T00:00:00.5Z",
        "--limit",
        "2",
        "--json",
    ];
    let out = run(&master_of(&fake), &arguments);
    let stdout = text(&out.stdout);
    let told: Vec<_> = stdout.lines().collect();
    assert_eq!(told.len(), 2, "{out:?}");
    assert!(
        told[0].contains("seven") && told[1].contains("five"),
        "{told:?}"
    );
    let targets: Vec<_> = fake
        .requests
        .iter()
        .take(3)
        .map(|request| request.target)
        .collect();
    for (target, after) in targets.iter().zip([0, 5, 7]) {
        assert!(target.starts_with("/v1/events?"), "{target}");
        assert!(target.contains(&format!("after={after}&")), "{target}");
        assert!(target.contains("since=500"), "{target}");
    }
}

#[test]
fn events_are_filtered_by_the_master() {
    let fake = FakeMaster::start(|_| ok(r#"{"events":[]}"#));
    let arguments = [
        "events",
        "--slave",
        "a b",
        "--kind",
        "master_start",
        "-n",
        "3",
    ];
    let out = run(&master_of(&fake), &arguments);
    assert!(out.status.success(), "{out:?}");
    let target = fake.requests.recv().unwrap().target;
    assert_eq!(target, "/v1/events?limit=3&slave=a%20b&kind=master_start");
}

#[test]
fn following_shows_each_event_once_over_a_restart() {
    let fake = FakeMaster::script([
        ok(&format!(r#"{{"events":[{}]}}"#, event(1, "one"))),
        // The stream breaks off in the middle of the third event.
        stream(&format!(
            "{}{}",
            message(2, "two"),
            &message(3, "three")[..30]
        )),
        answer("503 Service Unavailable", r#"{"error":"starting"}"#),
        stream(&format!(
            "{}{}:still here\n\n{}",
            message(2, "two"),
            message(3, "three"),
            message(4, "four")
        )),
    ]);
    let mut child = fake::rollcall()
        .args([
            "--master",
            &master_of(&fake),
            "events",
            "--follow",
            "--json",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let texts: Vec<String> = lines
        .take(4)
        .map(|line| {
            let event: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            event["text"].as_str().unwrap().to_owned()
        })
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(texts, ["one", "two", "three", "four"]);
    let mut stderr = String::new();
    child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
    // The last stream ends too, which may have been told before the program was killed.
    let (outage, _) = stderr.split_once("is back").unwrap();
    assert_eq!(outage.matches("trying again").count(), 1, "{stderr}");
    let requests: Vec<_> = fake.requests.iter().take(4).collect();
    assert_eq!(requests[0].target, "/v1/events?limit=10");
    for (request, after) in requests[1..].iter().zip([1, 2, 2]) {
        assert_eq!(request.target, format!("/v1/events?after={after}"));
        assert!(
            request.headers.contains(&format!("last-event-id: {after}")),
            "{request:?}"
        );
        assert!(
            request
                .headers
                .contains(&"accept: text/event-stream".to_owned()),
            "{request:?}"
        );
    }
}

#[test]
fn a_reader_that_leaves_is_no_fault() {
    let rows: Vec<_> = (0..5000)
        .map(|n| slave(&format!("web-{n}"), "up", 1))
        .collect();
    let roll = slaves(&rows);
    let fake = FakeMaster::start(move |_| ok(&roll));
    let mut child = fake::rollcall()
        .args(["--master", &master_of(&fake), "ls"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    let mut stdout = BufReader::with_capacity(64, child.stdout.take().unwrap());
    stdout.read_line(&mut first).unwrap();
    drop(stdout);
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
}

#[test]
fn the_environment_names_the_master() {
    let fake = FakeMaster::start(|_| ok(r#"{"slaves":[]}"#));
    let out = fake::rollcall()
        .env("ROLLCALL_MASTER", master_of(&fake))
        // A proxy for the web is not asked for the own fleet.
        .env("http_proxy", "http://192.0.2.1:9")
        .arg("ls")
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    assert!(
        text(&out.stderr).contains("no slave has reported"),
        "{out:?}"
    );
}

#[test]
fn wrong_use_has_a_code_of_its_own() {
    for arguments in [
        &["ls", "--presence", "gone"][..],
        &["show"],
        &["--master", "https://m", "ls"],
    ] {
        let out = fake::rollcall().args(arguments).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{out:?}");
    }
}
