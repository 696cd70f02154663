//! A master whose program the test may replace.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rollcall_e2e::{Master, binaries};
use rustix::process::Signal;

/// A master, which runs a copy of the program that the test may replace.
pub(crate) struct Upgraded {
    pub(crate) master: Master,
    pub(crate) program: PathBuf,
    pub(crate) folder: tempfile::TempDir,
}

impl Upgraded {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut master = Master::new(folder.path(), "master");
        // Time counted against a slave during the upgrades would make it late.
        master
            .config
            .set("presence.late_after", 20.0)
            .set("presence.missing_after", 40.0)
            .set("presence.reconnect_window", "10s");
        let program = folder.path().join("rollcall-master");
        copy_program(&program);
        Self {
            master,
            program,
            folder,
        }
    }

    pub(crate) fn started() -> Self {
        let mut upgraded = Self::new();
        upgraded.start();
        upgraded
    }

    pub(crate) fn start(&mut self) {
        let command = Command::new(&self.program);
        self.master.spawn_command(command);
        self.master.wait_until_ready();
    }

    /// Sends SIGUSR2, and waits until the program that takes over is ready.
    #[track_caller]
    pub(crate) fn upgrade(&mut self) {
        let ready = self.master.log().events("master_ready").len();
        self.master.signal(Signal::USR2);
        self.master.wait_for_events("master_ready", ready + 1);
    }

    /// Sends SIGUSR2 to a master whose program can't take over, and returns the reason that it logs.
    #[track_caller]
    pub(crate) fn upgrade_in_vain(&mut self) -> String {
        let refused = self.master.log().events("upgrade_refused").len();
        self.master.signal(Signal::USR2);
        let refused = self.master.wait_for_events("upgrade_refused", refused + 1);
        refused[refused.len() - 1].text("reason").to_owned()
    }

    /// Puts another program in the place of the one that runs, as a package manager does.
    pub(crate) fn replace(&self, make: impl FnOnce(&Path)) {
        let new = self.folder.path().join("rollcall-master.new");
        make(&new);
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("its mode");
        fs::rename(&new, &self.program).expect("renamed");
    }

    pub(crate) fn replace_by_copy(&self) {
        self.replace(copy_program);
    }

    pub(crate) fn replace_by_script(&self, script: &str) {
        self.replace(|new| write_program(new, &format!("#!/bin/sh\n{script}\n")));
    }

    /// The file that the master runs.
    pub(crate) fn running(&self) -> u64 {
        let exe = format!("/proc/{}/exe", self.master.pid());
        fs::metadata(exe).expect("it runs").ino()
    }

    /// What the program in the file says beside the running master.
    pub(crate) fn selfcheck(&self) -> Output {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.master.config_file());
        command.arg("--selfcheck").output().expect("it runs")
    }
}

/// A copy of the master's program. Made by another process: a file that this one had open for writing may
/// be open in a child of another test at the moment, and then nobody can execute it (ETXTBSY).
fn copy_program(to: &Path) {
    let mut command = Command::new("cp");
    command.arg(binaries::path(binaries::MASTER)).arg(to);
    assert!(command.status().expect("it runs").success());
}

/// The same for a text.
pub(crate) fn write_program(to: &Path, text: &str) {
    let mut command = Command::new("sh");
    command
        .args(["-c", "printf %s \"$1\" >\"$0\""])
        .arg(to)
        .arg(text);
    assert!(command.status().expect("it runs").success());
}
