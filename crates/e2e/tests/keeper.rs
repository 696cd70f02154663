//! `rollcall-master --keeper`: what systemd's descriptor store gives, without systemd.

use std::fs;
use std::io::{IoSlice, pipe};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rollcall_e2e::peer::Identity;
use rollcall_e2e::skip::require_root_or_skip_loudly;
use rollcall_e2e::unnoticed::{Prober, assert_nobody_noticed, start_fleet};
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Daemon, LogLine, Master, Peer, binaries, wait_until};
use rollcall_protocol::wire::to_slave;
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

const SLAVES: usize = 200;
const KILLS: usize = 4;
const RESTARTS: usize = 2;
const TRAFFIC_ACKS: f64 = 200.0;
/// A master that is silent for 30 s is killed, and one that does not end 10 s after its deadline.
const BITE_MAX: Duration = Duration::from_secs(120);

/// A master with a keeper, which is ready.
fn kept(folder: &Path) -> Master {
    let mut master = Master::new(folder, "master");
    // Time counted against a slave during restarts would make it late.
    master
        .config
        .set("presence.late_after", 20.0)
        .set("presence.missing_after", 40.0)
        .set("presence.reconnect_window", "10s")
        .set("log.level", "debug");
    master.spawn_kept();
    master.wait_until_ready();
    master
}

/// The process that the keeper has started last. It may be ready before the keeper tells of it.
#[track_caller]
fn child(master: &Master) -> Pid {
    wait_until(PATIENCE, "the keeper to tell of its master", || {
        let ended = master.log().events("keeper_master_ended").len();
        let started = master.log().events("keeper_master_started");
        let pid = started.get(ended)?.number("pid")?;
        Pid::from_raw(i32::try_from(pid).ok()?)
    })
}

/// Sends `signal` to the master that runs, and waits for the next one.
#[track_caller]
fn end_child(master: &mut Master, signal: Signal) {
    let ready = master.log().events("master_ready").len();
    kill_process(child(master), signal).expect("it runs");
    master.wait_for_events("master_ready", ready + 1);
}

/// What the keeper has open, once it has taken in all that it was told so far.
#[track_caller]
fn open_files(master: &mut Master, folder: &Path) -> usize {
    let before = master.log().events("keeper_message_strange").len();
    let stranger = stranger(folder);
    stranger.send(b"READY=1").expect("sent");
    master.wait_for_events("keeper_message_strange", before + 1);
    let folder = format!("/proc/{}/fd", master.pid());
    fs::read_dir(folder).expect("the keeper runs").count()
}

/// Writes to the keeper, and is not its master.
#[track_caller]
fn stranger(folder: &Path) -> UnixDatagram {
    let stranger = UnixDatagram::unbound().expect("a socket");
    stranger.connect(socket(folder)).expect("the keeper's");
    stranger
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("master-state/keeper.sock")
}

/// kill -9 and SIGTERM in a row under 200 slaves that report all the time.
#[test]
fn kills_and_restarts_are_noticed_by_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = kept(folder.path());
    let mut bench = start_fleet(folder.path(), &master, SLAVES, 0);
    let api = master.api();
    let probers = [master.address(), api.address()].map(Prober::start);
    for end in 0..KILLS + RESTARTS {
        assert!(!bench.has_ended(), "the fleet was gone before {end}");
        let signal = if end < KILLS {
            Signal::KILL
        } else {
            Signal::TERM
        };
        end_child(&mut master, signal);
        wait_until(PATIENCE, "acks after a restart", || {
            (api.metric("rollcall_acks_total").ok()? >= TRAFFIC_ACKS).then_some(())
        });
    }
    for prober in probers {
        prober.assert_nobody_was_refused();
    }
    bench.stop();
    let outcome = bench.wait(PATIENCE);
    assert_eq!(outcome.ledger.len(), SLAVES);
    let events = api.events().expect("the events");
    assert_nobody_noticed(&outcome, &master, &events, 0);
    for adopted in master.log().events("connections_adopted") {
        assert_eq!(adopted.number("resumed"), Some(200), "{adopted:?}");
    }
    let ended = master.log().events("keeper_master_ended");
    let how: Vec<_> = ended.iter().map(|line| line.text("status")).collect();
    let (killed, asked) = how.split_at(KILLS);
    assert_eq!(killed, ["signal: 9 (SIGKILL)"; KILLS]);
    assert_eq!(asked, ["exit status: 0"; RESTARTS]);
    let said: Vec<_> = ended.iter().map(|line| line.text("level")).collect();
    assert_eq!(said, ["WARN"; KILLS + RESTARTS]);
}

