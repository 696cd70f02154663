//! A machine of a test's own: Debian with a real systemd as its PID 1, booted in a container.
//!
//! ```text
//!   root      a folder with Debian in it (debootstrap), made once and kept beside the test's programs
//!   install   the programs and units: from packages if they are built, else by copying
//!   Machine   the booted container; what is written in it is in memory and gone with it
//! ```
//!
//! It has a network of its own with nothing but a loopback, is not known to the host's systemd, and ends
//! with this value, or with the test's process, whatever becomes of it.

mod install;
mod look;
mod root;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::skip::{require_root_or_skip_loudly, skip_loudly};
use crate::wait::poll_until;

pub use install::{PACKAGES, packages};

/// How long a boot may take, on a machine that is very busy.
const BOOT: Duration = Duration::from_secs(90);
/// How long it may take to shut down before it is killed.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How long a command may take, in seconds.
const COMMAND_S: &str = "120";
/// What has to be installed on this host.
const TOOLS: [&str; 6] = [
    "debootstrap",
    "systemd-nspawn",
    "nsenter",
    "setpriv",
    "timeout",
    "unshare",
];
/// What systemd-nspawn keeps in /run/systemd/nspawn it removes at the end only from a file system in memory,
/// which /run need not be: in a container, say. So it gets one, in a mount namespace of its own.
const NSPAWN: &str = "mkdir -p /run/systemd/nspawn && mount -t tmpfs tmpfs /run/systemd/nspawn && exec systemd-nspawn \"$@\"";

/// See the module's documentation.
#[derive(Debug)]
pub struct Machine {
    nspawn: Child,
    /// The PID, on this host, of its PID 1.
    leader: u32,
    /// One machine at a time uses the folder.
    _turn: File,
}

impl Machine {
    /// Boots one, or `None` where that can't be done: then it is said loudly that the test `name` is
    /// skipped.
    ///
    /// # Panics
    /// With `ROLLCALL_CI_STRICT=1` instead of skipping, and if it does not come up in time.
    pub fn boot_or_skip_loudly(name: &str) -> Option<Self> {
        if !require_root_or_skip_loudly(name) {
            return None;
        }
        if !is_root_of_the_host() {
            // No failure where everything must be there: such a root can't be more.
            let why = "it takes root of the host, not of a user namespace";
            let _ = writeln!(std::io::stderr(), "\nSKIPPED {name}: {why}\n");
            return None;
        }
        for tool in TOOLS {
            if !is_installed(tool) {
                skip_loudly(name, &format!("{tool} is not installed"));
                return None;
            }
        }
        match root::make() {
            Ok((folder, turn)) => Some(Self::boot(&folder, turn)),
            Err(error) => {
                skip_loudly(name, &format!("there is no Debian to boot: {error:#}"));
                None
            }
        }
    }

    fn boot(folder: &Path, turn: File) -> Self {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "unshare", "--mount"])
            .args(["sh", "-c", NSPAWN, "systemd-nspawn", "--quiet"])
            .args(["--boot", "--register=no", "--keep-unit"])
            .args(["--private-network", "--volatile=overlay"])
            .args(["--machine=rollcall-e2e", "--console=pipe", "--directory"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let nspawn = match command.spawn() {
            Ok(nspawn) => nspawn,
            Err(error) => panic!("can't run {command:?}: {error}"),
        };
        let mut machine = Self {
            nspawn,
            leader: 0,
            _turn: turn,
        };
        let booted = poll_until(BOOT, || machine.find_leader().filter(|_| machine.is_up()));
        assert!(booted.is_some(), "the machine has not booted in {BOOT:?}");
        machine
    }

    /// Its PID 1: the child of systemd-nspawn.
    fn find_leader(&mut self) -> Option<u32> {
        if let Ok(Some(ended)) = self.nspawn.try_wait() {
            panic!("systemd-nspawn ended with {ended}");
        }
        let nspawn = self.nspawn.id();
        let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children"));
        let leader = children.ok()?.split_whitespace().next()?.parse().ok()?;
        // Before it has become systemd it is not in its namespaces yet.
        let name = fs::read_to_string(format!("/proc/{leader}/comm")).ok()?;
        self.leader = leader;
        (name.trim() == "systemd").then_some(leader)
    }

    fn is_up(&self) -> bool {
        let state = self.output(&["systemctl", "is-system-running"]);
        let state = String::from_utf8_lossy(&state.stdout);
        matches!(state.trim(), "running" | "degraded")
    }

    fn output(&self, words: &[&str]) -> Output {
        let leader = self.leader.to_string();
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", COMMAND_S, "nsenter", "--target", &leader])
            .arg("--all")
            .args(words)
            .stdin(Stdio::null())
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", "/root");
        match command.output() {
            Ok(output) => output,
            Err(error) => panic!("can't run {command:?}: {error}"),
        }
    }

    /// What the shell's `script` says on both streams, and whether it ended with 0.
    pub fn try_run(&self, script: &str) -> (bool, String) {
        let script = format!("exec 2>&1; cd /root; set -e; {script}");
        let output = self.output(&["sh", "-c", &script]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said)
    }

    /// What the shell's `script` says.
    ///
    /// # Panics
    /// If it fails, or takes longer than two minutes.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let (succeeded, said) = self.try_run(script);
        assert!(succeeded, "in the machine: {script}\nsaid: {said}");
        said
    }

    /// Writes a file in the machine; its folder is made if it is missing.
    ///
    /// # Panics
    /// If it can't be written.
    #[track_caller]
    pub fn write(&self, path: &str, contents: &[u8]) {
        let leader = self.leader.to_string();
        let script = "mkdir -p \"$(dirname \"$1\")\" && cat > \"$1\"";
        let written = Command::new("nsenter")
            .args(["--target", &leader, "--all", "sh", "-c", script, "sh", path])
            .stdin(Stdio::piped())
            .spawn()
            .and_then(|mut inside| {
                // Closed at once, which ends the file.
                if let Some(mut input) = inside.stdin.take() {
                    input.write_all(contents)?;
                }
                inside.wait()
            });
        match written {
            Ok(status) if status.success() => {}
            other => panic!("can't write {path} in the machine: {other:?}"),
        }
    }

    /// A property of a unit, as systemctl shows it.
    ///
    /// # Panics
    /// If systemctl fails.
    #[track_caller]
    pub fn property(&self, unit: &str, property: &str) -> String {
        let said = self.run(&format!("systemctl show --value -p {property} {unit}"));
        said.trim().to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Past its units: PID 1 ends all processes at once, and systemd-nspawn tidies up.
        let is_told = self.leader != 0 && {
            let told = self.output(&["systemctl", "--force", "poweroff"]);
            told.status.success()
        };
        let limit = if is_told { SHUTDOWN } else { Duration::ZERO };
        if poll_until(limit, || self.nspawn.try_wait().ok().flatten()).is_some() {
            return;
        }
        // Its PID 1 takes everything in it along.
        let leader = i32::try_from(self.leader).ok();
        match leader.and_then(rustix::process::Pid::from_raw) {
            Some(leader) => {
                let _ = rustix::process::kill_process(leader, rustix::process::Signal::KILL);
            }
            None => {
                let _ = self.nspawn.kill();
            }
        }
        let _ = self.nspawn.wait();
    }
}

/// Whether all users are mapped to themselves (user_namespaces(7)).
fn is_root_of_the_host() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn is_installed(tool: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$1\"", "sh", tool])
        .stdout(Stdio::null())
        .status();
    found.is_ok_and(|status| status.success())
}
