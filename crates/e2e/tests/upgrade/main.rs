//! SIGUSR2: another version of the program takes the master's process over, or is refused, and nobody
//! notices either.

mod selfcheck;
mod upgraded;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rollcall_e2e::disk::SmallDisk;
use rollcall_e2e::peer::Identity;
use rollcall_e2e::skip::require_root_or_skip_loudly;
use rollcall_e2e::unnoticed::{Prober, assert_nobody_noticed, start_fleet};
use rollcall_e2e::wait::PATIENCE;
use rollcall_e2e::{Master, Peer, Slave, Supervisor, wait_until};
use rollcall_protocol::api::SlaveRow;
use rollcall_protocol::wire::to_slave;
use rustix::process::Signal;
use upgraded::{Upgraded, write_program};

const UPGRADES: usize = 5;
const SLAVES: usize = 200;
/// On as many addresses of the loopback.
const LISTENERS: u8 = 24;
/// The master may live until it has acked that much.
const TRAFFIC_ACKS: f64 = 200.0;

/// What the master has open, apart from connections.
fn descriptors(master: &Master) -> usize {
    let folder = format!("/proc/{}/fd", master.pid());
    fs::read_dir(folder).expect("it runs").count()
}

/// What was acked may be acked again before it.
#[track_caller]
fn await_goodbye(peer: &mut Peer) {
    loop {
        match peer.receive().expect("a word") {
            Some(to_slave::Kind::Ack(_)) => {}
            Some(to_slave::Kind::Goodbye(_)) => return,
            other => panic!("no Goodbye: {other:?}"),
        }
    }
}

/// 200 slaves that report all the time and two real ones; each upgrade as soon as the last is over and
/// there was some traffic.
#[test]
fn upgrades_are_noticed_by_nobody() {
    let mut upgraded = Upgraded::started();
    let folder = upgraded.folder.path().to_owned();
    let address = upgraded.master.address();
    let pid = upgraded.master.pid();
    let mut slaves = ["web-1", "web-2"].map(|name| {
        let mut slave = Slave::new(&folder, name, &[address], "100ms");
        slave.start();
        slave
    });
    let mut bench = start_fleet(&folder, &upgraded.master, SLAVES, slaves.len());
    let api = upgraded.master.api();
    let probers = [Prober::start(address), Prober::of_readers(api.address())];
    for upgrade in 1..=UPGRADES {
        assert!(!bench.has_ended(), "the fleet was gone before {upgrade}");
        upgraded.replace_by_copy();
        upgraded.upgrade();
        wait_until(PATIENCE, "acks after an upgrade", || {
            (api.metric("rollcall_acks_total").ok()? >= TRAFFIC_ACKS).then_some(())
        });
    }
    for prober in probers {
        prober.assert_nobody_was_refused();
    }
    bench.stop();
    let outcome = bench.wait(PATIENCE);
    let events = api.events().expect("the events");
    for slave in &mut slaves {
        slave.terminate();
    }
    let master = &upgraded.master;
    assert_eq!(master.pid(), pid);
    assert_nobody_noticed(&outcome, master, &events, slaves.len());
    let adopted = master.log().events("connections_adopted");
    let everybody = u64::try_from(SLAVES + slaves.len()).expect("few");
    assert_eq!(adopted.len(), UPGRADES);
    for line in adopted {
        assert_eq!(line.number("resumed"), Some(everybody), "{line:?}");
    }
}

/// The new file is what runs, the same connection goes on, and nothing is left open behind it.
#[test]
fn another_program_takes_over_what_is_open_and_nothing_else() {
    let mut upgraded = Upgraded::started();
    let (address, pid) = (upgraded.master.address(), upgraded.master.pid());
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(address, &identity).expect("a session");
    let api = upgraded.master.api();
    let mut open = Vec::new();
    for _ in 0..3 {
        let before = upgraded.running();
        upgraded.replace_by_copy();
        let new = fs::metadata(&upgraded.program).expect("a file").ino();
        assert_ne!(before, new);
        upgraded.upgrade();
        assert_eq!((upgraded.master.pid(), upgraded.running()), (pid, new));
        peer.report(&mut identity).expect("an ack");
        wait_until(PATIENCE, "the figures of parking", || {
            let parked = api.metric("rollcall_connections_parked").ok()?;
            let shards = api.metric("rollcall_parking_shards").ok()?;
            ((parked, shards) == (1.0, 1.0)).then_some(())
        });
        // A reader's own connection may be open for a moment.
        let settled = wait_until(PATIENCE, "readers to be gone", || {
            let now = descriptors(&upgraded.master);
            let least = open.iter().copied().min().unwrap_or(now);
            (now <= least).then_some(now)
        });
        open.push(settled);
    }
    let row = upgraded
        .master
        .wait_for_row("web-1", "up to date", |row| row.applied == 3);
    assert_eq!((row.reconnects, row.duplicates), (0, 0), "{row:#?}");
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("it runs");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    // Both ends of a shard, and two listeners.
    assert!(environment.contains("LISTEN_FDS=4\0"), "{environment:?}");
    // Without anybody who keeps what is open, an end is an end.
    upgraded.master.signal(Signal::TERM);
    await_goodbye(&mut peer);
    TcpStream::connect(address).expect_err("nobody listens");
    drop(peer);
    assert!(upgraded.master.wait(PATIENCE).success());
}

