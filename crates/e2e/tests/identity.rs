//! Who a slave is: restarts that nobody notices, copies that are found out, disks that are older than
//! what the master knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rollcall_e2e::peer::Identity;
use rollcall_e2e::wait::{PATIENCE, watch_for};
use rollcall_e2e::{Master, Peer, Slave, binaries, wait_until};
use rollcall_protocol::api::{EventKind, EventRow, Presence, SlaveRow};
use rollcall_protocol::wire::{self, Health, to_master, to_slave};
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;

/// Short against the time after which a slave is late, so that a busy machine makes nobody late.
const INTERVAL: &str = "200ms";
const LATE_AFTER: f64 = 50.0;

fn master(folder: &Path) -> Master {
    let mut master = Master::new(folder, "master");
    master
        .config
        .set("presence.late_after", LATE_AFTER)
        .set("presence.missing_after", 2.0 * LATE_AFTER);
    master.start();
    master
}

/// A slave that the master knows as web-1, with files of its own under `files`.
fn slave(master: &Master, folder: &Path, files: &str, mode: &str) -> Slave {
    let mut slave = Slave::new(folder, files, &[master.address()], INTERVAL);
    slave
        .config
        .set("name", "web-1")
        .set("connection.mode", mode);
    slave
}

fn state(folder: &Path, files: &str) -> PathBuf {
    folder.join(format!("{files}-state"))
}

/// Copies a state folder as a backup of the whole machine would: at one moment.
fn copy(running: Option<&Slave>, from: &Path, to: &Path) {
    if let Some(slave) = running {
        slave.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", slave.pid());
        wait_until(PATIENCE, "the slave to stand still", || {
            fs::read_to_string(&stat)
                .ok()?
                .contains(") T ")
                .then_some(())
        });
    }
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("the state folder") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
    if let Some(slave) = running {
        slave.signal(Signal::CONT);
    }
}

fn events(master: &Master, kind: EventKind) -> Vec<EventRow> {
    let mut events = master.api().events().expect("the events");
    events.retain(|event| event.kind == kind);
    events
}

/// The stream of the running process, as its log tells.
fn stream(slave: &mut Slave) -> String {
    let ready = slave.wait_for_event("slave_ready");
    ready.text("stream").to_owned()
}

fn at_least(master: &Master, stream: &str, sequence: u64) -> SlaveRow {
    let what = format!("{stream} at {sequence}");
    master.wait_for_row("web-1", &what, |row| {
        row.stream == stream && row.sequence >= sequence
    })
}

fn new_identity(slave: &Slave) -> Output {
    Command::new(binaries::path(binaries::SLAVE))
        .arg("--config")
        .arg(slave.config_file())
        .arg("--new-identity")
        .output()
        .expect("rollcall-slave")
}

fn assert_copy_is_found_out(first_mode: &str, copy_mode: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let master = master(folder);
    let mut first = slave(&master, folder, "first", first_mode);
    first.start();
    let own = stream(&mut first);
    at_least(&master, &own, 3);
    copy(
        Some(&first),
        &state(folder, "first"),
        &state(folder, "copy"),
    );
    let mut second = slave(&master, folder, "copy", copy_mode);
    second.start();

    let refused = second.wait_for_event("session_refused");
    assert_eq!(refused.text("code"), "ERROR_CODE_ID_CONFLICT");
    assert!(refused.text("error").contains("--new-identity"));
    // The first goes on as if nothing had happened, and the second stays out.
    let seen = at_least(&master, &own, 1).sequence;
    let strange = watch_for(Duration::from_secs(2), || {
        let row = master.api().slave("web-1").ok()?.row;
        (row.stream != own || row.presence != Presence::Up).then_some(row)
    });
    assert_eq!(strange, None, "{first_mode}, {copy_mode}");
    at_least(&master, &own, seen + 5);
    for event in ["session_lost", "session_refused", "master_unreachable"] {
        assert!(first.log().events(event).is_empty(), "{event}");
    }
    assert_eq!(first.log().events("session_opened").len(), 1);
    let told = events(&master, EventKind::Conflict);
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(told[0].text.matches("127.0.0.1:").count(), 2, "{told:#?}");
    assert!(told[0].text.contains("--new-identity"), "{told:#?}");
    assert_eq!(master.api().presences("web-1").expect("events"), ["up"]);

    become_another(&master, &mut second);
    at_least(&master, &own, seen + 10);
    assert_eq!(first.log().events("session_opened").len(), 1);
    assert_eq!(events(&master, EventKind::Conflict).len(), 1);
}

