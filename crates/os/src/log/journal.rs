//! The journal of systemd, with every field of an event as one of its own, so that
//! `journalctl SLAVE=web-1` finds it.
//!
//! Own code of a few lines, because the message has to be worth reading by itself: tracing-journald
//! sends it without its fields, and plain `journalctl` would not tell which slave is meant. The protocol:
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL>.

use std::env;
use std::io;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::fs::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::format::Line;

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// Fields that the entry has anyway: one of an event that is named like it gets a prefix.
const RESERVED_FIELDS: [&str; 5] = [
    "message",
    "priority",
    "event",
    "target",
    "syslog_identifier",
];

/// Whether what is written to `stream` ends up in the journal: systemd names the stream that it has
/// connected (systemd.exec(5), JOURNAL_STREAM), and a redirected one is another.
pub(super) fn is_behind(stream: impl AsFd) -> bool {
    let Some(named) = env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = fstat(stream) else {
        return false;
    };
    named.to_str() == Some(&format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes events to the journal.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    identifier: String,
}

impl Journal {
    /// Connects to the journal that listens at `path`.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        let program = env::current_exe().ok();
        let name = program.as_deref().and_then(Path::file_name);
        let identifier = name.map_or_else(|| "rollcall".into(), |name| name.to_string_lossy());
        Ok(Self {
            identifier: identifier.into_owned(),
            socket,
        })
    }

    fn entry(&self, event: &Event<'_>) -> Vec<u8> {
        let meta = event.metadata();
        let line = Line::of(event);
        let mut entry = Vec::with_capacity(512);
        field(&mut entry, "MESSAGE", &line.plain());
        field(&mut entry, "PRIORITY", priority(*meta.level()));
        field(&mut entry, "SYSLOG_IDENTIFIER", &self.identifier);
        field(&mut entry, "TARGET", meta.target());
        field(&mut entry, "EVENT", line.event_name());
        for (key, value) in &line.fields {
            let prefix = if RESERVED_FIELDS.contains(key) {
                "FIELD_"
            } else {
                ""
            };
            let key = format!("{prefix}{}", key.to_ascii_uppercase());
            // journald takes no other characters; only a library could have them.
            let key = key.replace(|c: char| !c.is_ascii_alphanumeric() && c != '_', "_");
            field(&mut entry, &key, value.as_str());
        }
        entry
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let entry = self.entry(event);
        if self.socket.send(&entry).is_err() {
            // journald is being restarted, or the entry is larger than a datagram may be: its
            // stream, which is stdout, takes the line without its fields. Then there is nobody to tell.
            let level = event.metadata().level();
            let _ = writeln!(io::stdout(), "{level} {}", Line::of(event).plain());
        }
    }
}

/// syslog(3)'s numbers.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// A value with a line break has its length before it, so that it can't forge another field.
fn field(entry: &mut Vec<u8>, key: &str, value: &str) {
    entry.extend(key.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        let length = u64::try_from(value.len()).unwrap_or(u64::MAX);
        entry.extend(length.to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// What arrives at the journal, once `log` has been called.
    fn entries(log: impl FnOnce()) -> Vec<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), log);
        journald
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let mut buffer = [0; 4096];
        std::iter::from_fn(|| {
            let bytes = journald.recv(&mut buffer).ok()?;
            Some(buffer[..bytes].to_vec())
        })
        .collect()
    }

    #[test]
    fn every_field_is_one_of_the_journal() {
        let entries = entries(|| {
            tracing::warn!(
                event = "presence_changed",
                slave = "web-1",
                errno = 5,
                target = "t",
                "gone"
            );
        });
        let text = String::from_utf8(entries[0].clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(entries.len(), 1);
        assert_eq!(
            lines[0],
            "MESSAGE=gone event=presence_changed slave=web-1 errno=5 target=t"
        );
        assert_eq!(lines[1], "PRIORITY=4");
        assert!(lines[2].starts_with("SYSLOG_IDENTIFIER=rollcall"), "{text}");
        assert_eq!(
            lines[3..],
            [
                "TARGET=rollcall_os::log::journal::tests",
                "EVENT=presence_changed",
                "SLAVE=web-1",
                "ERRNO=5",
                "FIELD_TARGET=t"
            ]
        );
    }

    #[test]
    fn a_value_with_a_line_break_forges_no_field() {
        let entries = entries(|| tracing::info!(event = "e", text = "a\nPRIORITY=0"));
        let entry = &entries[0];
        let expected = b"TEXT\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n";
        assert!(entry.ends_with(expected), "{}", entry.escape_ascii());
        let message = b"MESSAGE= event=e text=\"a\\nPRIORITY=0\"\n";
        assert!(entry.starts_with(message), "{}", entry.escape_ascii());
    }

    #[test]
    fn an_entry_that_nobody_takes_ends_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path).unwrap();
        drop(journald);
        let subscriber = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(subscriber, || tracing::info!(event = "e", "told"));
        assert!(Journal::connect(&folder.path().join("none")).is_err());
    }

    #[test]
    fn a_redirected_stream_is_not_behind_the_journal() {
        // The test runner's own stdout is no stream of journald's, or JOURNAL_STREAM is not set.
        assert!(!is_behind(File::open("/dev/null").unwrap()));
    }
}
