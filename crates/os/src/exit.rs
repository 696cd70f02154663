//! Documented exit codes, and the way a daemon says why it ended.

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;

/// How a daemon ended. The numbers follow sysexits.h(3) where it has one, so that systemd and
/// scripts can tell "restart me" from "a person must change something first".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Ended as asked.
    Ok = 0,
    /// Anything without a code of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A socket could not be bound: the port is held or the address is not this host's.
    Bind = 69,
    /// A bug: one of the daemon's core tasks panicked.
    Internal = 70,
    /// The store or the spool cannot be read or written.
    Store = 74,
    /// The configuration has faults.
    Config = 78,
}

impl Exit {
    /// The number that the parent process sees.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The code's name in messages and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failure => "failure",
            Self::Usage => "usage",
            Self::Bind => "bind",
            Self::Internal => "internal",
            Self::Store => "store",
            Self::Config => "config",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error that knows its exit code. It shows its source's message and causes as its own.
#[derive(Debug)]
pub struct ExitError {
    /// The code to end with.
    pub exit: Exit,
    /// What happened.
    pub source: anyhow::Error,
}

impl ExitError {
    /// Gives `source` an exit code.
    pub fn new(exit: Exit, source: impl Into<anyhow::Error>) -> Self {
        Self {
            exit,
            source: source.into(),
        }
    }
}

impl fmt::Display for ExitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for ExitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// `result.exit_with(Exit::Store)?`: gives an error its exit code on the way up.
pub trait ExitWith<T> {
    /// Turns any error into an [`ExitError`] with this code.
    ///
    /// # Errors
    /// The error of `self`, with the code.
    fn exit_with(self, exit: Exit) -> Result<T, ExitError>;
}

impl<T, E: Into<anyhow::Error>> ExitWith<T> for Result<T, E> {
    fn exit_with(self, exit: Exit) -> Result<T, ExitError> {
        self.map_err(|error| ExitError::new(exit, error))
    }
}

/// The end of every `main`: prints the causes of an error, outermost first, and its exit code to
/// stderr. Errors without a code of their own end with [`Exit::Failure`].
pub fn finish(name: &str, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return Exit::Ok.into();
    };
    // A closed stderr is no reason to panic on the way out.
    drop(report(name, &error, &mut std::io::stderr().lock()));
    exit_of(&error).into()
}

fn exit_of(error: &anyhow::Error) -> Exit {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ExitError>())
        .map_or(Exit::Failure, |error| error.exit)
}

fn report(name: &str, error: &anyhow::Error, out: &mut impl Write) -> std::io::Result<()> {
    let exit = exit_of(error);
    writeln!(out, "{name}: {error}")?;
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Many messages have their cause in them, where it reads best.
        if !said.contains(&cause) {
            writeln!(out, "  caused by: {cause}")?;
        }
        said = cause;
    }
    writeln!(out, "{name}: exit code {} ({})", exit.code(), exit.name())
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::{Context, anyhow};

    use super::{Exit, ExitWith, exit_of, report};

    fn printed(error: &anyhow::Error) -> String {
        let mut out = Vec::new();
        report("rollcall-test", error, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_cause_is_printed_once_with_the_code() {
        let error = Err::<(), _>(io::Error::other("no space"))
            .context("cannot commit group 7")
            .exit_with(Exit::Store)
            .context("the store failed")
            .unwrap_err();
        assert_eq!(exit_of(&error), Exit::Store);
        assert_eq!(
            printed(&error),
            "rollcall-test: the store failed\n  caused by: cannot commit group 7\n  caused by: no space\n\
             rollcall-test: exit code 74 (store)\n"
        );
    }

    #[test]
    fn an_error_without_a_code_is_a_failure() {
        let error = anyhow!("something");
        assert_eq!(
            printed(&error),
            "rollcall-test: something\nrollcall-test: exit code 1 (failure)\n"
        );
    }

    #[test]
    fn the_outermost_code_wins() {
        let error = Err::<(), _>(anyhow!("inner"))
            .exit_with(Exit::Bind)
            .context("between")
            .exit_with(Exit::Internal)
            .unwrap_err();
        assert_eq!(exit_of(&error.into()), Exit::Internal);
    }

    #[test]
    fn the_codes_are_the_documented_ones() {
        let codes = [
            Exit::Ok,
            Exit::Failure,
            Exit::Usage,
            Exit::Bind,
            Exit::Internal,
            Exit::Store,
            Exit::Config,
        ]
        .map(|exit| (exit.code(), exit.name()));
        assert_eq!(
            codes,
            [
                (0, "ok"),
                (1, "failure"),
                (2, "usage"),
                (69, "bind"),
                (70, "internal"),
                (74, "store"),
                (78, "config")
            ]
        );
    }
}
