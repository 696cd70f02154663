//! A slave that is stopped has left and is not missing; one that is restarted was never gone.

use std::thread;
use std::time::Duration;

use rollcall_e2e::wait::{PATIENCE, watch_for};
use rollcall_e2e::{Master, Slave, wait_until};
use rollcall_protocol::api::{EventKind, EventRow, Presence};

const MODES: [&str; 3] = ["pooled", "per-message", "datagram"];

/// A slave's end is told after an interval: long enough for a busy machine to do in it what must be done
/// before. Missing is who is silent for two.
fn pair(folder: &std::path::Path, mode: &str, interval: &str) -> (Master, Slave) {
    let mut master = Master::new(folder, "master");
    let address = master.address();
    master
        .config
        .set("listen.datagram", vec![address.to_string()])
        .set("presence.missing_after", 2.0)
        .set("presence.reconnect_window", "1s");
    master.start();
    let mut slave = Slave::new(folder, "web-1", &[address], interval);
    slave.config.set("connection.mode", mode);
    slave.start();
    master.wait_for_row("web-1", "up", |row| row.presence == Presence::Up);
    (master, slave)
}

/// In all of them at once: most of the time there is nothing to do but to wait.
fn in_each_mode(test: fn(&str)) {
    thread::scope(|scope| {
        for mode in MODES {
            scope.spawn(move || test(mode));
        }
    });
}

/// What was told of the slave since it was enrolled, other than its health and its checks.
fn told(master: &Master) -> Vec<EventRow> {
    let mut events = master.api().events().expect("the events");
    events.retain(|event| {
        event.slave.is_some()
            && !matches!(
                event.kind,
                EventKind::Health | EventKind::Check | EventKind::Enrolled
            )
            && event.from.as_deref() != Some("expected")
    });
    events
}

#[test]
fn a_restart_inside_the_interval_is_no_event_in_any_mode() {
    in_each_mode(|mode| {
        let folder = tempfile::tempdir().expect("a folder");
        let (master, mut slave) = pair(folder.path(), mode, "10s");
        for _ in 0..2 {
            let before = master.api().slave("web-1").expect("a row").row;
            assert_eq!(slave.terminate().code(), Some(0));
            // It might be for good, and the roll says so at once.
            master.wait_for_row("web-1", "gone", |row| row.presence == Presence::Left);
            slave.start();
            let after = master.wait_for_row("web-1", "back", |row| row.presence == Presence::Up);
            assert_ne!(after.stream, before.stream);
            assert_eq!(after.since_ms, before.since_ms, "{mode}: it was never gone");
        }
        let told = watch_for(Duration::from_secs(11), || {
            let told = told(&master);
            (!told.is_empty()).then_some(told)
        });
        assert_eq!(told, None, "{mode}");
    });
}

#[test]
fn a_stop_is_told_once_as_left_and_never_as_missing_in_any_mode() {
    in_each_mode(|mode| {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut master, mut slave) = pair(folder.path(), mode, "5s");
        assert_eq!(slave.terminate().code(), Some(0));
        let row = master.wait_for_row("web-1", "gone", |row| row.presence == Presence::Left);
        // A master that ends before the interval is over tells it after its next start.
        master.kill_and_wait();
        master.start();
        assert_eq!(told(&master), [], "{mode}");
        let event = wait_until(PATIENCE, "the end to be told", || told(&master).pop());
        assert_eq!(event.to.as_deref(), Some("left"), "{mode}: {event:#?}");
        assert_eq!(event.time_ms, row.since_ms, "{mode}: when it left");
        master.kill_and_wait();
        master.start();
        // Longer than the window and all that a slave may be silent.
        let more = watch_for(Duration::from_secs(12), || {
            let told = told(&master);
            (told.len() > 1).then_some(told)
        });
        assert_eq!(more, None, "{mode}");
        slave.start();
        master.wait_for_presences("web-1", &["up", "left", "up"]);
    });
}
