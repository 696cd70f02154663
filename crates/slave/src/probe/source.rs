//! A text of the kernel that is read again and again.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::ProbeError;

/// What the buffer grows by at least.
const CHUNK_BYTES: usize = 4096;

/// A file of /proc or /sys, kept open with its buffer: opening it anew would be half the cost.
pub(super) struct Source {
    path: &'static str,
    file: Option<File>,
    buffer: Vec<u8>,
}

impl Source {
    /// Nothing is opened before the first use.
    pub(super) fn new(path: &'static str) -> Self {
        Self {
            path,
            file: None,
            buffer: Vec::new(),
        }
    }

    /// The text as it is now.
    pub(super) fn text(&mut self) -> Result<&[u8], ProbeError> {
        match self.read() {
            Ok(length) => Ok(&self.buffer[..length]),
            Err(error) => {
                // The next try begins anew.
                self.file = None;
                Err(ProbeError::read(self.path, error))
            }
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::open(self.path)?),
        };
        let mut length = 0;
        loop {
            if self.buffer.len() - length < CHUNK_BYTES / 2 {
                self.buffer.resize(length + CHUNK_BYTES, 0);
            }
            // From the start each time: the kernel then makes the text anew.
            match file.read_at(&mut self.buffer[length..], length as u64) {
                Ok(0) => return Ok(length),
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the kernel has marked the text as changed since this was asked last (the list of
    /// mounts has such a mark, proc(5)). True before the first reading and in doubt.
    pub(super) fn is_changed(&self) -> bool {
        let Some(file) = &self.file else {
            return true;
        };
        let mut polled = [PollFd::new(file, PollFlags::PRI)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mark = PollFlags::PRI | PollFlags::ERR;
        poll(&mut polled, Some(&at_once)).is_err() || polled[0].revents().intersects(mark)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_text_is_whole_and_new_each_time() {
        let mut maps = Source::new("/proc/self/smaps");
        for _ in 0..2 {
            let text = maps.text().unwrap();
            assert!(text.len() > CHUNK_BYTES, "longer than one reading");
            assert!(text.ends_with(b"\n"));
        }
        let mut stat = Source::new("/proc/self/io");
        let before = stat.text().unwrap().to_vec();
        // The first reading has itself been counted in the second.
        assert_ne!(stat.text().unwrap(), before);
    }

    #[test]
    fn a_missing_file_is_named() {
        let mut source = Source::new("/proc/no-such-file");
        let error = source.text().unwrap_err().to_string();
        assert!(error.contains("/proc/no-such-file"), "{error}");
    }

    #[test]
    fn the_list_of_mounts_is_not_changed_by_itself() {
        let mut source = Source::new("/proc/self/mountinfo");
        assert!(source.is_changed(), "it was never read");
        source.text().unwrap();
        assert!(!source.is_changed());
    }

    /// In a mount namespace of its own, so that nothing of the host changes.
    #[test]
    fn a_new_mount_is_a_change_and_is_told_once() {
        let mut child = Command::new("unshare")
            .args(["-m", "sh", "-c"])
            .arg("echo begun && read go && mount -t tmpfs none /mnt && echo mounted && read end")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut tell = child.stdin.take().unwrap();
        if said.next().is_none() {
            eprintln!("SKIPPED: mount namespaces need root");
            child.wait().unwrap();
            return;
        }
        let mut source = Source::new(format!("/proc/{}/mountinfo", child.id()).leak());
        source.text().unwrap();
        assert!(!source.is_changed());
        tell.write_all(b"\n").unwrap();
        let mounted = said.next().is_some();
        let changes = [source.is_changed(), source.is_changed()];
        drop(tell);
        child.wait().unwrap();
        if mounted {
            assert_eq!(changes, [true, false]);
        } else {
            eprintln!("SKIPPED: mounting is not allowed here");
        }
    }
}