/// Whatever the file is by now that can't take over: the old program serves on, and says why.
#[test]
fn a_program_that_fails_is_refused_with_its_reason() {
    let mut upgraded = Upgraded::started();
    let address = upgraded.master.address();
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(address, &identity).expect("a session");
    let running = upgraded.running();
    upgraded.replace_by_script("echo it has read the file >&2; echo and did not like it; exit 78");
    let reason = upgraded.upgrade_in_vain();
    let expected = "exit status: 78: it has read the file; and did not like it";
    assert_eq!(reason, expected);
    peer.report(&mut identity).expect("an ack");
    upgraded.replace(|new| write_program(new, "no program"));
    let reason = upgraded.upgrade_in_vain();
    assert!(reason.starts_with("it cannot be run: "), "{reason}");
    peer.report(&mut identity).expect("an ack");
    fs::remove_file(&upgraded.program).expect("a file");
    let reason = upgraded.upgrade_in_vain();
    assert!(reason.starts_with("it cannot be run: "), "{reason}");
    peer.report(&mut identity).expect("an ack");

    // The configuration as it is by now counts, and the store.
    upgraded.replace_by_copy();
    upgraded.master.config.set("session.windwo", 8);
    upgraded.master.config.write(&upgraded.master.config_file());
    let reason = upgraded.upgrade_in_vain();
    assert!(reason.starts_with("exit status: 78: "), "{reason}");
    assert!(reason.contains("did you mean \"window\"?"), "{reason}");
    peer.report(&mut identity).expect("an ack");
    assert_eq!(upgraded.running(), running);
    let starts = upgraded.master.log().events("master_ready").len();
    assert_eq!(starts, 1);
}

/// One that says yes and then can't be executed: the old one, which has let go of everything by then,
/// goes on from the same point.
#[test]
fn a_program_that_is_gone_when_it_is_to_take_over_leaves_the_old_one() {
    let mut upgraded = Upgraded::new();
    let port = upgraded.master.address().port();
    // So many that the places that descriptors are passed at are those of others now.
    let addresses = (1..=LISTENERS).map(|host| SocketAddr::from(([127, 0, 0, host], port)));
    let addresses: Vec<_> = addresses.collect();
    let listen: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    upgraded.master.config.set("listen.addresses", listen);
    upgraded.start();
    let mut peers: Vec<_> = addresses
        .iter()
        .map(|address| {
            let identity = Identity::new(&format!("web-{}", address.ip()), 60_000);
            let (peer, _) = Peer::open(*address, &identity).expect("a session");
            (peer, identity)
        })
        .collect();
    let mut report = || {
        for (peer, identity) in &mut peers {
            peer.report(identity).expect("an ack");
        }
    };
    report();
    let running = upgraded.running();
    upgraded.replace_by_script("rm \"$0\"");
    upgraded.upgrade();
    let failed = upgraded.master.wait_for_event("upgrade_failed");
    assert!(failed.text("reason").contains("No such file"), "{failed:?}");
    assert_eq!(upgraded.running(), running);
    report();
    // The file is where it was looked for before.
    upgraded.replace_by_copy();
    upgraded.upgrade();
    assert_ne!(upgraded.running(), running);
    report();
    let log = upgraded.master.log();
    assert_eq!(log.events("upgrade_failed").len(), 1);
    let inherited = log.events("listener_inherited").len();
    assert_eq!(inherited, 2 * (addresses.len() + 1), "and that of readers");
}

/// While it is being checked, the master serves, tells who asks again, and ends if it is told to.
#[test]
fn a_program_that_hangs_holds_nobody_up() {
    let mut upgraded = Upgraded::started();
    let address = upgraded.master.address();
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(address, &identity).expect("a session");
    let pid_file = upgraded.folder.path().join("pid");
    let script = format!(
        "echo $$ >{0}.new; mv {0}.new {0}; exec sleep 600",
        pid_file.display()
    );
    upgraded.replace_by_script(&script);
    upgraded.master.signal(Signal::USR2);
    let asked = wait_until(PATIENCE, "the program to hang", || {
        fs::read_to_string(&pid_file).ok()
    });
    peer.report(&mut identity).expect("an ack");
    upgraded.master.signal(Signal::USR2);
    upgraded.master.wait_for_event("upgrade_under_way");
    peer.report(&mut identity).expect("an ack");
    upgraded.master.signal(Signal::TERM);
    await_goodbye(&mut peer);
    drop(peer);
    assert!(upgraded.master.wait(PATIENCE).success());
    let process = Path::new("/proc").join(asked.trim());
    wait_until(PATIENCE, "the program to be ended", || {
        (!process.exists()).then_some(())
    });
}

