//! The fixtures: what the daemons of each version left, and what readers saw in it.

use std::fs;
use std::path::{Path, PathBuf};

use rollcall_e2e::faults::fleet::{Fleet, SCRIPT};
use rollcall_e2e::peer::Identity;
use rollcall_e2e::{Api, Master, Peer, Slave};
use rollcall_protocol::api::{EventRow, SlaveRow};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

const SPOOLED: u32 = 5;

/// What readers saw when the daemons of the version had ended.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Content {
    pub(crate) slaves: Vec<Known>,
    pub(crate) events: Vec<Told>,
    /// The stream of the spool.
    pub(crate) spooled_stream: String,
    /// The reports in it.
    pub(crate) spooled: u32,
}

/// What of a row does not depend on when it is looked at.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) presence: String,
    pub(crate) health: Option<String>,
    pub(crate) stream: String,
    pub(crate) sequence: u64,
    pub(crate) applied: u64,
    pub(crate) gaps: u64,
    pub(crate) since_ms: i64,
    pub(crate) last_seen_ms: Option<i64>,
    pub(crate) interval_ms: u32,
}

/// The same of an event.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) id: i64,
    pub(crate) time_ms: i64,
    pub(crate) kind: String,
    pub(crate) slave: Option<String>,
    pub(crate) from: Option<String>,
    pub(crate) to: Option<String>,
    pub(crate) text: String,
}

fn known(row: SlaveRow) -> Known {
    Known {
        name: row.name,
        id: row.id,
        presence: row.presence.as_str().to_owned(),
        health: row.health.map(|health| health.as_str().to_owned()),
        stream: row.stream,
        sequence: row.sequence,
        applied: row.applied,
        gaps: row.gaps,
        since_ms: row.since_ms,
        last_seen_ms: row.last_seen_ms,
        interval_ms: row.interval_ms,
    }
}

fn told(event: EventRow) -> Told {
    Told {
        id: event.id,
        time_ms: event.time_ms,
        kind: event.kind.as_str().to_owned(),
        slave: event.slave,
        from: event.from,
        to: event.to,
        text: event.text,
    }
}

pub(crate) fn roll(api: &Api) -> Vec<Known> {
    let rows = api.slaves().expect("the roll");
    rows.into_iter().map(known).collect()
}

pub(crate) fn events(api: &Api) -> Vec<Told> {
    let events = api.events().expect("the events");
    events.into_iter().map(told).collect()
}

pub(crate) fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// The folders of all versions that are kept. Writes that of the present one if it is asked for.
pub(crate) fn versions() -> Vec<PathBuf> {
    let own = fixtures().join(concat!("v", env!("CARGO_PKG_VERSION")));
    if std::env::var_os("ROLLCALL_WRITE_FIXTURES").is_some() && !own.exists() {
        write(&own);
    }
    let found = fs::read_dir(fixtures()).expect("the fixtures");
    let found = found.map(|entry| entry.expect("an entry").path());
    let versions: Vec<_> = found.collect();
    assert!(versions.contains(&own), "no fixtures of this version");
    versions
}

pub(crate) fn content(version: &Path) -> Content {
    let text = fs::read_to_string(version.join("content.json")).expect("content.json");
    serde_json::from_str(&text).expect("content.json as it is written here")
}

/// Runs the daemons of this build and keeps what they leave.
fn write(own: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::started(folder.path());
    let mut fleet = Fleet::new();
    fleet.play(master.address(), &SCRIPT).expect("the script");
    // The next start writes the records; what comes then is redo.
    assert_eq!(master.terminate().code(), Some(0));
    master.start();
    let mut identity = Identity::new("redo", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    for _ in 0..3 {
        peer.report(&mut identity).expect("an ack");
    }
    master.wait_for_row("redo", "at 3", |row| row.sequence == 3);
    let (slaves, events) = (roll(&master.api()), events(&master.api()));
    assert_eq!(master.terminate().code(), Some(0));

    let mut slave = Slave::new(folder.path(), "spooled", &[master.address()], "100ms");
    slave.start();
    let stream = slave
        .wait_for_event("slave_ready")
        .text("stream")
        .to_owned();
    slave.wait_for_spooled(SPOOLED);
    assert_eq!(slave.terminate().code(), Some(0));
    let content = Content {
        slaves,
        events,
        spooled_stream: stream,
        spooled: slave.spooled().expect("the spool"),
    };
    fs::create_dir_all(own).expect("a folder");
    for (state, file) in [("master-state", "master.db"), ("spooled-state", "spool.db")] {
        let path = folder.path().join(state).join(file);
        fold(&path);
        fs::copy(path, own.join(file)).expect("a copy");
    }
    let text = serde_json::to_string_pretty(&content).expect("JSON");
    fs::write(own.join("content.json"), text + "\n").expect("content.json");
}

/// All of the database in one file, without what it does not use.
fn fold(path: &Path) {
    let database = Connection::open(path).expect("a database");
    let fold = "VACUUM; PRAGMA wal_checkpoint(TRUNCATE);";
    database.execute_batch(fold).expect("it can be written");
}

/// A copy of what a version left, as the state of a daemon in `folder`.
pub(crate) fn restore(version: &Path, file: &str, folder: &Path, state: &str) -> PathBuf {
    let state = folder.join(state);
    fs::create_dir_all(&state).expect("a folder");
    let path = state.join(file);
    fs::copy(version.join(file), &path).expect("a copy");
    path
}
