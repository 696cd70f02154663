//! Rollcall on a machine: from its packages, or by hand as they would.

use std::env;
use std::fs;
use std::path::PathBuf;

use super::Machine;
use crate::binaries::{self, CLI, MASTER, SLAVE};
use crate::source;

/// A folder with the .deb packages of all three programs, for example `target/debian`.
pub const PACKAGES: &str = "ROLLCALL_E2E_PACKAGES";

/// The packages, if there are any.
///
/// # Panics
/// If the folder that is named can't be read.
pub fn packages() -> Option<Vec<PathBuf>> {
    let folder = source::root().join(env::var_os(PACKAGES)?);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) => panic!("{PACKAGES}: can't read {}: {error}", folder.display()),
    };
    let mut packages: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    packages.sort();
    assert!(
        !packages.is_empty(),
        "{PACKAGES}: {} is empty",
        folder.display()
    );
    Some(packages)
}

impl Machine {
    /// Puts the packages into /root and returns true, or false if there are none.
    ///
    /// # Panics
    /// If they can't be read or written.
    pub fn bring_packages(&self) -> bool {
        let Some(packages) = packages() else {
            return false;
        };
        for path in packages {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            self.write(&format!("/root/{name}"), &read(&path));
        }
        true
    }

    /// Installs master, slave and command, and starts the daemons as a package does. The files in
    /// /etc/rollcall, if there are any, stay.
    ///
    /// # Panics
    /// If it fails.
    pub fn install(&self) {
        if self.bring_packages() {
            self.run("dpkg --install --force-confold /root/*.deb");
            return;
        }
        for program in [MASTER, SLAVE, CLI] {
            self.write(
                &format!("/usr/bin/{program}"),
                &read(&binaries::path(program)),
            );
        }
        self.run("chmod 755 /usr/bin/rollcall*");
        for (file, to) in [
            (
                "rollcall-master.service",
                "systemd/system/rollcall-master.service",
            ),
            (
                "rollcall-master.socket",
                "systemd/system/rollcall-master.socket",
            ),
            (
                "rollcall-slave.service",
                "systemd/system/rollcall-slave.service",
            ),
            (
                "rollcall-slave@.service",
                "systemd/system/rollcall-slave@.service",
            ),
            (
                "rollcall-master.sysusers",
                "sysusers.d/rollcall-master.conf",
            ),
            ("rollcall-slave.sysusers", "sysusers.d/rollcall-slave.conf"),
            (
                "rollcall-master.tmpfiles",
                "tmpfiles.d/rollcall-master.conf",
            ),
            ("rollcall-slave.tmpfiles", "tmpfiles.d/rollcall-slave.conf"),
        ] {
            let from = source::root().join("systemd").join(file);
            self.write(&format!("/usr/lib/{to}"), &read(&from));
        }
        for daemon in ["master", "slave"] {
            let from = source::root().join(format!("config/{daemon}.toml"));
            let to = format!("/etc/rollcall/{daemon}.toml");
            if !self.try_run(&format!("test -e {to}")).0 {
                self.write(&to, &read(&from));
            }
        }
        self.run(
            "systemd-sysusers; systemd-tmpfiles --create rollcall-master.conf rollcall-slave.conf
             systemctl daemon-reload
             systemctl enable --now rollcall-master rollcall-slave",
        );
    }
}

impl Machine {
    /// Makes `count` newer versions of an installed program, and returns the command that installs each, the
    /// oldest first. They differ in nothing but the version: of its package if it came from one, else the
    /// file is a new one.
    ///
    /// # Panics
    /// If they can't be made.
    pub fn make_upgrades(&self, program: &str, count: u32) -> Vec<String> {
        if packages().is_none() {
            let path = format!("/usr/bin/{program}");
            let upgrade = format!(
                "cp {path} {path}.new; mv {path}.new {path}; systemctl try-restart {program}.service"
            );
            return vec![upgrade; count.try_into().unwrap_or_default()];
        }
        self.run(&format!("dpkg-deb -R {program}_*.deb upgrade"));
        let made = (1..=count).map(|number| {
            let version = format!("99.{number}");
            self.run(&format!(
                "sed -i 's/^Version: .*/Version: {version}/' upgrade/DEBIAN/control
                 dpkg-deb -Znone -b upgrade /root/upgrade-{number}.package"
            ));
            format!(
                "dpkg --install /root/upgrade-{number}.package
                 test \"$(dpkg-query -W -f '${{Version}}' {program})\" = {version}"
            )
        });
        made.collect()
    }
}

#[track_caller]
fn read(path: &std::path::Path) -> Vec<u8> {
    match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => panic!("can't read {}: {error}", path.display()),
    }
}