/// Requests that come at whatever moment end nothing: while the program is checked, while it takes over,
/// and before it has come so far as to listen. And none to stop is lost.
#[test]
fn no_request_is_lost_or_kills_on_the_way() {
    let mut upgraded = Upgraded::started();
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(upgraded.master.address(), &identity).expect("a session");
    for more in [Signal::HUP, Signal::USR1] {
        let ready = upgraded.master.log().events("master_ready").len();
        wait_until(PATIENCE * 2, "upgrades one after another", || {
            for _ in 0..20 {
                upgraded.master.signal(Signal::USR2);
                upgraded.master.signal(more);
                std::thread::yield_now();
            }
            assert_eq!(upgraded.master.ended(), None);
            let now = upgraded.master.log().events("master_ready").len();
            (now >= ready + UPGRADES).then_some(())
        });
        peer.report(&mut identity).expect("an ack");
    }
    // One that is under way comes to its end.
    let executed = upgraded.master.log().events("upgrade_executed").len();
    upgraded.master.signal(Signal::USR2);
    upgraded
        .master
        .wait_for_events("upgrade_executed", executed + 1);
    upgraded.master.signal(Signal::TERM);
    await_goodbye(&mut peer);
    drop(peer);
    assert!(upgraded.master.wait(PATIENCE).success());
}

/// What has come must be on disk before another program goes on from there.
#[test]
fn a_master_that_can_not_store_goes_on() {
    let name = "a full disk under an upgrade";
    if !require_root_or_skip_loudly(name) {
        return;
    }
    let disk = SmallDisk::mount(8).expect("a tmpfs");
    let mut upgraded = Upgraded::new();
    let state = disk.path().join("state").to_string_lossy().into_owned();
    upgraded.master.config.set("state.directory", state);
    upgraded.start();
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(upgraded.master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    let ballast = disk.fill();
    peer.send_report(&mut identity).expect("a connection");
    upgraded.master.wait_for_readiness(503);
    let reason = upgraded.upgrade_in_vain();
    assert!(reason.starts_with("the store can't write"), "{reason}");
    drop(ballast);
    upgraded.master.wait_for_readiness(200);
    upgraded.upgrade();
    peer.await_ack(&mut identity).expect("acks");
}

/// The signal of a master's upgrade does not end a slave.
#[test]
fn a_slave_says_how_it_is_upgraded() {
    let folder = tempfile::tempdir().expect("a folder");
    let master = Master::started(folder.path());
    let mut slave = Slave::new(folder.path(), "web-1", &[master.address()], "100ms");
    slave.start();
    let before = master.wait_for_row("web-1", "up", |row| row.sequence >= 2);
    slave.signal(Signal::USR2);
    slave.wait_for_event("upgrade_by_restart");
    let reporting = |row: &SlaveRow| row.sequence >= before.sequence + 2;
    let row = master.wait_for_row("web-1", "reporting", reporting);
    assert_eq!(row.stream, before.stream);
}

/// With a service manager: it is told, and what it holds for the master stays what it was.
#[test]
fn a_service_manager_is_told_and_holds_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let supervisor = Supervisor::new(folder.path(), 1000);
    let mut master = Master::new(folder.path(), "master");
    master.spawn_under(&supervisor);
    master.wait_until_ready();
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    let held = supervisor.names();
    assert_eq!(held.len(), 4, "{held:?}");
    for upgrade in 1..=2 {
        master.signal(Signal::USR2);
        master.wait_for_events("master_ready", upgrade + 1);
        peer.report(&mut identity).expect("an ack");
        assert_eq!(supervisor.names(), held);
        assert_eq!(supervisor.told("RELOADING=1"), upgrade);
        wait_until(PATIENCE, "the manager to be told", || {
            (supervisor.told("READY=1") == upgrade + 1).then_some(())
        });
    }
    // One path: what was taken over is left to the next process as ever.
    assert!(master.terminate().success());
    master.spawn_under(&supervisor);
    master.wait_until_ready();
    peer.report(&mut identity).expect("an ack");
    assert_eq!(supervisor.names(), held);
    master.signal(Signal::INT);
    await_goodbye(&mut peer);
    drop(peer);
    assert!(master.wait(PATIENCE).success());
    assert_eq!(supervisor.names(), Vec::<String>::new());
}
