//! The other side of the protocol: a service manager with a descriptor store for one service, as far
//! as `rollcall-master` needs one where there is no systemd (sd_notify(3), sd_listen_fds(3)).
//!
//! ```text
//!   service ── READY=1, STATUS=…, WATCHDOG=1 ─────────────> NotifySocket ──> whoever watches it
//!           ── FDSTORE=1, FDNAME=p1, two descriptors ─────> NotifySocket ──> Held
//!   next service <── FDSTORE, LISTEN_FDS, LISTEN_FDNAMES, descriptors from 3 on ──┘
//! ```
//! Unlike systemd's, this store does not look whether it has a descriptor already, and leaves one that
//! hangs up where it is: ours say themselves when one can go.

use std::env;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg, sockopt,
};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use super::store;

/// Most descriptors of one message (SCM_MAX_FD).
const MESSAGE_DESCRIPTORS_MAX: usize = 253;
/// Longest message, in bytes. A status is one line.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Longest name of a descriptor, in bytes, as systemd has it.
const NAME_BYTES_MAX: usize = 255;
/// What descriptors without a name are called, as systemd does.
const NAMELESS: &str = "stored";
/// Tells a service that its parent is its manager, by the parent's pid. It stands in for LISTEN_PID,
/// which nobody can know before the fork.
const PARENT: &str = "ROLLCALL_KEEPER";

/// Where a service tells how it is, and leaves descriptors.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl NotifySocket {
    /// One at `path`, in place of one that a manager before has left there. Only this user can write
    /// to it. What is sent carries its sender's pid.
    ///
    /// # Errors
    /// What bind(2) says, for example that the path is too long.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(path)?;
        let bound = Self {
            socket,
            path: path.to_owned(),
        };
        sockopt::set_socket_passcred(&bound.socket, true)?;
        bound.socket.set_nonblocking(true)?;
        Ok(bound)
    }

    /// What NOTIFY_SOCKET has to say.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next message, if there is one. Descriptors in it are close-on-exec.
    ///
    /// # Errors
    /// What recvmsg(2) says.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        let mut text = [0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit();
            rustix::cmsg_space!(ScmRights(MESSAGE_DESCRIPTORS_MAX), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(&self.socket, &mut parts, &mut control, flags) {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut message = Message {
            sender: None,
            text: String::from_utf8_lossy(&text[..received.bytes]).into_owned(),
            descriptors: Vec::new(),
            is_whole: !received
                .flags
                .intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC),
        };
        for part in control.drain() {
            match part {
                RecvAncillaryMessage::ScmRights(descriptors) => {
                    message.descriptors.extend(descriptors);
                }
                RecvAncillaryMessage::ScmCredentials(sender) => message.sender = Some(sender.pid),
                _ => {}
            }
        }
        Ok(Some(message))
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        // If it stays, the next one takes its place.
        let _ = fs::remove_file(&self.path);
    }
}

/// What a service has said. What came with it is closed, unless [`Held::handle`] keeps it.
#[derive(Debug)]
pub struct Message {
    sender: Option<Pid>,
    text: String,
    descriptors: Vec<OwnedFd>,
    is_whole: bool,
}

impl Message {
    /// The process that has sent it.
    pub fn sender(&self) -> Option<Pid> {
        self.sender
    }

    /// Its assignments, one a line.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines()
    }

    /// Whether it has `assignment`, such as "READY=1".
    pub fn says(&self, assignment: &str) -> bool {
        self.lines().any(|line| line == assignment)
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }
}

/// Descriptors are not kept. The service goes on; what it has lost it loses with its next end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// The kernel had no descriptors left for this process, or the message was too long.
    #[error(
        "a message came in part; if no descriptor was left, raise the limit of open files (RLIMIT_NOFILE)"
    )]
    Cut,
    /// No more are taken.
    #[error("{held} descriptors are held, and {max} at most: raise the limit of open files")]
    Full {
        /// So many there are.
        held: usize,
        /// So many there may be.
        max: usize,
    },
    /// LISTEN_FDNAMES could not tell it.
    #[error("{0:?} is no name for a descriptor")]
    BadName(String),
}

