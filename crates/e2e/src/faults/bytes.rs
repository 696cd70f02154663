//! Damages files.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// SQLite's page.
pub const PAGE: u64 = 4096;

/// What is done to one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Cut to this length.
    Cut(u64),
    /// This byte is inverted.
    Flip(u64),
    /// Bytes of another kind take its place.
    Garbage,
    /// It is gone.
    Delete,
}

impl Damage {
    /// Does it.
    ///
    /// # Errors
    /// What the system says.
    pub fn apply(&self, path: &Path) -> io::Result<()> {
        match *self {
            Self::Cut(length) => OpenOptions::new().write(true).open(path)?.set_len(length),
            Self::Flip(at) => {
                let file = OpenOptions::new().read(true).write(true).open(path)?;
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                file.write_all_at(&[!byte[0]], at)
            }
            Self::Garbage => fs::write(path, b"this is no database\n".repeat(1000)),
            Self::Delete => fs::remove_file(path),
        }
    }
}

/// Every way in which a file of this length is damaged: cut at every page and at odd lengths, a
/// byte flipped in every page at a place that differs from page to page, garbage, gone.
pub fn ways(length: u64) -> Vec<Damage> {
    let pages = length.div_ceil(PAGE);
    let mut ways = vec![Damage::Garbage, Damage::Delete];
    for page in 0..pages {
        let start = page * PAGE;
        let odd = [1, 16, 24, 32, 100, 511, 512, 1023, 2048, 4095];
        let cuts = odd.map(|beyond| start + beyond);
        ways.push(Damage::Cut(start));
        ways.extend(
            cuts.into_iter()
                .filter(|cut| *cut < length)
                .map(Damage::Cut),
        );
        // The page's header, its cells' pointers, its free space, its cells.
        for beyond in [page * 37 % 8, 8 + page * 97 % 100, 300 + page * 631 % 3796] {
            if start + beyond < length {
                ways.push(Damage::Flip(start + beyond));
            }
        }
    }
    ways
}

/// What the daemon `name` said at its end: standard error and the last lines of its log.
pub fn last_words(folder: &Path, name: &str) -> String {
    const LINES: usize = 5;
    let read = |ending| {
        let path = folder.join(format!("{name}.{ending}"));
        fs::read_to_string(path).unwrap_or_default()
    };
    let log = read("log");
    let lines: Vec<_> = log.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LINES)..];
    format!("{}{}", read("err"), tail.join("\n"))
}

/// Copies a folder's files; folders in it are left out.
///
/// # Panics
/// If that can't be done.
pub fn copy_folder(from: &Path, to: &Path) {
    let copy = || -> io::Result<()> {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        Ok(())
    };
    if let Err(error) = copy() {
        panic!("can't copy {} to {}: {error}", from.display(), to.display());
    }
}
