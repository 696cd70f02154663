//! The log against its document, and the lines of the running daemons.

use std::fmt::Write as _;

use rollcall_e2e::events::{self, Event, Program};
use rollcall_e2e::{LogLine, Master, Slave, source};
use rustix::process::Signal;

const DOCUMENT: &str = "docs/logging.md";
/// Stands on lines of libraries; the logger itself writes it.
const OF_LIBRARIES: &str = "library";

/// Each event of the source is in the document with its level and fields, and the other way round.
#[test]
fn the_documented_events_are_those_of_the_source() {
    let source = events::in_source();
    assert!(
        source.len() > 30,
        "only {} events found in the source",
        source.len()
    );
    let document = events::in_document(&source::read(DOCUMENT));
    let both = |name: &str| (Program::Both, name.to_owned());
    let mut faults = String::new();
    for (key @ (program, name), event) in &source {
        let fault = match document.get(key).or_else(|| document.get(&both(name))) {
            None => "is not documented",
            Some(documented) if documented.levels != event.levels => "has another level",
            Some(documented) if !has_fields(event, documented) => "has other fields",
            Some(_) => continue,
        };
        let row = events::row(name, event);
        writeln!(
            faults,
            "{program:?} {name} {fault}; the source says:\n  {row}"
        )
        .expect("a String grows");
    }
    for (program, name) in document.keys() {
        let has = |program| source.contains_key(&(program, name.clone()));
        let is_there = match program {
            Program::Both => has(Program::Both) || (has(Program::Master) && has(Program::Slave)),
            program => has(*program),
        };
        if !is_there && name != OF_LIBRARIES {
            writeln!(
                faults,
                "{program:?} {name} is documented, and the source has it not"
            )
            .expect("a String grows");
        }
    }
    assert!(faults.is_empty(), "{DOCUMENT}:\n{faults}");
}

/// Events of the roll come out of one macro with all fields that any of them has; the document may
/// leave out those that never apply.
fn has_fields(event: &Event, documented: &Event) -> bool {
    match event.may_lack_fields {
        true => documented.fields.is_subset(&event.fields),
        false => documented.fields == event.fields,
    }
}

/// Every line of both daemons, from start to end, has the keys that all lines have, and is about a
/// documented event with documented fields.
#[test]
fn lines_of_the_running_daemons_are_as_documented() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    master.config.set("log.level", "debug");
    master.start();
    let mut slave = Slave::new(folder.path(), "web-1", &[master.address()], "200ms");
    slave.config.set("log.level", "debug");
    slave.start();
    master.wait_for_row("web-1", "there", |row| row.sequence >= 3);
    for daemon in [&mut *master, &mut *slave] {
        daemon.signal(Signal::HUP);
        daemon.wait_for_event("reloaded");
        daemon.signal(Signal::USR1);
        daemon.wait_for_event("log_level_changed");
    }
    assert!(slave.terminate().success());
    assert!(master.terminate().success());
    let document = events::in_document(&source::read(DOCUMENT));
    for (daemon, program, last) in [
        (&*master, Program::Master, "master_stopped"),
        (&*slave, Program::Slave, "slave_stopped"),
    ] {
        let lines = daemon.log().lines();
        assert!(lines.len() >= 5, "{lines:?}");
        for line in &lines {
            assert_line(line);
            let keys = [program, Program::Both].map(|program| (program, line.event().to_owned()));
            let Some(event) = keys.iter().find_map(|key| document.get(key)) else {
                panic!("an event that is not documented: {line:?}");
            };
            if line.event() != OF_LIBRARIES {
                assert!(
                    event.levels.contains(&line.text("level").to_lowercase()),
                    "{line:?}"
                );
            }
        }
        assert_eq!(lines.last().map(LogLine::event), Some(last));
        assert_eq!(daemon.stderr(), "");
    }
}

fn assert_line(line: &LogLine) {
    let timestamp = line.text("timestamp");
    let shape: String = timestamp
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z", "{line:?}");
    assert!(
        ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&line.text("level")),
        "{line:?}"
    );
    assert!(!line.text("target").is_empty(), "{line:?}");
    assert!(!line.text("message").is_empty(), "{line:?}");
    let is_word = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
    assert!(
        !line.event().is_empty() && line.event().chars().all(is_word),
        "{line:?}"
    );
}

/// What a slave calls itself and its checks can't forge a line, nor steer a terminal.
#[test]
fn a_hostile_check_forges_no_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = Master::started(folder.path());
    let script = "printf 'bad\\033[2J\\ttext\\r{\"event\":\"forged\"}\\n'; exit 2";
    let mut slave = Slave::new(folder.path(), "web-1", &[master.address()], "200ms");
    slave.add_check("hostile", &["/bin/sh", "-c", script], "200ms");
    slave.start();
    master.wait_for_row("web-1", "critical", |row| {
        row.health == Some(rollcall_protocol::api::Health::Critical)
    });
    for daemon in [&*master, &*slave] {
        let text = daemon.log().text();
        assert!(
            daemon
                .log()
                .lines()
                .iter()
                .all(|line| line.event() != "forged"),
            "{text}"
        );
        assert!(!text.contains(['\u{1b}', '\r', '\t']), "{text:?}");
    }
}
