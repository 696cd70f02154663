//! A daemon under strace(1): calls are counted, fail, or are where it is killed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::skip::skip_loudly;
use crate::wait::{PATIENCE, poll_until};

/// The calls at which a daemon is killed: all that put something where somebody else can see it, or
/// take it from there, and the wait in between.
pub const SWEPT: [&str; 17] = [
    "write",
    "writev",
    "pwrite64",
    "fdatasync",
    "fsync",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "ftruncate",
    "sendto",
    "sendmsg",
    "recvfrom",
    "recvmsg",
    "accept4",
    "epoll_wait",
];

/// Something that befalls a daemon at a system call. strace counts the calls of each thread by
/// itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The call's name.
    pub syscall: String,
    /// What happens, in strace's words: `signal=SIGKILL` or `error=EIO`.
    pub what: String,
    /// At which calls of a thread, in strace's words: `3`, `3+`, `3..5`.
    pub when: String,
    /// Only calls on this file, if it is set.
    pub file: Option<PathBuf>,
}

impl Fault {
    /// kill -9 just before the call is made for the `when`th time.
    pub fn kill(syscall: &str, when: usize) -> Self {
        Self {
            syscall: syscall.to_owned(),
            what: "signal=SIGKILL".to_owned(),
            when: when.to_string(),
            file: None,
        }
    }

    /// The call is not made and returns an error.
    pub fn error(syscall: &str, errno: &str, when: &str) -> Self {
        Self {
            syscall: syscall.to_owned(),
            what: format!("error={errno}"),
            when: when.to_owned(),
            file: None,
        }
    }

    /// The same for calls on one file only.
    pub fn on(self, file: &Path) -> Self {
        Self {
            file: Some(file.to_owned()),
            ..self
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{}:{}:when={}",
            self.syscall, self.what, self.when
        )
    }
}

/// What is done to a daemon that is started.
#[derive(Clone, Debug)]
pub enum Trace {
    /// Nothing: its calls are only written down.
    Count,
    /// This.
    Inject(Vec<Fault>),
}

/// Whether strace can trace here. If not, says that the test `name` is skipped.
///
/// # Panics
/// With `ROLLCALL_CI_STRICT=1` if it can't.
pub fn require_or_skip_loudly(name: &str) -> bool {
    let tried = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=none"])
        .args(["-e", "inject=fsync:error=EIO:when=1", "true"])
        .stdin(Stdio::null())
        .output();
    let why = match tried {
        Err(error) => {
            format!("strace can't be started: {error}; install it (apt-get install strace)")
        }
        Ok(output) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            format!("strace can't trace here (ptrace is not allowed?): {said}")
        }
        Ok(_) => return true,
    };
    skip_loudly(name, &why);
    false
}

/// Starts `program` with `--config config` under strace. The process is the daemon itself: strace
/// stands beside it, and ends with it.
///
/// # Panics
/// If it can't be started.
#[track_caller]
pub fn spawn(name: &str, program: &Path, config: &Path, folder: &Path, trace: &Trace) -> Daemon {
    let mut arguments: Vec<OsString> = ["-D", "-f", "-qq", "-yy", "-e", "signal=none", "-o"]
        .map(OsString::from)
        .into();
    arguments.push(calls_file(folder, name).into());
    match trace {
        Trace::Count => {
            arguments.push("-e".into());
            arguments.push(format!("trace={}", SWEPT.join(",")).into());
        }
        Trace::Inject(faults) => {
            let names: Vec<_> = faults.iter().map(|fault| &*fault.syscall).collect();
            arguments.push("-e".into());
            arguments.push(format!("trace={}", names.join(",")).into());
            for fault in faults {
                arguments.push("-e".into());
                arguments.push(format!("inject={fault}").into());
                if let Some(file) = &fault.file {
                    arguments.extend(["-P".into(), file.into()]);
                }
            }
        }
    }
    // Not with --seccomp-bpf: signals would not be injected.
    arguments.push(program.into());
    arguments.extend(["--config".into(), config.into()]);
    arguments.extend(["--log-format".into(), "json".into()]);
    Daemon::spawn(name, Path::new("strace"), arguments, folder)
}