/// What the conflict's text says helps.
fn become_another(master: &Master, copy: &mut Slave) {
    let in_use = new_identity(copy);
    assert_eq!(in_use.status.code(), Some(74), "it runs");
    let text = String::from_utf8_lossy(&in_use.stderr).into_owned();
    assert!(text.contains(&format!("pid {}", copy.pid())), "{text}");
    copy.kill_and_wait();
    let backlog = copy.spooled().expect("a spool");
    assert!(backlog > 0, "what was refused is still there");
    let done = new_identity(copy);
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{done:?}");
    assert!(text.contains("new id  "), "{text}");
    copy.config.set("name", "web-2");
    copy.start();
    let row = master.wait_for_row("web-2", "up", |row| {
        row.presence == Presence::Up && row.applied >= u64::from(backlog)
    });
    assert!(text.contains(&format!("new id  {}", row.id)), "{text}");
}

#[test]
fn a_pooled_copy_of_a_pooled_slave_is_found_out() {
    assert_copy_is_found_out("pooled", "pooled");
}

#[test]
fn a_per_message_copy_of_a_per_message_slave_is_found_out() {
    assert_copy_is_found_out("per-message", "per-message");
}

#[test]
fn a_per_message_copy_of_a_pooled_slave_is_found_out() {
    assert_copy_is_found_out("pooled", "per-message");
}

#[test]
fn a_pooled_copy_of_a_per_message_slave_is_found_out() {
    assert_copy_is_found_out("per-message", "pooled");
}

/// The highest sequence of `stream` in the spool of a slave that does not run; 0 if there is none.
fn spooled_up_to(folder: &Path, stream: &str) -> u64 {
    let path = state(folder, "first").join("spool.db");
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .expect("the spool can be read");
    let stream = u64::from_str_radix(stream, 16).expect("a stream");
    let sql = "SELECT coalesce(max(last), 0) FROM entries WHERE stream = ?1";
    let last: i64 = database
        .query_row(sql, [stream.cast_signed()], |row| row.get(0))
        .expect("a number");
    u64::try_from(last).expect("a sequence")
}

/// kill -9 in a row: the acks that were not synced come to nothing, each report is applied once, and
/// no restart is taken for a copy.
fn assert_restarts_are_unnoticed(mode: &str) {
    const RESTARTS: usize = 6;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let master = master(folder);
    let mut slave = slave(&master, folder, "first", mode);
    let mut spooled = 0;
    for _ in 0..RESTARTS {
        slave.start();
        let own = stream(&mut slave);
        let acked = at_least(&master, &own, 2).sequence;
        slave.kill_and_wait();
        // It is let in at its first try.
        for event in ["session_lost", "session_refused", "master_unreachable"] {
            assert_eq!(slave.log().events(event), [], "{event}");
        }
        // What it had written when it died, acked or not, is all that there is of this stream.
        spooled += spooled_up_to(folder, &own).max(acked);
    }
    slave.start();
    let own = stream(&mut slave);
    at_least(&master, &own, 2);
    assert_eq!(slave.terminate().code(), Some(0));
    let row = master.wait_for_row("web-1", "left", |row| row.presence == Presence::Left);
    assert_eq!(row.applied, spooled + row.sequence, "{row:#?}");
    assert_eq!(row.gaps, 0);
    assert_eq!(events(&master, EventKind::Conflict), []);
    assert_eq!(events(&master, EventKind::Resync), []);
    assert_eq!(events(&master, EventKind::Restart).len(), RESTARTS);
    assert_eq!(slave.spooled(), Ok(0));
}

#[test]
fn restarts_of_a_pooled_slave_are_unnoticed() {
    assert_restarts_are_unnoticed("pooled");
}

#[test]
fn restarts_of_a_per_message_slave_are_unnoticed() {
    assert_restarts_are_unnoticed("per-message");
}

/// The machine lost its power: nobody closes the old connection.
#[test]
fn a_successor_does_not_wait_for_the_end_of_a_half_open_connection() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = Master::started(folder.path());
    let mut dead = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &dead).expect("a session");
    peer.report(&mut dead).expect("an ack");
    // A stranger with this id has to wait ...
    let mut next = Identity::new("web-1", 60_000);
    next.id = dead.id;
    let mut stranger = Peer::connect(master.address()).expect("a connection");
    stranger
        .send(to_master::Kind::Hello(next.hello()))
        .expect("a connection");
    let refusal = stranger.await_refusal().expect("a refusal");
    assert_eq!(refusal.code(), wire::ErrorCode::IdConflict);
    // ... and a successor has not.
    let mut successor = Peer::connect(master.address()).expect("a connection");
    let hello = wire::Hello {
        previous: vec![dead.stream],
        ..next.hello()
    };
    successor
        .send(to_master::Kind::Hello(hello))
        .expect("a connection");
    let welcome = successor.receive().expect("an answer");
    assert!(
        matches!(welcome, Some(to_slave::Kind::Welcome(_))),
        "{welcome:?}"
    );
    successor.report(&mut next).expect("an ack");
    assert_eq!(events(&master, EventKind::Conflict).len(), 1);
}