#[test]
fn the_keeper_holds_no_more_after_restarts_than_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = kept(folder.path());
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    let held = open_files(&mut master, folder.path());
    for signal in [Signal::KILL, Signal::TERM, Signal::KILL, Signal::TERM] {
        end_child(&mut master, signal);
        peer.report(&mut identity).expect("an ack");
        assert_eq!(open_files(&mut master, folder.path()), held);
    }
    let started = master.log().events("keeper_master_started");
    let passed: Vec<_> = started
        .iter()
        .filter_map(|line| line.number("descriptors"))
        .collect();
    assert_eq!(passed[0], 0);
    assert!(passed[1] >= 3, "listeners and a pair: {passed:?}");
    assert!(
        passed[1..].iter().all(|count| *count == passed[1]),
        "{passed:?}"
    );
}

/// What other signals ask for is passed on, with the master that runs going on.
#[test]
fn requests_are_passed_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = kept(folder.path());
    let first = child(&master);
    master.signal(Signal::HUP);
    master.wait_for_event("reloaded");
    master.signal(Signal::USR1);
    master.wait_for_event("log_level_changed");
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    // Becomes the same program once more.
    master.signal(Signal::USR2);
    master.wait_for_events("master_ready", 2);
    peer.report(&mut identity).expect("an ack");
    assert_eq!(child(&master), first, "it was not started anew");
    // It is killed like any other.
    end_child(&mut master, Signal::KILL);
    peer.report(&mut identity).expect("an ack");
    assert_eq!(master.log().events("keeper_master_ended").len(), 1);
}

#[test]
fn a_master_that_hangs_is_killed_and_started_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = kept(folder.path());
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    peer.set_timeout(BITE_MAX).expect("a socket");
    let hanging = child(&master);
    kill_process(hanging, Signal::STOP).expect("it runs");
    peer.report(&mut identity).expect("an ack");
    let killed = master.wait_for_event("keeper_master_killed");
    let pid = u64::try_from(hanging.as_raw_pid()).expect("a pid");
    assert_eq!(killed.number("pid"), Some(pid));
    assert_eq!(killed.text("reason"), "it was silent for too long");
    assert_ne!(child(&master), hanging);
    let row = master.wait_for_row("web-1", "there", |row| row.applied == 2);
    assert_eq!(row.reconnects, 0);
}

/// A faulty configuration does not mend itself.
#[test]
fn what_a_person_must_change_ends_the_keeper() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = kept(folder.path());
    fs::write(master.config_file(), "nonsense = 1\n").expect("a file");
    kill_process(child(&master), Signal::KILL).expect("it runs");
    assert_eq!(master.wait(PATIENCE).code(), Some(78));
    assert!(master.stderr().contains("nonsense"), "{}", master.stderr());
    // And it is not begun with.
    let program = binaries::path(binaries::MASTER);
    let file = master.config_file();
    let arguments = [Path::new("--keeper"), Path::new("--config"), &file];
    let mut again = Daemon::spawn("again", &program, arguments, folder.path());
    assert_eq!(again.wait(PATIENCE).code(), Some(78));
}

#[test]
fn a_stop_for_good_says_goodbye() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut master = kept(folder.path());
        let mut identity = Identity::new("web-1", 60_000);
        let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
        peer.report(&mut identity).expect("an ack");
        master.signal(signal);
        assert_goodbye(&mut peer);
        assert!(master.wait(PATIENCE).success());
        TcpStream::connect(master.address()).expect_err("nobody listens");
        assert!(!socket(folder.path()).exists());
        let last = master.log().lines();
        assert_eq!(last.last().map(LogLine::event), Some("keeper_stopped"));
        assert_eq!(master.stderr(), "");
    }
}

#[track_caller]
fn assert_goodbye(peer: &mut Peer) {
    let goodbye = peer.receive().expect("a word");
    let Some(to_slave::Kind::Goodbye(goodbye)) = goodbye else {
        panic!("{goodbye:?}");
    };
    assert_eq!(goodbye.marks[0].sequence, 1);
    peer.await_close().expect("the end");
}

#[test]
fn a_master_that_does_not_end_is_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = kept(folder.path());
    master.config.set("shutdown.deadline", "100ms");
    master.config.write(&master.config_file());
    kill_process(child(&master), Signal::STOP).expect("it runs");
    master.signal(Signal::TERM);
    assert_eq!(master.wait(BITE_MAX).code(), Some(1));
    let killed = master.log().events("keeper_master_killed");
    assert_eq!(killed[0].text("reason"), "it did not end in time");
}

/// Nobody keeps anything for the master any more, and the next keeper brings another one.
#[test]
fn the_death_of_the_keeper_ends_its_master() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = kept(folder.path());
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    let orphan = child(&master);
    master.kill_and_wait();
    assert_goodbye(&mut peer);
    // At once, on the same port and the same state.
    master.spawn_kept();
    master.wait_until_ready();
    wait_until(PATIENCE, "the end of the master", || {
        test_kill_process(orphan).is_err().then_some(())
    });
    let (mut peer, welcome) = Peer::open(master.address(), &identity).expect("a session");
    assert_eq!(welcome.marks[0].sequence, 1);
    peer.report(&mut identity).expect("an ack");
    end_child(&mut master, Signal::KILL);
    peer.report(&mut identity).expect("an ack");
}

