//! Where the daemons are: beside this program.

use std::env;
use std::path::{Path, PathBuf};

use super::Role;

/// The daemons of this build, and this program itself.
#[derive(Debug)]
pub(crate) struct Programs {
    master: PathBuf,
    slave: PathBuf,
}

/// They are not all there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramsError {
    /// This program does not know where it is.
    #[error("can't find out where this program is")]
    Nowhere(#[source] std::io::Error),
    /// A daemon is not where it should be.
    #[error(
        "{} is not there: the daemons that lie beside this program are started.\n  In the source tree, build them: cargo build{}",
        path.display(), if *is_release { " --release" } else { "" }
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// Whether this is a release build.
        is_release: bool,
    },
}

impl Programs {
    /// Looks for both.
    pub(crate) fn find() -> Result<Self, ProgramsError> {
        let own = env::current_exe().map_err(ProgramsError::Nowhere)?;
        let folder = own.parent().unwrap_or(Path::new("/"));
        let find = |role: Role| {
            let path = folder.join(role.program());
            if path.is_file() {
                Ok(path)
            } else {
                Err(ProgramsError::Missing {
                    path,
                    is_release: !cfg!(debug_assertions),
                })
            }
        };
        Ok(Self {
            master: find(Role::Master)?,
            slave: find(Role::Slave)?,
        })
    }

    /// The daemon of that role.
    pub(crate) fn path(&self, role: Role) -> &Path {
        match role {
            Role::Master => &self.master,
            Role::Slave => &self.slave,
        }
    }
}
