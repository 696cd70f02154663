//! The folder of one drill: configurations, states and logs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The folder of one drill.
#[derive(Debug)]
pub(super) enum Folder {
    /// The user's: it stays.
    Given(PathBuf),
    /// One of its own, which stays only if something is to be looked at.
    Own(tempfile::TempDir),
}

impl Folder {
    /// Makes it, or takes the given one.
    ///
    /// # Errors
    /// Those of the system, and a given folder that is not empty.
    pub(super) fn new(given: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = given else {
            let own = tempfile::Builder::new().prefix("rollcall-drill-").tempdir();
            return Ok(Self::Own(own.context("can't make a temporary folder")?));
        };
        let named = |what: &str| format!("can't {what} {}", path.display());
        fs::create_dir_all(path).with_context(|| named("make the folder"))?;
        let path = fs::canonicalize(path).with_context(|| named("find the folder"))?;
        if path.to_str().is_none() {
            bail!("{} is not UTF-8; name another folder", path.display());
        }
        let mut entries = fs::read_dir(&path).with_context(|| named("read the folder"))?;
        if entries.next().is_some() {
            bail!(
                "{} is not empty: a drill begins with nothing; name another folder",
                path.display()
            );
        }
        Ok(Self::Given(path))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Own(own) => own.path(),
        }
    }

    /// All is well: nothing is to be looked at.
    pub(super) fn done(self) {
        if let Self::Own(own) = self {
            // What can't be removed lies in the folder for temporary files.
            drop(own.close());
        }
    }

    /// Something is to be looked at: it stays.
    pub(super) fn keep(self) -> PathBuf {
        match self {
            Self::Given(path) => path,
            Self::Own(own) => own.keep(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_folder_goes_with_success_and_stays_with_failure() {
        let folder = Folder::new(None).unwrap();
        let path = folder.path().to_owned();
        folder.done();
        assert!(!path.exists());
        let kept = Folder::new(None).unwrap().keep();
        assert!(kept.is_dir());
        fs::remove_dir(kept).unwrap();
    }

    #[test]
    fn a_given_folder_must_be_empty_and_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b");
        let folder = Folder::new(Some(&path)).unwrap();
        fs::write(path.join("state"), "").unwrap();
        folder.done();
        let error = Folder::new(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
    }
}
