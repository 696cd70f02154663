//! Standard output: its width, whether it is coloured, and the reader that has gone.

use std::io::{self, IsTerminal, Stdout, Write};

use crate::terminal::style::{self, ColorChoice, Tone};

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("can't write to standard output")]
pub(crate) struct OutputError(#[from] io::Error);

impl OutputError {
    /// Whether the reader has closed its end of the pipe (`rollcall ls | head`): no fault.
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Tells the person at standard error, whatever standard output is used for. `text` must be safe
/// for a terminal.
pub(crate) fn complain(text: &str) {
    // Unlike eprintln, this does not panic when the terminal has been closed.
    drop(writeln!(io::stderr(), "rollcall: {text}"));
}

/// How text is to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// Whether to colour.
    pub(crate) colored: bool,
    /// Columns that a line may take; none when the output is not a terminal.
    pub(crate) width: Option<usize>,
}

impl Look {
    /// `text` in `tone`, if coloured.
    pub(crate) fn paint(self, text: impl std::fmt::Display, tone: Tone) -> String {
        style::paint(text, tone, self.colored)
    }
}

/// Standard output.
#[derive(Debug)]
pub(crate) struct Output {
    stdout: Stdout,
    is_terminal: bool,
    colored: bool,
}

impl Output {
    /// Standard output, coloured as `choice` says.
    pub(crate) fn new(choice: ColorChoice) -> Self {
        let colored = style::resolve(choice);
        style::apply(colored);
        Self {
            stdout: io::stdout(),
            is_terminal: io::stdout().is_terminal(),
            colored,
        }
    }

    /// Whether a person sees it.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// How text is to look at this moment: a terminal may have been resized.
    pub(crate) fn look(&self) -> Look {
        Look {
            colored: self.colored,
            width: self.size().map(|(columns, _)| columns),
        }
    }

    /// Columns and rows of the terminal; none if it is not one or does not tell.
    pub(crate) fn size(&self) -> Option<(usize, usize)> {
        if !self.is_terminal {
            return None;
        }
        let (columns, rows) = crossterm::terminal::size().ok()?;
        (columns > 0 && rows > 0).then(|| (columns.into(), rows.into()))
    }

    /// Writes `text` and a line end, and hands it on at once.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), OutputError> {
        self.write(&format!("{text}\n"))
    }

    /// Writes `text` as it is, and hands it on at once.
    pub(crate) fn write(&mut self, text: &str) -> Result<(), OutputError> {
        let mut stdout = self.stdout.lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(())
    }
}
