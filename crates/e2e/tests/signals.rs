//! Signals, ends and exit codes of both daemons.

use std::net::TcpStream;
use std::time::Duration;

use rollcall_e2e::peer::Identity;
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Daemon, LogLine, Master, Peer, Slave, binaries};
use rollcall_os::clock;
use rollcall_protocol::api::Presence;
use rollcall_protocol::wire::to_slave;
use rustix::process::Signal;
use socket2::SockRef;

/// As sysexits.h and the daemons' --help have them.
const EXIT_STORE: i32 = 74;

/// SIGTERM and SIGINT: the slaves are told, what has arrived is stored, exit code 0 in time.
#[test]
fn a_master_drains_and_ends_with_0() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut master = Master::started(folder.path());
        let mut identity = Identity::new("steady", 1000);
        let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
        peer.report(&mut identity).expect("an ack");
        // It says nothing, and does not hold up the end.
        let mut silent = Peer::connect(master.address()).expect("a connection");
        peer.send_report(&mut identity).expect("a connection");
        let began = clock::boot();
        master.signal(signal);
        let goodbye = loop {
            match peer.receive().expect("a message") {
                Some(to_slave::Kind::Ack(_)) => {}
                Some(to_slave::Kind::Goodbye(goodbye)) => break goodbye,
                other => panic!("no Goodbye: {other:?}"),
            }
        };
        assert!(goodbye.back_max_ms > 0, "{goodbye:?}");
        assert!(
            goodbye.marks.iter().any(|mark| mark.sequence >= 1),
            "{goodbye:?}"
        );
        peer.await_close().expect("the end");
        match silent.receive().expect("a message") {
            Some(to_slave::Kind::Goodbye(goodbye)) => assert_eq!(goodbye.marks, []),
            other => panic!("no Goodbye: {other:?}"),
        }
        silent.await_close().expect("the end");
        drop((peer, silent));
        let status = master.wait(PATIENCE);
        let took = clock::boot().saturating_since(began);
        assert_eq!(status.code(), Some(0), "{name}");
        assert!(took < Duration::from_secs(8), "{name}: {took:?}");
        assert_eq!(
            master.wait_for_event("master_stopping").text("signal"),
            name
        );
        let stopped = master.wait_for_event("master_stopped");
        assert_eq!(stopped.0["clean"], true, "{stopped:?}");
        assert_eq!(master.stderr(), "");
        // What the goodbye said is durable is.
        let durable = goodbye.marks[0].sequence;
        master.start();
        let row = master.wait_for_row("steady", "on the roll", |_| true);
        assert_eq!(row.sequence, durable);
    }
}

/// A slave that does not go away when it is told does not hold up the master for longer than the
/// deadline.
#[test]
fn a_master_ends_within_its_deadline() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    master.config.set("shutdown.deadline", "300ms");
    master.start();
    let identity = Identity::new("stubborn", 1000);
    let (_stays, _) = Peer::open(master.address(), &identity).expect("a session");
    let began = clock::boot();
    let status = master.terminate();
    let took = clock::boot().saturating_since(began);
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn a_slave_says_goodbye_and_ends_with_0() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let folder = tempfile::tempdir().expect("a folder");
        let master = Master::started(folder.path());
        let mut slave = Slave::new(folder.path(), "web-1", &[master.address()], "200ms");
        // Its end waits for no plugin that hangs.
        slave.add_check("hangs", &["/bin/sleep", "600"], "100ms");
        slave.start();
        master.wait_for_row("web-1", "up", |row| row.sequence >= 2);
        let began = clock::boot();
        slave.signal(signal);
        let status = slave.wait(PATIENCE);
        let took = clock::boot().saturating_since(began);
        assert_eq!(status.code(), Some(0), "{name}");
        assert!(took < Duration::from_secs(8), "{name}: {took:?}");
        assert_eq!(slave.wait_for_event("slave_stopping").text("signal"), name);
        assert_eq!(slave.stderr(), "");
        master.wait_for_row("web-1", "gone", |row| row.presence == Presence::Left);
    }
}