/// The descriptor store.
#[derive(Debug)]
pub struct Held {
    descriptors: Vec<(String, OwnedFd)>,
    max: usize,
}

impl Held {
    /// An empty one for `max` descriptors.
    pub const fn new(max: usize) -> Self {
        Self {
            descriptors: Vec::new(),
            max,
        }
    }

    /// How many it takes.
    pub const fn max(&self) -> usize {
        self.max
    }

    /// The names of what is held, in order, as often as there are descriptors.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.descriptors.iter().map(|(name, _)| &**name)
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.descriptors.clear();
    }

    /// Does what a message says about descriptors, if it does.
    ///
    /// # Errors
    /// They are not kept, and none of the message is.
    pub fn handle(&mut self, message: Message) -> Result<(), NotKept> {
        if !message.is_whole {
            return Err(NotKept::Cut);
        }
        let name = message.value("FDNAME").unwrap_or(NAMELESS).to_owned();
        if message.says("FDSTOREREMOVE=1") {
            self.descriptors.retain(|(other, _)| *other != name);
            return Ok(());
        }
        if !message.says("FDSTORE=1") {
            return Ok(());
        }
        let is_bad = |byte: u8| byte == b':' || !(byte == b' ' || byte.is_ascii_graphic());
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.bytes().any(is_bad) {
            return Err(NotKept::BadName(name));
        }
        let held = self.descriptors.len();
        if held + message.descriptors.len() > self.max {
            let max = self.max;
            return Err(NotKept::Full { held, max });
        }
        let named = message.descriptors.into_iter();
        self.descriptors
            .extend(named.map(|one| (name.clone(), one)));
        Ok(())
    }

    /// Has `command` start with copies of all that is held, and leave more here by `socket`. For once:
    /// the copies are closed with the command.
    ///
    /// LISTEN_PID is left to the caller, see [`follow_parent`].
    ///
    /// # Errors
    /// There is no descriptor left for a copy.
    pub fn pass_to(&self, command: &mut Command, socket: &NotifySocket) -> io::Result<()> {
        store::pass_on(command, &self.descriptors)?;
        command
            .env("NOTIFY_SOCKET", socket.path())
            .env("FDSTORE", self.max.to_string())
            .env_remove("LISTEN_PID");
        Ok(())
    }
}

/// Tells the process that `command` starts that this one is its manager.
pub fn be_parent_of(command: &mut Command) {
    command.env(PARENT, getpid().as_raw_pid().to_string());
}

/// Whether this process was started by a manager that is its parent: then it is the one that
/// LISTEN_FDS is for.
pub fn has_parent() -> bool {
    parent().is_some_and(|parent| getppid() == Some(parent))
}

/// If this process was started by a manager that is its parent, has the kernel send `signal` when
/// that ends. It holds across an execve(2) in place, but for a program that is set-uid or has
/// capabilities (PR_SET_PDEATHSIG(2const)), and a start does this again. Returns whether there is
/// such a manager.
///
/// # Errors
/// It has ended already.
pub fn follow_parent(signal: Signal) -> io::Result<bool> {
    if parent().is_none() {
        return Ok(false);
    }
    set_parent_process_death_signal(Some(signal))?;
    // It may have ended before the line above.
    if !has_parent() {
        return Err(io::Error::other(
            "the process that started this one has ended",
        ));
    }
    Ok(true)
}