/// Only the keeper's own child is heard.
#[test]
fn a_strange_process_can_leave_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = kept(folder.path());
    let held = open_files(&mut master, folder.path());
    let (reader, writer) = pipe().expect("a pipe");
    let stranger = UnixDatagram::unbound().expect("a socket");
    stranger
        .connect(socket(folder.path()))
        .expect("the keeper's");
    let descriptors = [reader.as_fd(), writer.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let text = IoSlice::new(b"FDSTORE=1\nFDNAME=strange\n");
    sendmsg(&stranger, &[text], &mut control, SendFlags::empty()).expect("sent");
    let strange = master.wait_for_events("keeper_message_strange", 2);
    assert_eq!(
        strange[1].number("pid"),
        Some(u64::from(std::process::id()))
    );
    assert_eq!(open_files(&mut master, folder.path()), held);
    end_child(&mut master, Signal::KILL);
    assert!(master.log().events("descriptor_strange").is_empty());
    assert_eq!(open_files(&mut master, folder.path()), held);
}

#[test]
fn a_second_keeper_of_the_same_state_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = kept(folder.path());
    let program = binaries::path(binaries::MASTER);
    let file = master.config_file();
    let arguments = [Path::new("--keeper"), Path::new("--config"), &file];
    let mut second = Daemon::spawn("second", &program, arguments, folder.path());
    assert_eq!(second.wait(PATIENCE).code(), Some(74));
    let said = second.stderr();
    let holder = format!("another keeper (pid {}) uses", master.pid());
    assert!(said.contains(&holder), "{said}");
    // The first one hears its master as before.
    end_child(&mut master, Signal::KILL);
}

/// systemd does all that by itself.
#[test]
fn under_a_service_manager_it_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    let mut command = Command::new(binaries::path(binaries::MASTER));
    command.arg("--keeper").env("NOTIFY_SOCKET", "/run/x");
    master.spawn_command(command);
    assert_eq!(master.wait(PATIENCE).code(), Some(2));
    let said = master.stderr();
    assert!(said.contains("FileDescriptorStoreMax="), "{said}");
}

/// As process 1 of a container, and as a user without rights, it waits for those whose parent has died.
#[test]
fn as_process_one_it_waits_for_orphans() {
    let name = "as_process_one_it_waits_for_orphans";
    if !require_root_or_skip_loudly(name) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    let program = folder.path().join("rollcall-master");
    // Where this user can get at it.
    fs::copy(binaries::path(binaries::MASTER), &program).expect("a copy");
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["setpriv", "--reuid=65534", "--regid=65534"])
        .args(["--clear-groups", "--no-new-privs"])
        .arg(program)
        .arg("--keeper");
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).expect("root may");
    master.spawn_command(command);
    master.wait_until_ready();
    let keeper = children(master.pid())[0];
    assert_eq!(children(keeper).len(), 1);

    let gate = folder.path().join("gate");
    mkfifoat(CWD, &gate, Mode::RUSR | Mode::WUSR).expect("a pipe");
    let entered = Command::new("nsenter")
        .args(["--target", &keeper.to_string(), "--pid", "sh", "-c"])
        .arg("cat \"$0\" & exit 0")
        .arg(&gate)
        .status();
    assert!(entered.expect("nsenter").success());
    wait_until(PATIENCE, "the orphan to be the keeper's", || {
        (children(keeper).len() == 2).then_some(())
    });
    // Now it ends.
    drop(
        fs::File::options()
            .write(true)
            .open(&gate)
            .expect("it reads"),
    );
    wait_until(PATIENCE, "the orphan to be gone", || {
        (children(keeper).len() == 1).then_some(())
    });
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    let [child] = children(keeper)[..] else {
        panic!("one master");
    };
    let child = i32::try_from(child).ok().and_then(Pid::from_raw);
    kill_process(child.expect("a pid"), Signal::KILL).expect("it runs");
    master.wait_for_events("master_ready", 2);
    peer.report(&mut identity).expect("an ack");
    let keeper = i32::try_from(keeper).ok().and_then(Pid::from_raw);
    kill_process(keeper.expect("a pid"), Signal::TERM).expect("it runs");
    assert!(master.wait(PATIENCE).success());
    assert_eq!(master.log().events("keeper_stopped").len(), 1);
}

/// The children of a process that has one thread.
fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).expect("it runs");
    text.split_whitespace()
        .map(|pid| pid.parse().expect("a pid"))
        .collect()
}

/// Told before a master is started, which could not be heard.
#[test]
fn a_state_directory_with_a_long_name_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    let state = folder.path().join("x".repeat(100));
    let path = state.to_string_lossy().into_owned();
    master.config.set("state.directory", path);
    master.spawn_kept();
    assert_eq!(master.wait(PATIENCE).code(), Some(74));
    assert!(
        master.stderr().contains("choose another"),
        "{}",
        master.stderr()
    );
}