/// A report of its own kind: which run it belongs to can be read from its check.
fn report(identity: &mut Identity, peer: &mut Peer, check: &str, health: Health) {
    let sequence = identity.next;
    identity.next += 1;
    let check = wire::Check {
        name: check.to_owned(),
        state: health.into(),
        text: format!("{sequence}"),
        ..wire::Check::default()
    };
    let report = wire::Report {
        health: health.into(),
        status: Some(wire::Status {
            checks: vec![check],
        }),
        ..identity.report(sequence)
    };
    peer.send(to_master::Kind::Report(report))
        .expect("a connection");
    peer.await_ack(identity).expect("an ack");
}

/// Memory and disk go back together, and the process goes on with sequences that it has used.
#[test]
fn a_restored_process_is_told_to_start_a_new_stream() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = Master::started(folder.path());
    let mut slave = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &slave).expect("a session");
    report(&mut slave, &mut peer, "disk", Health::Ok);
    let snapshot = slave.clone();
    report(&mut slave, &mut peer, "disk", Health::Warning);
    report(&mut slave, &mut peer, "disk", Health::Critical);
    drop(peer);

    let mut slave = snapshot;
    let mut peer = Peer::connect(master.address()).expect("a connection");
    peer.send(to_master::Kind::Hello(slave.hello()))
        .expect("a connection");
    match peer.receive().expect("an answer") {
        Some(to_slave::Kind::Resync(resync)) => {
            assert_eq!((resync.stream, resync.sequence), (slave.stream, 3));
        }
        other => panic!("no Resync: {other:?}"),
    }
    peer.await_close().expect("the master's end");
    let previous = vec![slave.stream];
    (slave.stream, slave.next, slave.unacked) = (slave.stream ^ 1, 1, 1);
    let mut peer = Peer::connect(master.address()).expect("a connection");
    let hello = wire::Hello {
        previous,
        ..slave.hello()
    };
    peer.send(to_master::Kind::Hello(hello))
        .expect("a connection");
    let welcome = peer.receive().expect("an answer");
    assert!(matches!(welcome, Some(to_slave::Kind::Welcome(_))));
    report(&mut slave, &mut peer, "disk", Health::Ok);
    report(&mut slave, &mut peer, "disk", Health::Unknown);
    let row = master.wait_for_row("web-1", "all", |row| row.applied == 5);
    assert_eq!((row.sequence, row.duplicates, row.gaps), (2, 0, 0));

    let states: Vec<_> = events(&master, EventKind::Check)
        .into_iter()
        .filter_map(|event| event.to)
        .collect();
    assert_eq!(states, ["warning", "critical", "ok", "unknown"]);
    let resyncs = events(&master, EventKind::Resync);
    assert_eq!(resyncs.len(), 1, "{resyncs:#?}");
    assert_eq!(events(&master, EventKind::Restart), []);
    assert_eq!(events(&master, EventKind::Conflict), []);
}

/// A disk that was put back, with a process that is new: nothing is lost and nothing is told, but that
/// the process is new.
#[test]
fn a_restored_folder_sends_nothing_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let mut master = master(folder);
    let mut slave = slave(&master, folder, "first", "pooled");
    slave.start();
    let first = stream(&mut slave);
    at_least(&master, &first, 2);
    // A part of the copy's spool is acked in the run that is undone.
    master.kill_and_wait();
    slave.wait_for_spooled(5);
    let own = state(folder, "first");
    let backup = folder.join("backup");
    copy(Some(&slave), &own, &backup);
    master.start();
    let row = at_least(&master, &first, 10);
    assert!(row.applied >= 10, "{row:#?}");
    assert_eq!(slave.terminate().code(), Some(0));
    let before = master.wait_for_row("web-1", "left", |row| row.presence == Presence::Left);
    assert_eq!((before.applied, before.gaps), (before.sequence, 0));
    // A start inside its interval would be no event.
    master.wait_for_presences("web-1", &["up", "left"]);

    fs::remove_dir_all(&own).expect("the folder goes");
    copy(None, &backup, &own);
    slave.start();
    let second = stream(&mut slave);
    at_least(&master, &second, 3);
    assert_eq!(slave.terminate().code(), Some(0));
    let after = master.wait_for_row("web-1", "left", |row| {
        row.presence == Presence::Left && row.stream == second
    });
    assert_eq!(after.applied, before.applied + after.sequence, "{after:#?}");
    assert_eq!((after.gaps, slave.spooled()), (0, Ok(0)));
    for kind in [EventKind::Conflict, EventKind::Resync, EventKind::Gap] {
        assert_eq!(events(&master, kind), []);
    }
    assert_eq!(events(&master, EventKind::Restart).len(), 1);
}