fn parent() -> Option<Pid> {
    Pid::from_raw(env::var(PARENT).ok()?.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::process::Stdio;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    fn socket(folder: &Path) -> NotifySocket {
        NotifySocket::bind(&folder.join("notify")).unwrap()
    }

    fn send(to: &NotifySocket, text: &str, descriptors: &[BorrowedFd<'_>]) {
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(to.path()).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let parts = [IoSlice::new(text.as_bytes())];
        sendmsg(&sender, &parts, &mut control, SendFlags::empty()).unwrap();
    }

    fn take(socket: &NotifySocket, held: &mut Held) -> Result<(), NotKept> {
        held.handle(socket.receive().unwrap().expect("a message"))
    }

    fn names(held: &Held) -> String {
        held.names().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_message_names_its_sender_and_what_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let socket = socket(folder.path());
        assert!(socket.receive().unwrap().is_none());
        send(&socket, "READY=1\nSTATUS=a=b\n", &[]);
        let message = socket.receive().unwrap().unwrap();
        assert_eq!(message.sender(), Some(getpid()));
        assert!(message.says("READY=1") && !message.says("READY"));
        assert_eq!(message.value("STATUS"), Some("a=b"));
        assert_eq!(message.value("STAT"), None);
        let path = socket.path().to_owned();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn descriptors_are_kept_by_name_until_they_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let socket = socket(folder.path());
        let mut held = Held::new(4);
        let (reader, writer) = io::pipe().unwrap();
        let both = [reader.as_fd(), writer.as_fd()];
        send(&socket, "FDSTORE=1\nFDNAME=p1\n", &both);
        send(&socket, "FDSTORE=1\n", &both[..1]);
        send(&socket, "FDSTOREREMOVE=1\nFDNAME=p\n", &[]);
        // Not asked to be kept.
        send(&socket, "STATUS=FDSTORE=1\n", &both);
        for _ in 0..4 {
            take(&socket, &mut held).unwrap();
        }
        assert_eq!(names(&held), "p1 p1 stored");
        let all_are_closed_on_exec = held.descriptors.iter().all(|(_, one)| {
            rustix::io::fcntl_getfd(one).is_ok_and(|flags| flags == rustix::io::FdFlags::CLOEXEC)
        });
        assert!(all_are_closed_on_exec);
        send(&socket, "FDSTORE=1\nFDNAME=p2\n", &both);
        let full = NotKept::Full { held: 3, max: 4 };
        assert_eq!(take(&socket, &mut held), Err(full));
        send(&socket, "FDSTOREREMOVE=1\nFDNAME=p1\n", &[]);
        take(&socket, &mut held).unwrap();
        assert_eq!(names(&held), "stored");
    }

    #[test]
    fn what_could_not_be_passed_on_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let socket = socket(folder.path());
        let mut held = Held::new(9);
        let (reader, _writer) = io::pipe().unwrap();
        for name in ["a:b", "", "tab\t", "\u{e4}", &"x".repeat(256)] {
            let text = format!("FDSTORE=1\nFDNAME={name}\n");
            send(&socket, &text, &[reader.as_fd()]);
            let bad = NotKept::BadName(name.to_owned());
            assert_eq!(take(&socket, &mut held), Err(bad));
        }
        let long = format!("FDSTORE=1\n{}", "x".repeat(MESSAGE_BYTES_MAX));
        send(&socket, &long, &[reader.as_fd()]);
        assert_eq!(take(&socket, &mut held), Err(NotKept::Cut));
        assert_eq!(names(&held), "");
    }

    #[test]
    fn the_next_process_finds_them_from_three_on() {
        let folder = tempfile::tempdir().unwrap();
        let socket = socket(folder.path());
        let mut held = Held::new(7);
        let (mut reader, writer) = io::pipe().unwrap();
        send(&socket, "FDSTORE=1\nFDNAME=a\n", &[writer.as_fd()]);
        send(&socket, "FDSTORE=1\nFDNAME=b\n", &[writer.as_fd()]);
        drop(writer);
        take(&socket, &mut held).unwrap();
        take(&socket, &mut held).unwrap();
        // Twice: what is held stays.
        for _ in 0..2 {
            let mut command = Command::new("sh");
            held.pass_to(&mut command, &socket).unwrap();
            be_parent_of(&mut command);
            let script = "echo $FDSTORE $LISTEN_FDS $LISTEN_FDNAMES >&3
                test $ROLLCALL_KEEPER = $PPID && test -z \"$LISTEN_PID\" && echo yes >&4
                test -S \"$NOTIFY_SOCKET\" && ! test -e /proc/$$/fd/5";
            command.args(["-c", script]).stdin(Stdio::null());
            assert!(command.status().unwrap().success());
        }
        held.clear();
        let mut said = String::new();
        // It ends: nobody has the other end any more.
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "7 2 a:b\nyes\n".repeat(2));
    }

    #[test]
    fn who_was_started_by_nobody_follows_nobody() {
        assert!(!has_parent());
        assert!(!follow_parent(Signal::INT).unwrap());
    }
}
