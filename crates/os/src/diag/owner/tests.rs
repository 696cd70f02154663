//! Against this process, and what can be made up of another.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use super::super::testing::{connect, eventually, own_address, own_listener};
use super::*;
use crate::diag::sockets::{self, Filter, States};

/// A listener, and its socket as the kernel tells it.
fn own_socket() -> (TcpListener, Socket) {
    let (listener, address) = own_listener();
    let filter = Filter {
        states: States::of(&[TcpState::Listen]),
        local_port: Some(address.port()),
        ..Filter::default()
    };
    let mut all = sockets::tcp(&filter).unwrap();
    all.retain(|socket| socket.local == address);
    (listener, all[0])
}

#[test]
fn the_owner_of_a_socket_is_found() {
    let (_listener, socket) = own_socket();
    let found = holders(&[socket]).remove(0);
    let owner = found.owner.clone().unwrap();
    assert_eq!(owner.pid, std::process::id());
    assert!(owner.command.contains("rollcall_os"), "{}", owner.command);
    assert_eq!(
        (found.is_likely, found.is_hidden, found.is_orphan()),
        (false, false, false)
    );
    let line = found.to_string();
    let begin = format!("pid {} \"", owner.pid);
    assert!(line.starts_with(&begin) && line.ends_with("Z)"), "{line}");
}

#[test]
fn a_socket_with_two_descriptors_has_one_owner() {
    let (listener, socket) = own_socket();
    let _twin = listener.try_clone().unwrap();
    let inode = socket.inode;
    let found = owners(&HashSet::from([inode, u32::MAX]));
    assert_eq!(found.found.len(), 1);
    assert_eq!(found.found[&inode].others, 0);
}

#[test]
fn of_several_processes_the_oldest_is_named() {
    let (listener, socket) = own_socket();
    let descriptor: OwnedFd = listener.try_clone().unwrap().into();
    let mut child = Command::new("sleep")
        .arg("60")
        .stdin(Stdio::from(descriptor))
        .spawn()
        .unwrap();
    let found = holders(&[socket]).remove(0);
    child.kill().unwrap();
    child.wait().unwrap();
    let owner = found.owner.clone().unwrap();
    assert_eq!((owner.pid, owner.others), (std::process::id(), 1));
    assert!(found.to_string().ends_with(") and 1 more process"));
}

#[test]
fn systemd_is_named_last() {
    let process = |pid, since_ms| Process {
        pid,
        command: String::new(),
        uid: 0,
        unit: None,
        since_ms,
    };
    let all = [process(1, 10), process(30, 30), process(20, 20)];
    assert_eq!(first(all.clone().into_iter()).unwrap().pid, 20);
    assert_eq!(first(all.into_iter().take(1)).unwrap().pid, 1);
}

/// A socket of somebody else: no process that can be seen has this inode.
fn foreign(state: TcpState) -> Socket {
    let (_listener, own) = own_socket();
    Socket {
        state,
        inode: u32::MAX,
        uid: 4_000_000_000,
        ..own
    }
}

#[test]
fn what_is_hidden_is_said_to_be() {
    let names = UserNames::parse("root:x:0:0::/root:/bin/sh\n");
    let group = Group {
        unit: Some("web.service".to_owned()),
        pids: vec![std::process::id()],
    };
    let hidden = unseen(foreign(TcpState::Listen), Some(&group), false, &names);
    assert!(hidden.is_hidden && hidden.owner.is_none());
    assert_eq!(
        hidden.to_string(),
        "a process of user 4000000000 in unit web.service (its pid is not visible without root or CAP_SYS_PTRACE)"
    );
    // Root sees all: then it is nowhere to be seen.
    let gone = unseen(foreign(TcpState::Listen), None, true, &names);
    assert!(!gone.is_hidden);
    assert!(
        gone.to_string()
            .contains("in no process of this PID namespace")
    );
}

#[test]
fn the_only_process_of_the_user_in_the_group_is_the_likely_one() {
    let names = UserNames::read();
    let uid = rustix::process::geteuid().as_raw();
    let socket = Socket {
        uid,
        ..foreign(TcpState::Listen)
    };
    let own = std::process::id();
    let group = |pids| Group { unit: None, pids };
    let likely = unseen(socket, Some(&group(vec![own, u32::MAX])), false, &names);
    assert!(likely.is_likely);
    assert_eq!(likely.owner.as_ref().unwrap().pid, own);
    assert!(likely.to_string().starts_with("most likely pid "));
    let two = unseen(socket, Some(&group(vec![own, own])), false, &names);
    assert!(two.owner.is_none());
}

#[test]
fn time_wait_has_nobody() {
    let (listener, address) = own_listener();
    let client = connect(own_address(), address);
    let local = client.local_addr().unwrap();
    drop(client);
    drop(listener.accept().unwrap());
    let filter = Filter {
        local_port: Some(local.port()),
        remote: Some(address.ip()),
        ..Filter::default()
    };
    let socket = eventually("TIME_WAIT", || {
        let all = sockets::tcp(&filter).unwrap();
        all.into_iter().find(|one| one.state == TcpState::TimeWait)
    });
    let found = holders(&[socket]).remove(0);
    assert!(found.is_orphan() && !found.is_hidden);
    assert_eq!(found.to_string(), "no process");
}

#[test]
fn names_of_users_are_those_of_passwd() {
    let names = UserNames::parse("a:x:7:\nbroken\nb:x:7:\nwww:x:33:33:w\n");
    assert_eq!((names.name(7), names.name(33)), ("a".into(), "www".into()));
    assert_eq!(names.name(99), "99");
}
