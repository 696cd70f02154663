//! The programs under test.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, bail, ensure};

use crate::source;

/// A folder with programs that are built already, for example `target/release`.
pub const BIN_DIR: &str = "ROLLCALL_E2E_BIN_DIR";

/// The master daemon.
pub const MASTER: &str = "rollcall-master";
/// The slave agent.
pub const SLAVE: &str = "rollcall-slave";
/// The operator's command.
pub const CLI: &str = "rollcall";
/// The load generator.
pub const BENCH: &str = "rollcall-bench";

/// Packages and their programs have the same names.
const ALL: [&str; 4] = [MASTER, SLAVE, CLI, BENCH];

static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// Where the program `name` is. The first call of a process has cargo build all of them, in the
/// profile and target folder of the running test.
///
/// # Panics
/// If they can't be built, with what cargo said.
pub fn path(name: &str) -> PathBuf {
    let folder = FOLDER.get_or_init(|| find_or_build().map_err(|error| format!("{error:#}")));
    match folder {
        Ok(folder) => folder.join(name),
        Err(error) => panic!("no programs to test: {error}"),
    }
}

/// The program `name` of another build that lies in `folder`, or else the one under test.
///
/// # Panics
/// As [`path`] does.
pub fn path_in(folder: Option<&Path>, name: &str) -> PathBuf {
    folder.map_or_else(|| path(name), |folder| folder.join(name))
}

/// Puts a copy of a program to `path`, which everybody may run.
///
/// Another process copies it: a descriptor that is open for writing here would be inherited by what
/// another test starts meanwhile, and until that runs the copy could not be run (ETXTBSY).
///
/// # Panics
/// If it can't be copied.
#[track_caller]
pub fn install(program: &Path, path: &Path) {
    let mut install = Command::new("install");
    install.args(["-m", "755"]).args([program, path]);
    match install.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{install:?}: {status}"),
        Err(error) => panic!("can't run {install:?}: {error}"),
    }
}

fn find_or_build() -> anyhow::Result<PathBuf> {
    if let Some(folder) = env::var_os(BIN_DIR) {
        let folder = source::root().join(folder);
        for name in ALL {
            let path = folder.join(name);
            ensure!(path.is_file(), "{BIN_DIR}: there is no {}", path.display());
        }
        return Ok(folder);
    }
    let own = env::current_exe().context("can't find out where this test is")?;
    // TARGET_DIR[/TRIPLE]/PROFILE/deps/TEST
    let folder = own
        .ancestors()
        .nth(2)
        .context("this test lies in no target folder")?;
    build(folder)?;
    Ok(folder.to_owned())
}

fn build(folder: &Path) -> anyhow::Result<()> {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => bail!("{} is no profile's folder", folder.display()),
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command
        .args(["build", "--locked", "--bins", "--profile", profile])
        .args(ALL.iter().flat_map(|package| ["-p", package]))
        .current_dir(source::root());
    let above = folder
        .parent()
        .context("a profile's folder is in another one")?;
    if above.join("CACHEDIR.TAG").exists() {
        command.arg("--target-dir").arg(above);
    } else if let (Some(target), Some(triple)) = (above.parent(), above.file_name()) {
        command
            .arg("--target-dir")
            .arg(target)
            .arg("--target")
            .arg(triple);
    }
    let built = command
        .output()
        .with_context(|| format!("can't run {command:?}"))?;
    ensure!(
        built.status.success(),
        "{command:?} failed:\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
    Ok(())
}
