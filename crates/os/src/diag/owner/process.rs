//! One process, as /proc tells it (proc(5)).

use std::fs::{self, File};
use std::io::{self, Read};
use std::time::Duration;

use rustix::param::clock_ticks_per_second;

use super::unit;
use crate::clock;
use crate::diag::text::bounded;

/// Characters of a command line that are shown: enough for the program and its first arguments.
const COMMAND_CHARACTERS_MAX: usize = 120;
/// Bytes of a command line that are read for it.
const COMMAND_BYTES_MAX: u64 = 4096;

/// What is known of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) command: String,
    /// The effective user.
    pub(super) uid: u32,
    pub(super) unit: Option<String>,
    pub(super) since_ms: i64,
}

impl Process {
    /// `None` if it has ended, or is hidden (hidepid, ProtectProc=).
    pub(super) fn read(pid: u32) -> Option<Self> {
        let folder = format!("/proc/{pid}");
        let status = fs::read_to_string(format!("{folder}/status")).ok()?;
        let stat = fs::read_to_string(format!("{folder}/stat")).ok()?;
        let cgroups = fs::read_to_string(format!("{folder}/cgroup")).unwrap_or_default();
        Some(Self {
            pid,
            command: command(&folder, &status),
            uid: effective_uid(&status)?,
            unit: unit::of_process(&cgroups),
            since_ms: since_ms(started(&stat)?),
        })
    }
}

/// The command line with blanks between its arguments; the name in brackets for a process that has
/// none, as ps(1) does for the kernel's own.
fn command(folder: &str, status: &str) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(format!("{folder}/cmdline"))?
            .take(COMMAND_BYTES_MAX)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let words = text.trim_end_matches('\0').replace('\0', " ");
    if words.is_empty() {
        let name = field(status, "Name:").unwrap_or("?");
        return bounded(&format!("[{name}]"), COMMAND_CHARACTERS_MAX);
    }
    bounded(&words, COMMAND_CHARACTERS_MAX)
}

/// A line of /proc/PID/status.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = status.lines();
    lines
        .find_map(|line| line.strip_prefix(name))
        .map(str::trim)
}

/// "Uid: real effective saved filesystem".
fn effective_uid(status: &str) -> Option<u32> {
    let ids = field(status, "Uid:")?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

/// Field 22 of /proc/PID/stat: clock ticks after the boot. The name before it may have blanks and
/// brackets in it.
fn started(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// Ticks since boot as a moment of the wall clock. They count time in suspension (CLOCK_BOOTTIME).
fn since_ms(ticks: u64) -> i64 {
    let per_second = clock_ticks_per_second().max(1);
    let started = Duration::from_millis(ticks.saturating_mul(1000) / per_second);
    let age = clock::boot().since_origin().saturating_sub(started);
    let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    clock::wall_ms().saturating_sub(age_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_told() {
        let own = Process::read(std::process::id()).unwrap();
        assert!(own.command.contains("rollcall_os"), "{}", own.command);
        assert_eq!(own.uid, rustix::process::geteuid().as_raw());
        let age_ms = clock::wall_ms() - own.since_ms;
        assert!((-1000..3_600_000).contains(&age_ms), "{age_ms}");
        assert_eq!(Process::read(u32::MAX), None);
    }

    #[test]
    fn strange_names_do_not_move_the_fields() {
        let stat = format!("7 (a) b (c) S {} 4711 5", ["1"; 18].join(" "));
        assert_eq!(started(&stat), Some(4711));
        assert_eq!(started("7 (x"), None);
        let status = "Name:\tx\nUid:\t1000\t33\t0\t0\n";
        assert_eq!(
            (effective_uid(status), effective_uid("Name: x")),
            (Some(33), None)
        );
        assert_eq!(command("/nowhere", status), "[x]");
    }
}
