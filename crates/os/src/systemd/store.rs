//! What the service manager holds for this process, from one life to the next: listeners of a
//! `.socket` unit, and the descriptor store (sd_listen_fds(3), sd_pid_notify_with_fds(3)).

use std::env;
use std::io;
use std::net::TcpListener;
use std::os::fd::{BorrowedFd, OwnedFd};

use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketType};
use sd_notify::NotifyState;
use socket2::SockRef;

use crate::parking::Keeper;

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
        let pid = env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok());
        if pid != Some(std::process::id()) {
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
