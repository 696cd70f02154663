//! sysctl.conf and sysctl.d: what is set at boot, and where.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::PathBuf;

use super::root::Root;

/// In the order in which a file hides one of the same name (sysctl.d(5)).
const FOLDERS: [&str; 5] = [
    "etc/sysctl.d",
    "run/sysctl.d",
    "usr/local/lib/sysctl.d",
    "usr/lib/sysctl.d",
    "lib/sysctl.d",
];
/// Read after all others by sysctl(8).
const LAST: &str = "etc/sysctl.conf";

/// A parameter that a file sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// With dots.
    pub(super) key: String,
    pub(super) value: String,
    pub(super) file: PathBuf,
    pub(super) number: usize,
}

impl Line {
    /// "/etc/sysctl.d/90-x.conf, line 3"
    pub(super) fn place(&self) -> String {
        format!("{}, line {}", self.file.display(), self.number)
    }
}

/// All lines about TCP.
pub(super) fn read(root: &Root) -> Vec<Line> {
    let mut files = BTreeMap::new();
    for folder in FOLDERS {
        for path in root.conf_files(folder) {
            if let Some(name) = path.file_name() {
                files.entry(name.to_owned()).or_insert(path);
            }
        }
    }
    let mut seen = HashSet::new();
    let mut lines = Vec::new();
    for path in files.into_values().chain([root.path(LAST)]) {
        // /etc/sysctl.d/99-sysctl.conf is a link to /etc/sysctl.conf on some systems.
        let Ok(real) = fs::canonicalize(&path) else {
            continue;
        };
        if let Ok(text) = fs::read_to_string(&real)
            && seen.insert(real)
        {
            lines.extend(parse(&text).map(|(number, key, value)| Line {
                key,
                value,
                file: root.name(&path),
                number,
            }));
        }
    }
    lines.retain(|line| line.key.starts_with("net.ipv4.tcp_"));
    lines
}

/// Number, key and value of each line that sets something.
fn parse(text: &str) -> impl Iterator<Item = (usize, String, String)> {
    text.lines().enumerate().filter_map(|(at, line)| {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            return None;
        }
        let (key, value) = line.split_once('=')?;
        // A leading "-" asks to overlook failures; "/" may stand for ".".
        let key = key.trim().trim_start_matches('-').replace('/', ".");
        Some((at + 1, key, value.trim().to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::testing::Fixture;

    #[test]
    fn lines_are_read_as_sysctl_does() {
        let text =
            "# net.ipv4.tcp_a = 1\n\n; x\n-net/ipv4/tcp_b=2\n net.ipv4.tcp_c = 3 4 \nnonsense";
        let found: Vec<_> = parse(text).collect();
        let line = |number, key: &str, value: &str| (number, key.to_owned(), value.to_owned());
        assert_eq!(
            found,
            [
                line(4, "net.ipv4.tcp_b", "2"),
                line(5, "net.ipv4.tcp_c", "3 4")
            ]
        );
    }

    #[test]
    fn a_file_of_the_same_name_is_hidden_and_a_link_is_read_once() {
        let fixture = Fixture::new(&[
            ("usr/lib/sysctl.d/10-a.conf", "net.ipv4.tcp_a=hidden"),
            (
                "etc/sysctl.d/10-a.conf",
                "net.ipv4.tcp_a=1\nnet.core.somaxconn=2",
            ),
            ("run/sysctl.d/20-b.conf", "net.ipv4.tcp_b=1"),
            ("run/sysctl.d/readme", "net.ipv4.tcp_c=1"),
            ("etc/sysctl.conf", "net.ipv4.tcp_d=1"),
        ]);
        std::os::unix::fs::symlink(
            "../sysctl.conf",
            fixture.path("etc/sysctl.d/99-sysctl.conf"),
        )
        .unwrap();
        let places: Vec<_> = read(&fixture.root())
            .into_iter()
            .map(|line| (line.place(), line.value))
            .collect();
        let place = |place: &str| (place.to_owned(), "1".to_owned());
        assert_eq!(
            places,
            [
                place("/etc/sysctl.d/10-a.conf, line 1"),
                place("/run/sysctl.d/20-b.conf, line 1"),
                place("/etc/sysctl.d/99-sysctl.conf, line 1"),
            ]
        );
    }
}