fn calls_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.calls"))
}

/// The calls that strace has written down for `name` in its last run under [`spawn`].
#[derive(Clone, Debug)]
pub struct Calls(String);

impl Calls {
    /// Reads them; call it once the daemon has ended.
    pub fn read(folder: &Path, name: &str) -> Self {
        Self(fs::read_to_string(calls_file(folder, name)).unwrap_or_default())
    }

    /// How often each call was made by the thread that made it most.
    pub fn most_by_thread(&self) -> BTreeMap<&str, usize> {
        let mut by_thread: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for call in self.0.lines().filter_map(name_of) {
            *by_thread.entry(call).or_default() += 1;
        }
        let mut most = BTreeMap::new();
        for ((_, name), count) in by_thread {
            let highest: &mut usize = most.entry(name).or_default();
            *highest = count.max(*highest);
        }
        most
    }

    /// How often the thread that made this call most made it on files whose path ends so.
    pub fn most_by_thread_on(&self, syscall: &str, path: &str) -> usize {
        let is_meant = |line: &&str| path.is_empty() || line.contains(&format!("{path}>"));
        let lines: Vec<_> = self.0.lines().filter(is_meant).collect();
        let calls = Self(lines.join("\n"));
        calls.most_by_thread().get(syscall).copied().unwrap_or(0)
    }

    /// How often this call was made on files whose path ends so after the first one that failed.
    pub fn after_injection(&self, syscall: &str, path: &str) -> usize {
        let mut lines = self.0.lines();
        lines.find(|line| line.contains("(INJECTED)"));
        lines
            .filter(|line| name_of(line).is_some_and(|(_, name)| name == syscall))
            .filter(|line| line.contains(&format!("{path}>")))
            .count()
    }

    /// How often any of these calls was made on a file whose path contains `path`.
    pub fn count(&self, names: &[&str], path: &str) -> usize {
        let is_meant = |line: &&str| {
            name_of(line).is_some_and(|(_, name)| names.contains(&name)) && line.contains(path)
        };
        self.0.lines().filter(is_meant).count()
    }

    /// Whether a fault was injected.
    pub fn was_injected(&self) -> bool {
        self.0.contains("(INJECTED)")
    }

    /// Whether a fault was injected into a call on a TCP connection.
    pub fn was_injected_into_tcp(&self) -> bool {
        let mut lines = self.0.lines();
        lines.any(|line| line.contains("(INJECTED)") && line.contains("<TCP"))
    }
}

/// The thread and the name of a call; the second half of a call that was interrupted is none.
fn name_of(line: &str) -> Option<(&str, &str)> {
    let (thread, rest) = line.split_once(' ')?;
    let (name, _) = rest.trim_start().split_once('(')?;
    let is_name = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then_some((thread, name))
}

/// Asks a daemon to end until it does: a fault may hit the very call by which its signal handler
/// wakes it.
///
/// # Panics
/// If it does not end.
pub fn insist_on_end(daemon: &mut Daemon) -> ExitStatus {
    let tries = 4;
    for _ in 0..tries {
        if daemon.ended().is_none() {
            daemon.signal(Signal::TERM);
        }
        if let Some(status) = poll_until(PATIENCE / tries, || daemon.ended()) {
            return status;
        }
    }
    daemon.wait(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_thread() {
        let text = "7 fdatasync(9</x/master.db-wal>) = 0\n\
                    7 write(1<pipe>, \"a\", 1 <unfinished ...>\n\
                    8 write(4, \"b\", 1) = 1\n\
                    7 <... write resumed>) = 1\n\
                    7 write(1, \"fsync(\", 1) = -1 EIO (Input/output error) (INJECTED)\n\
                    8 +++ killed by SIGKILL +++\n";
        let calls = Calls(text.to_owned());
        let most: Vec<_> = calls.most_by_thread().into_iter().collect();
        assert_eq!(most, [("fdatasync", 1), ("write", 2)]);
        assert_eq!(calls.count(&["fdatasync", "fsync"], "master.db-wal"), 1);
        assert_eq!(calls.count(&["fsync"], ""), 0);
        assert!(calls.was_injected());
    }
}
