//! The limit of open files: each simulated slave may hold a socket.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that the process needs besides those of the slaves.
const RESERVE: u64 = 64;

/// The limit is too low.
#[derive(Debug, thiserror::Error)]
#[error(
    "{slaves} slaves need {needed} open files, and the hard limit is {hard}; take fewer slaves, or \
     raise it (`ulimit -Hn {needed}` as root, or LimitNOFILE= in a unit)"
)]
pub(crate) struct TooFew {
    slaves: u64,
    needed: u64,
    hard: u64,
}

/// Raises the soft limit to the hard one and checks that `slaves` fit.
///
/// # Errors
/// [`TooFew`]
pub(crate) fn provide_for(slaves: u32) -> Result<(), TooFew> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // What can't be raised shows in the check below.
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        let _ = setrlimit(Resource::Nofile, raised);
    }
    check(slaves, getrlimit(Resource::Nofile).current)
}

fn check(slaves: u32, limit: Option<u64>) -> Result<(), TooFew> {
    let slaves = u64::from(slaves);
    let needed = slaves + RESERVE;
    match limit {
        Some(hard) if hard < needed => Err(TooFew {
            slaves,
            needed,
            hard,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_must_hold_all_slaves_and_some_more() {
        assert!(check(1000, Some(1064)).is_ok());
        assert!(check(1000, None).is_ok());
        let error = check(1000, Some(1063)).unwrap_err().to_string();
        assert!(
            error.contains("need 1064 open files, and the hard limit is 1063"),
            "{error}"
        );
    }
}
