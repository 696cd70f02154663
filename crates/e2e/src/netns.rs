//! Network namespaces of a test's own: addresses, ports and sysctls that nobody else uses.
//!
//! A namespace has no name and lives as long as this value and what was opened in it: nothing is left
//! behind, whatever becomes of the test. Sockets that were opened in it, and processes that were
//! started in it, stay in it wherever they are used from.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::panic;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::skip::{require_root_or_skip_loudly, skip_loudly};

/// A network namespace with nothing in it but a loopback that is up.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// A new one, or `None` where this process may not make one: then it is said loudly that the test
    /// `name` is skipped.
    ///
    /// # Panics
    /// With `ROLLCALL_CI_STRICT=1` instead of skipping, and if its loopback can't be brought up.
    #[track_caller]
    pub fn new_or_skip_loudly(name: &str) -> Option<Self> {
        if !require_root_or_skip_loudly(name) {
            return None;
        }
        // unshare(2) moves the thread that calls it, and this one ends at once.
        let made = thread::spawn(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let file = match made.join() {
            Ok(Ok(file)) => file,
            Ok(Err(error)) => {
                skip_loudly(name, &format!("no network namespace can be made: {error}"));
                return None;
            }
            Err(panicked) => panic::resume_unwind(panicked),
        };
        let namespace = Self { file };
        namespace.ip("link set lo up");
        Some(namespace)
    }

    /// The one that a process is in.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/ns/net"))?;
        Ok(Self { file })
    }

    /// Does `work` on a thread that is in the namespace.
    ///
    /// # Panics
    /// If `work` does, or if the namespace can't be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let kind = Some(LinkNameSpaceType::Network);
        let done = thread::scope(|scope| {
            let inside = scope.spawn(|| {
                if let Err(error) = move_into_link_name_space(self.file.as_fd(), kind) {
                    panic!("can't enter the namespace: {error}");
                }
                work()
            });
            inside.join()
        });
        done.unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    }

    /// Runs ip(8) with these words.
    ///
    /// # Panics
    /// If it is missing or fails, with what it says.
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        let run = || {
            let mut command = Command::new("ip");
            command.args(arguments.split_whitespace()).output()
        };
        match self.run(run) {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!(
                "ip {arguments}: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => panic!("can't run ip (of iproute2): {error}"),
        }
    }

    /// Sets a sysctl, for example `set("net.ipv4.ip_local_port_range", "40000 40099")`.
    ///
    /// # Panics
    /// If the kernel does not take it.
    #[track_caller]
    pub fn set(&self, sysctl: &str, value: &str) {
        let path = format!("/proc/sys/{}", sysctl.replace('.', "/"));
        if let Err(error) = self.run(|| fs::write(&path, value)) {
            panic!("can't set {sysctl} to {value:?}: {error}");
        }
    }

    /// Lays a cable to `other`: a veth(4) pair, with `address` (such as `10.0.0.1/24`) at this end and
    /// `its_address` at the other.
    ///
    /// # Panics
    /// If it can't be laid.
    #[track_caller]
    pub fn connect(&self, other: &Self, address: &str, its_address: &str) {
        // ip(8) names a namespace by a process in it: one that waits for the end of its input.
        let wait = || {
            let mut command = Command::new("cat");
            command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()
        };
        let mut inside = match other.run(wait) {
            Ok(inside) => inside,
            Err(error) => panic!("can't run cat: {error}"),
        };
        let pid = inside.id();
        self.ip(&format!(
            "link add rollcall0 type veth peer name rollcall0 netns {pid}"
        ));
        drop(inside.stdin.take());
        if let Err(error) = inside.wait() {
            panic!("can't wait for cat: {error}");
        }
        for (end, address) in [(self, address), (other, its_address)] {
            end.ip(&format!("address add {address} dev rollcall0"));
            end.ip("link set rollcall0 up");
        }
    }
}
