//! The files that a host tells about itself in, below a root that tests can replace.

use std::fs;
use std::path::{Path, PathBuf};

/// Where /proc and /etc are.
#[derive(Clone, Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    /// This host's.
    pub(super) fn host() -> Self {
        Self(PathBuf::from("/"))
    }

    /// A folder that is laid out like one.
    #[cfg(test)]
    pub(super) fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// The file `path`, such as "proc/net/sockstat", if it is there and text.
    pub(super) fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        fs::read_to_string(self.0.join(path)).ok()
    }

    /// The value of a kernel parameter such as "net.ipv4.tcp_tw_reuse".
    pub(super) fn sysctl(&self, name: &str) -> Option<String> {
        let path = Path::new("proc/sys").join(name.replace('.', "/"));
        Some(self.text(path)?.trim().to_owned())
    }

    /// The same of a parameter that is one number.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.sysctl(name)?.parse().ok()
    }

    /// The files in `folder` whose names end in ".conf", by name; none if it is not there.
    pub(super) fn conf_files(&self, folder: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.0.join(folder));
        let paths = entries
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let mut paths: Vec<_> = paths
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "conf")
            })
            .collect();
        paths.sort();
        paths
    }

    /// Where "etc/x" is.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// `path` as it is called on the host.
    pub(super) fn name(&self, path: &Path) -> PathBuf {
        let inside = path.strip_prefix(&self.0).unwrap_or(path);
        Path::new("/").join(inside)
    }
}