/// A slave without any master ends too, keeps its reports and says so.
#[test]
fn a_slave_that_reaches_nobody_ends_with_0() {
    let folder = tempfile::tempdir().expect("a folder");
    let absent = Master::new(folder.path(), "absent");
    let mut slave = Slave::new(folder.path(), "web-1", &[absent.address()], "100ms");
    slave.config.set("shutdown.drain", "500ms");
    slave.start();
    slave.wait_for_event("master_unreachable");
    slave.wait_for_spooled(3);
    let began = clock::boot();
    assert_eq!(slave.terminate().code(), Some(0));
    let took = clock::boot().saturating_since(began);
    assert!(took < Duration::from_secs(5), "{took:?}");
    let kept = slave.wait_for_event("backlog_kept");
    assert!(kept.number("backlog") >= Some(3), "{kept:?}");
}

/// SIGHUP: what can be changed is, what can't is named, and a faulty file changes nothing.
#[test]
fn a_master_reloads_without_dropping_anybody() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::started(folder.path());
    let mut identity = Identity::new("steady", 1000);
    let (mut peer, welcome) = Peer::open(master.address(), &identity).expect("a session");
    assert_eq!(welcome.window, 64);
    let mut reload = |master: &mut Master, event: &str, count: usize| -> LogLine {
        master.config.write(&master.config_file());
        master.signal(Signal::HUP);
        let line = master.wait_for_events(event, count).remove(count - 1);
        peer.report(&mut identity)
            .expect("an ack, on the same connection");
        line
    };
    master.config.set("session.window", 7);
    reload(&mut master, "reloaded", 1);
    let other = Identity::new("other", 1000);
    let (_, welcome) = Peer::open(master.address(), &other).expect("a session");
    assert_eq!(welcome.window, 7);

    master
        .config
        .set("history.keep", "30d")
        .set("listen.backlog", 128);
    let partial = reload(&mut master, "reloaded_in_part", 1);
    for key in ["history", "listen"] {
        assert!(partial.text("keys").contains(key), "{partial:?}");
    }

    master
        .config
        .set("history.keep", "90d")
        .set("listen.backlog", 4096);
    master.config.set("session.windwo", 8);
    let failed = reload(&mut master, "reload_failed", 1);
    assert!(
        failed.text("error").contains("did you mean \"window\"?"),
        "{failed:?}"
    );
    let third = Identity::new("third", 1000);
    let (_, welcome) = Peer::open(master.address(), &third).expect("a session");
    assert_eq!(welcome.window, 7, "the old configuration is in force");
    let row = master.wait_for_row("steady", "up to date", |row| row.sequence == 3);
    assert_eq!((row.applied, row.reconnects), (3, 0));
}

#[test]
fn a_slave_reloads_without_losing_anything() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = Master::started(folder.path());
    let mut slave = Slave::new(folder.path(), "web-1", &[master.address()], "200ms");
    slave.start();
    let before = master.wait_for_row("web-1", "up", |row| row.sequence >= 2);
    let reload = |slave: &mut Slave, event: &str| {
        slave.config.write(&slave.config_file());
        slave.signal(Signal::HUP);
        slave.wait_for_event(event)
    };
    slave
        .config
        .set("interval", "300ms")
        .set("labels.site", "north");
    slave.add_check("new", &["/bin/sh", "-c", "echo it runs"], "200ms");
    reload(&mut slave, "reloaded");
    let row = master.wait_for_row("web-1", "as configured now", |row| {
        row.interval_ms == 300 && row.labels.get("site").is_some_and(|site| site == "north")
    });
    assert_eq!((&row.stream, row.gaps), (&before.stream, 0));
    rollcall_e2e::wait_until(PATIENCE, "the new check", || {
        let detail = master.api().slave("web-1").ok()?;
        detail
            .checks
            .iter()
            .any(|check| check.text == "it runs")
            .then_some(())
    });
    slave.config.set(
        "state.directory",
        folder
            .path()
            .join("elsewhere")
            .to_string_lossy()
            .into_owned(),
    );
    let partial = reload(&mut slave, "reloaded_in_part");
    assert!(
        partial.text("keys").contains("state.directory"),
        "{partial:?}"
    );
    slave.config.set("interval", "soon");
    let failed = reload(&mut slave, "reload_failed");
    assert!(
        failed.text("error").contains("bad duration \"soon\""),
        "{failed:?}"
    );
    let row = master.api().slave("web-1").expect("a row").row;
    let later = master.wait_for_row("web-1", "reporting", |later| {
        later.sequence > row.sequence + 2
    });
    assert_eq!((&later.stream, later.interval_ms), (&before.stream, 300));
    assert_eq!(
        (later.applied, later.gaps),
        (later.sequence, 0),
        "{later:#?}"
    );
}

