//! The folder that a machine boots from.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::wait::poll_until;

/// What is in it beside the smallest Debian.
const INCLUDE: &str = "systemd,systemd-sysv,dbus,iproute2,jq,procps,sqlite3";
/// Debootstrap downloads and unpacks some 120 packages: 40 s on two idle cores.
const MAKE_S: &str = "600";
/// How long the machines of other tests may take in all.
const TURN: Duration = Duration::from_secs(900);

/// The folder, made if it is missing, and the lock by which no other test uses it meanwhile.
pub(super) fn make() -> anyhow::Result<(PathBuf, File)> {
    let suite = suite()?;
    let own = env::current_exe().context("can't find out where this test is")?;
    // TARGET_DIR/PROFILE/deps/TEST
    let profile = own
        .ancestors()
        .nth(2)
        .context("it lies in no target folder")?;
    let folder = profile.join("machine");
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let lock = folder.join("lock");
    let lock = File::create(&lock).with_context(|| format!("can't write {}", lock.display()))?;
    let locked = poll_until(TURN, || match lock.try_lock() {
        Ok(()) => Some(Ok(())),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => Some(Err(error)),
    });
    locked.context("another test's machine has not ended")??;

    // Named by what is in it: one that lacks something is made anew.
    let root = folder.join(format!("{suite}-{}", INCLUDE.replace(',', "+")));
    if root.exists() {
        return Ok((root, lock));
    }
    let unfinished = folder.join("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)
            .with_context(|| format!("can't remove {}", unfinished.display()))?;
    }
    let made = Command::new("timeout")
        .args(["--kill-after=5", MAKE_S, "debootstrap", "--variant=minbase"])
        .args([format!("--include={INCLUDE}"), suite])
        .arg(&unfinished)
        .stdin(Stdio::null())
        .output()
        .context("can't run debootstrap")?;
    ensure!(
        made.status.success(),
        "debootstrap ended with {}:\n{}{}",
        made.status,
        String::from_utf8_lossy(&made.stdout),
        String::from_utf8_lossy(&made.stderr)
    );
    fs::rename(&unfinished, &root).context("can't rename the folder")?;
    Ok((root, lock))
}

/// The Debian of this host: its C library fits the programs that were built here.
fn suite() -> anyhow::Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("can't read /etc/os-release")?;
    let value = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    if value("ID=").as_deref() != Some("debian") {
        bail!("this host runs no Debian");
    }
    value("VERSION_CODENAME=").context("this Debian has no codename")
}
