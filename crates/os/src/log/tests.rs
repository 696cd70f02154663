use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tracing::subscriber::with_default;

use super::{Level, LogFormat, LogHandle, subscriber};

/// A writer whose text can be read back.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged(pretty: Option<bool>, level: Level, run: impl FnOnce(&LogHandle)) -> String {
    let sink = Sink::default();
    let writer = sink.clone();
    let (subscriber, handle) = subscriber(pretty, level, move || writer.clone());
    with_default(subscriber, || run(&handle));
    let bytes = sink.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

fn json(run: impl FnOnce(&LogHandle)) -> String {
    logged(None, Level::Info, run)
}

/// The line as others read it.
fn parsed(line: &str) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_str(line).unwrap()
}

#[test]
fn a_line_has_the_documented_keys_in_order() {
    let before = crate::clock::wall_ms();
    let line = json(|_| {
        tracing::info!(
            event = "slave_late",
            slave = %"web-1",
            sequence = 7_u64,
            offset_ms = -3_i64,
            share = 0.5,
            first = true,
            "web-1 is late"
        );
    });
    let (timestamp, rest) = line
        .strip_prefix(r#"{"timestamp":""#)
        .unwrap()
        .split_once('"')
        .unwrap();
    assert_eq!(
        rest,
        ",\"level\":\"INFO\",\"target\":\"rollcall_os::log::tests\",\"event\":\"slave_late\",\
         \"message\":\"web-1 is late\",\"slave\":\"web-1\",\"sequence\":7,\"offset_ms\":-3,\
         \"share\":0.5,\"first\":true}\n"
    );
    assert_eq!(
        timestamp.len(),
        "2026-11-22T04:16:05.123Z".len(),
        "{timestamp}"
    );
    let at: jiff::Timestamp = timestamp.parse().unwrap();
    assert!((before..=crate::clock::wall_ms()).contains(&at.as_millisecond()));
}

#[test]
fn what_came_from_outside_stays_inside_of_its_string() {
    let hostile = "a\n{\"event\":\"forged\"}\r\t\"\\\u{1b}[2J\u{9b}31m\u{7f}\u{2028}\u{202e}\0é";
    let line = json(|_| tracing::warn!(event = "hello_refused", slave = %hostile, "refused"));
    assert_eq!(line.lines().count(), 1);
    assert!(
        line.contains(
            r#""slave":"a\n{\"event\":\"forged\"}\r\t\"\\\u001b[2J\u009b31m\u007f\u2028\u202e\u0000é"}"#
        ),
        "{line}"
    );
    assert!(!line.trim_end_matches('\n').contains(char::is_control));
    assert_eq!(parsed(&line)["slave"], hostile);

    // The same by debug, as an event's message and in a name that holds a whole field.
    for line in [
        json(|_| tracing::warn!(event = "x", slave = ?hostile, "{hostile}")),
        logged(Some(false), Level::Info, |_| {
            tracing::warn!(event = "x", slave = %hostile, peer = "a event=forged", "{hostile}");
        }),
    ] {
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(
            !line.trim_end_matches('\n').contains(char::is_control),
            "{line}"
        );
    }
}

#[test]
fn a_field_cannot_stand_in_for_a_key_of_the_line() {
    let line = json(|_| {
        tracing::info!(
            event = "x",
            level = "fake",
            timestamp = 1,
            r#type = "t",
            huge = f64::INFINITY,
            "y"
        );
    });
    let object = parsed(&line);
    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "event",
            "field_level",
            "field_timestamp",
            "huge",
            "level",
            "message",
            "target",
            "timestamp",
            "type"
        ]
    );
    assert_eq!(object["level"], "INFO");
    assert_eq!(object["huge"], "inf");
}

#[test]
fn an_error_is_written_with_its_causes() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot commit")]
    struct Outer(#[source] io::Error);

    let error = Outer(io::Error::other("disk full"));
    let line = json(|_| {
        let error: &(dyn std::error::Error + 'static) = &error;
        tracing::error!(event = "commit_failed", error, "the commit failed");
    });
    assert!(
        line.contains(r#""error":"cannot commit: disk full""#),
        "{line}"
    );
}

#[test]
fn a_line_of_a_library_has_an_event_too() {
    let line = json(|_| {
        tracing::info!(target: "axum::serve", "information");
        tracing::warn!(target: "axum::serve", "warning");
    });
    assert_eq!(line.lines().count(), 1, "libraries warn at most: {line}");
    assert!(
        line.contains(r#""target":"axum::serve","event":"library","message":"warning"}"#),
        "{line}"
    );
}

#[test]
fn pretty_lines_quote_what_is_ambiguous() {
    let run = |colour| {
        logged(Some(colour), Level::Info, |_| {
            tracing::info!(
                event = "slave_late",
                slave = "web-1",
                reason = "a b",
                none = "",
                n = 3,
                "is late"
            );
        })
    };
    let plain = run(false);
    let (timestamp, rest) = plain.split_once(' ').unwrap();
    timestamp.parse::<jiff::Timestamp>().unwrap();
    assert_eq!(
        rest,
        "INFO  is late event=slave_late slave=web-1 reason=\"a b\" none=\"\" n=3\n"
    );
    let coloured = run(true);
    assert!(
        coloured.contains("\u{1b}[32mINFO \u{1b}[0m is late"),
        "{coloured}"
    );
}

#[test]
fn the_level_changes_at_run_time() {
    let lines = json(|handle| {
        let log = |step: &str| {
            tracing::debug!(event = "step", step, "debug");
            tracing::info!(event = "step", step, "info");
        };
        log("1");
        assert_eq!(handle.toggle_debug(), Level::Debug);
        log("2");
        assert_eq!(handle.toggle_debug(), Level::Info);
        log("3");
        handle.set_level(Level::Warn);
        log("4");
        assert_eq!(handle.clone().toggle_debug(), Level::Debug);
        log("5");
        handle.set_level(Level::Warn);
        assert_eq!(
            handle.level(),
            Level::Debug,
            "a reload that changes nothing keeps the raise"
        );
        handle.set_level(Level::Debug);
        assert_eq!(handle.toggle_debug(), Level::Trace);
        assert_eq!(handle.toggle_debug(), Level::Debug);
    });
    let seen: Vec<&str> = lines
        .lines()
        .map(|line| {
            let message = line.split(r#""message":""#).nth(1).unwrap();
            message.trim_end_matches("\"}")
        })
        .collect();
    assert_eq!(
        seen,
        [
            r#"info","step":"1"#,
            r#"debug","step":"2"#,
            r#"info","step":"2"#,
            r#"info","step":"3"#,
            r#"debug","step":"5"#,
            r#"info","step":"5"#,
        ]
    );
}

#[test]
fn names_read_and_write_alike() {
    for level in ["error", "warn", "info", "debug", "trace"] {
        assert_eq!(level.parse::<Level>().unwrap().to_string(), level);
    }
    for format in ["json", "pretty", "journal"] {
        assert_eq!(format.parse::<LogFormat>().unwrap().to_string(), format);
    }
    assert_eq!(
        "INFO".parse::<Level>().unwrap_err().to_string(),
        r#""INFO" is not one of error, warn, info, debug, trace"#
    );
    assert_eq!(
        "xml".parse::<LogFormat>().unwrap_err().to_string(),
        r#""xml" is not one of json, pretty, journal"#
    );
}