#[test]
fn usr1_switches_to_debug_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::started(folder.path());
    let mut slave = Slave::new(folder.path(), "web-1", &[master.address()], "1s");
    slave.start();
    slave.wait_for_event("slave_ready");
    for daemon in [&mut *master, &mut *slave] {
        for (count, level) in [(1, "debug"), (2, "info")] {
            daemon.signal(Signal::USR1);
            let line = daemon
                .wait_for_events("log_level_changed", count)
                .remove(count - 1);
            // "level" is a key of every line already.
            assert!(line.0.values().any(|value| value == level), "{line:?}");
        }
    }
    let address = master.address();
    // A reset is a line at debug. The cut after it is told at any level: once it is there, the
    // master has seen the reset.
    let reset_and_cut = |master: &mut Master, cuts| {
        let stream = TcpStream::connect(address).expect("a connection");
        let abort = Some(Duration::ZERO);
        SockRef::from(&stream).set_linger(abort).expect("a socket");
        drop(stream);
        let mut peer = Peer::connect(address).expect("a connection");
        peer.send_bytes(&[0]).expect("room in the kernel");
        peer.finish().expect("a connection");
        peer.await_close().expect("the end");
        master.wait_for_events("connection_cut", cuts);
    };
    reset_and_cut(&mut master, 1);
    assert!(
        master.log().events("connection_broken").is_empty(),
        "a debug line at info"
    );
    master.signal(Signal::USR1);
    master.wait_for_events("log_level_changed", 3);
    reset_and_cut(&mut master, 2);
    assert_eq!(master.wait_for_events("connection_broken", 1).len(), 1);
}

/// One state folder is for one daemon: the second one names the first.
#[test]
fn a_second_daemon_on_a_state_folder_names_the_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = Master::started(folder.path());
    let mut slave = Slave::new(folder.path(), "web-1", &[master.address()], "1s");
    slave.start();
    slave.wait_for_event("slave_ready");

    let mut second = Master::new(folder.path(), "second");
    let state = folder.path().join("master-state");
    second
        .config
        .set("state.directory", state.to_string_lossy().into_owned());
    second.spawn();
    assert_in_use(&mut second, master.pid());

    let program = binaries::path(binaries::SLAVE);
    let arguments = ["--config".into(), slave.config_file().into_os_string()];
    let mut second = Daemon::spawn("second-slave", &program, arguments, folder.path());
    assert_in_use(&mut second, slave.pid());
    // The first ones have not noticed.
    master.wait_for_row("web-1", "up", |row| row.presence == Presence::Up);
}

fn assert_in_use(second: &mut Daemon, holder: u32) {
    assert_eq!(second.wait(PATIENCE).code(), Some(EXIT_STORE));
    let stderr = second.stderr();
    assert!(stderr.contains(&format!("pid {holder}")), "{stderr}");
    assert!(stderr.contains("exit code 74"), "{stderr}");
}
