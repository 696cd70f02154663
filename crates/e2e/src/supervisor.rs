//! Plays the service manager, as far as a daemon is concerned that leaves descriptors with it: what the
//! keeper of `rollcall-master` does, but with LISTEN_PID as systemd sets it, and by the test's hand.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rollcall_os::systemd::manager::{Held, NotifySocket};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// A service manager with a descriptor store for one daemon.
#[derive(Debug)]
pub struct Supervisor(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: NotifySocket,
    taken: Mutex<Taken>,
}

#[derive(Debug)]
struct Taken {
    held: Held,
    /// How often each assignment has come.
    told: BTreeMap<String, usize>,
}

impl Supervisor {
    /// One that has its socket in `folder` and takes so many descriptors.
    ///
    /// # Panics
    /// If it can't be had.
    #[track_caller]
    pub fn new(folder: &Path, descriptors_max: usize) -> Self {
        let path = folder.join("notify");
        let socket = match NotifySocket::bind(&path) {
            Ok(socket) => socket,
            Err(error) => panic!("no socket {}: {error}", path.display()),
        };
        let taken = Taken {
            held: Held::new(descriptors_max),
            told: BTreeMap::new(),
        };
        let shared = Arc::new(Shared {
            socket,
            taken: Mutex::new(taken),
        });
        let taking = Arc::clone(&shared);
        // It ends with the test's process.
        thread::spawn(move || {
            loop {
                if let Err(error) = taking.wait() {
                    panic!("the supervisor can't read what it is told: {error}");
                }
                drop(taking.take());
            }
        });
        Self(shared)
    }

    /// A command that runs `program` with all that is held for it. Arguments may be added.
    ///
    /// # Panics
    /// If descriptors can't be copied.
    #[track_caller]
    pub fn command(&self, program: &Path) -> Command {
        let taken = self.0.take();
        // The shell becomes the program, so its pid is the program's: systemd, which forks by itself,
        // knows it.
        let mut command = Command::new("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
            .arg(program);
        if let Err(error) = taken.held.pass_to(&mut command, &self.0.socket) {
            panic!("can't pass descriptors: {error}");
        }
        command
    }

    /// The names of what is held, in order.
    pub fn names(&self) -> Vec<String> {
        let taken = self.0.take();
        taken.held.names().map(str::to_owned).collect()
    }

    /// Closes all that is held, as systemd does when a unit has been stopped.
    pub fn forget_all(&self) {
        self.0.take().held.clear();
    }

    /// How often `assignment` was told, such as "READY=1".
    pub fn told(&self, assignment: &str) -> usize {
        self.0.take().told.get(assignment).copied().unwrap_or(0)
    }
}

impl Shared {
    /// Waits for something to take in.
    fn wait(&self) -> io::Result<()> {
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes in all that was sent so far.
    #[track_caller]
    fn take(&self) -> MutexGuard<'_, Taken> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let message = match self.socket.receive() {
                Ok(Some(message)) => message,
                Ok(None) => return taken,
                Err(error) => panic!("the supervisor can't read what it is told: {error}"),
            };
            for line in message.lines() {
                *taken.told.entry(line.to_owned()).or_default() += 1;
            }
            if let Err(error) = taken.held.handle(message) {
                panic!("the supervisor does not keep a descriptor: {error}");
            }
        }
    }
}
