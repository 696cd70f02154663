//! Plays the service manager, as far as a daemon is concerned that leaves descriptors with it: takes
//! them by the notification socket (sd_pid_notify_with_fds(3)), and passes them to the next process
//! (sd_listen_fds(3)).

use std::collections::BTreeMap;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::wait::{PATIENCE, wait_until};

/// The first descriptor that is passed (SD_LISTEN_FDS_START).
const FIRST: i32 = 3;
/// Most descriptors of one message (SCM_MAX_FD).
const MESSAGE_DESCRIPTORS_MAX: usize = 253;
const MESSAGE_BYTES_MAX: usize = 4096;
/// Sent by the supervisor to itself: whatever came before it has been taken in.
const BARRIER: &str = "X_BARRIER";

/// A service manager with a descriptor store for one daemon.
#[derive(Debug)]
pub struct Supervisor {
    socket: PathBuf,
    held: Arc<Mutex<Held>>,
    descriptors_max: usize,
}

#[derive(Debug, Default)]
struct Held {
    store: Vec<(String, OwnedFd)>,
    /// How often each assignment without descriptors has come.
    told: BTreeMap<String, usize>,
}

impl Supervisor {
    /// One that has its socket in `folder` and takes so many descriptors.
    ///
    /// # Panics
    /// If it can't be had.
    #[track_caller]
    pub fn new(folder: &Path, descriptors_max: usize) -> Self {
        let socket = folder.join("notify");
        let bound = match UnixDatagram::bind(&socket) {
            Ok(bound) => bound,
            Err(error) => panic!("no socket {}: {error}", socket.display()),
        };
        let held = Arc::<Mutex<Held>>::default();
        let taking = Arc::clone(&held);
        // It ends with the test's process.
        thread::spawn(move || {
            loop {
                if let Err(error) = take(&bound, &taking) {
                    panic!("the supervisor can't read what it is told: {error}");
                }
            }
        });
        Self {
            socket,
            held,
            descriptors_max,
        }
    }

    /// A command that runs `program` with all that is held for it. Arguments may be added.
    ///
    /// # Panics
    /// If descriptors can't be copied.
    #[track_caller]
    pub fn command(&self, program: &Path) -> Command {
        self.settle();
        let held = self.lock();
        // The shell becomes the program, so its pid is the program's.
        let mut command = Command::new("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
            .arg(program)
            .env("NOTIFY_SOCKET", &self.socket)
            .env("FDSTORE", self.descriptors_max.to_string());
        if held.store.is_empty() {
            return command;
        }
        let names: Vec<_> = held.store.iter().map(|(name, _)| &**name).collect();
        command
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env("LISTEN_PID", "set by the shell");
        let copies = held.store.iter().map(|(_, held)| held.try_clone());
        let mappings = (FIRST..).zip(copies).map(|(child_fd, copy)| {
            copy.map(|parent_fd| FdMapping {
                parent_fd,
                child_fd,
            })
        });
        let mapped = mappings
            .collect::<io::Result<Vec<_>>>()
            .map(|mappings| command.fd_mappings(mappings).is_ok());
        assert!(mapped.is_ok_and(|mapped| mapped), "can't pass descriptors");
        command
    }

    /// The names of what is held, in order.
    pub fn names(&self) -> Vec<String> {
        self.settle();
        let held = self.lock();
        held.store.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Closes all that is held, as systemd does when a unit has been stopped.
    pub fn forget_all(&self) {
        self.settle();
        self.lock().store.clear();
    }

    /// How often `assignment` was told, such as "READY=1".
    pub fn told(&self, assignment: &str) -> usize {
        self.settle();
        self.lock().told.get(assignment).copied().unwrap_or(0)
    }

    /// Waits until all that was sent to it so far has been taken in.
    fn settle(&self) {
        let count = |held: &Held| held.told.get(BARRIER).copied().unwrap_or(0);
        let before = count(&self.lock());
        let sent = UnixDatagram::unbound()
            .and_then(|sender| sender.send_to(BARRIER.as_bytes(), &self.socket));
        assert!(sent.is_ok(), "the supervisor is not there: {sent:?}");
        wait_until(PATIENCE, "the supervisor to take in what came", || {
            (count(&self.lock()) > before).then_some(())
        });
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes one message in.
fn take(socket: &UnixDatagram, held: &Mutex<Held>) -> io::Result<()> {
    let mut text = [0; MESSAGE_BYTES_MAX];
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_DESCRIPTORS_MAX))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let received = recvmsg(socket, &mut parts, &mut rights, RecvFlags::CMSG_CLOEXEC)?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("no descriptor is left"));
    }
    let descriptors: Vec<OwnedFd> = rights
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let text = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
    let has = |assignment: &str| text.lines().any(|line| line == assignment);
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
    match name {
        Some(name) if has("FDSTORE=1") => {
            let named = descriptors.into_iter().map(|one| (name.to_owned(), one));
            held.store.extend(named);
        }
        Some(name) if has("FDSTOREREMOVE=1") => held.store.retain(|(other, _)| other != name),
        _ => {
            for line in text.lines() {
                *held.told.entry(line.to_owned()).or_default() += 1;
            }
        }
    }
    Ok(())
}
