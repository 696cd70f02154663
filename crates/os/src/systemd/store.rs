//! What the service manager holds for this process, from one life to the next: listeners of a
//! `.socket` unit, and the descriptor store (sd_listen_fds(3), sd_pid_notify_with_fds(3)).

use std::env;
use std::io;
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};
use listenfd::ListenFd;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{AddressFamily, SocketType};
use sd_notify::NotifyState;
use socket2::SockRef;

use super::manager;
use crate::parking::Keeper;

/// The first descriptor that is passed on (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;

/// Descriptors that this process was started with.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Sockets that listen, non-blocking, with their names.
    pub listeners: Vec<(String, TcpListener)>,
    /// Ends of socket pairs, with their names.
    pub ends: Vec<(String, OwnedFd)>,
    /// Names of those that are neither. They stay open, and nobody uses them.
    pub strange: Vec<String>,
}

impl Inherited {
    /// Takes them over; the second call finds none. To be called while the process has one thread,
    /// because it takes LISTEN_PID and LISTEN_FDS out of the environment. All are close-on-exec then.
    pub fn take() -> Self {
        let are_ours = match env::var("LISTEN_PID") {
            Ok(pid) => pid.parse() == Ok(std::process::id()),
            // The keeper can't know it.
            Err(_) => manager::has_parent(),
        };
        if !are_ours {
            // They are somebody else's.
            return Self::default();
        }
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..passed.len() {
            let name = names.next().unwrap_or_default().to_owned();
            inherited.sort(&mut passed, index, name);
        }
        inherited
    }

    fn sort(&mut self, passed: &mut ListenFd, index: usize, name: String) {
        if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
            let listens = SockRef::from(&listener).is_listener();
            if listens.unwrap_or(false) && listener.set_nonblocking(true).is_ok() {
                self.listeners.push((name, listener));
            }
            return;
        }
        let [family, kind] = [
            i32::from(AddressFamily::UNIX.as_raw()),
            SocketType::SEQPACKET.as_raw().cast_signed(),
        ];
        match passed.take_custom::<OwnedFd>(index, family, kind, "end of a pair") {
            Ok(Some(end)) => self.ends.push((name, end)),
            _ => self.strange.push(name),
        }
    }
}

/// Has `command`, once it takes this process over (exec, not spawn), start with `descriptors` and their
/// names as [`Inherited::take`] finds them.
///
/// # Errors
/// No descriptor is left for a copy.
pub fn pass_on(command: &mut Command, descriptors: &[(String, OwnedFd)]) -> io::Result<()> {
    let count = RawFd::try_from(descriptors.len()).map_err(io::Error::other)?;
    let names: Vec<_> = descriptors.iter().map(|(name, _)| &**name).collect();
    // The copies lie behind the places that they go to, so that a failed attempt spoils no other that was
    // prepared before it.
    let mappings = (FIRST..)
        .zip(descriptors)
        .map(|(child_fd, (_, descriptor))| {
            let parent_fd = fcntl_dupfd_cloexec(descriptor, FIRST + count)?;
            Ok(FdMapping {
                parent_fd,
                child_fd,
            })
        });
    let mappings = mappings.collect::<io::Result<_>>()?;
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    command
        .env("LISTEN_PID", std::process::id().to_string())
        .env("LISTEN_FDS", count.to_string())
        .env("LISTEN_FDNAMES", names.join(":"));
    Ok(())
}

/// What `command`, a child of this process that is no daemon of the service manager's, must not take
/// for its own.
pub fn hide_manager(command: &mut Command) {
    for name in [
        "FDSTORE",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    ] {
        command.env_remove(name);
    }
}

/// The descriptor store of this unit.
#[derive(Clone, Copy, Debug)]
pub struct Store {
    descriptors_max: usize,
}

impl Store {
    /// The store, if the manager says that there is one: FDSTORE in the environment, which systemd
    /// sets from 254 on and the unit has to set for older ones, is FileDescriptorStoreMax.
    pub fn find() -> Option<Self> {
        env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        let descriptors_max = env::var("FDSTORE").ok()?.parse().ok()?;
        (descriptors_max > 0).then_some(Self { descriptors_max })
    }

    /// How many descriptors it takes.
    pub const fn descriptors_max(&self) -> usize {
        self.descriptors_max
    }
}

impl Keeper for Store {
    fn keep(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let states = [NotifyState::FdStore, NotifyState::FdName(name)];
        sd_notify::notify_with_fds(&states, descriptors)
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
    }
}
