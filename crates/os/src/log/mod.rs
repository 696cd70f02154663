//! Logging: one line an event, as JSON for machines or plain text for a terminal, on stdout; or an entry
//! with fields in the journal of systemd.
//!
//! The shape of a line is a contract (docs/logging.md). What came from outside is escaped, so that
//! nobody can forge a line or a field, or send control sequences to a terminal.

mod format;
mod journal;

use std::fmt;
use std::io;
use std::io::IsTerminal;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Registry, reload};

pub(crate) use format::is_dangerous;
use format::{Json, Lines, Pretty};
use journal::Journal;

/// Begins the targets of all our crates.
const OUR_TARGETS: &str = "rollcall";

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people: time, level, message, fields; coloured on a terminal.
    Pretty,
    /// Entries of the journal, not on stdout.
    Journal,
}

/// The `[log]` table of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    format: FormatChoice,
    /// The least urgent level that is still written.
    pub level: Level,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FormatChoice {
    Auto,
    Json,
    Pretty,
    Journal,
}

impl LogConfig {
    /// The format; `None`: the one that suits where the log goes.
    pub const fn format(&self) -> Option<LogFormat> {
        match self.format {
            FormatChoice::Auto => None,
            FormatChoice::Json => Some(LogFormat::Json),
            FormatChoice::Pretty => Some(LogFormat::Pretty),
            FormatChoice::Journal => Some(LogFormat::Journal),
        }
    }
}

/// The least urgent level that is still written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The daemon cannot do its work.
    Error,
    /// Somebody should look at it soon.
    Warn,
    /// What an operator wants to read afterwards.
    Info,
    /// What a developer wants to know of one run.
    Debug,
    /// Everything, also of the libraries.
    Trace,
}

/// Text that names no level or format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not one of {choices}")]
pub struct ParseError {
    text: String,
    choices: &'static str,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `init` ran twice in one process.
    #[error("the log has been set up before")]
    AlreadySet(#[from] tracing::subscriber::SetGlobalDefaultError),
    /// The journal was asked for, and there is none.
    #[error(
        "can't log to the journal at {socket}: {0}; [log] format = \"auto\" takes what there is",
        socket = journal::SOCKET
    )]
    NoJournal(io::Error),
}

impl LogFormat {
    /// The name in configuration files and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Pretty => "pretty",
            Self::Journal => "journal",
        }
    }
}

impl FromStr for LogFormat {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Json, Self::Pretty, Self::Journal]
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| ParseError {
                text: text.to_owned(),
                choices: "json, pretty, journal",
            })
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Level {
    /// The name in configuration files and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }

    const fn filter(self) -> LevelFilter {
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }

    /// Our crates at this level; libraries warn at most, unless everything is asked for.
    fn targets(self) -> Targets {
        let libraries = match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warn | Self::Info | Self::Debug => LevelFilter::WARN,
            Self::Trace => LevelFilter::TRACE,
        };
        Targets::new()
            .with_default(libraries)
            .with_target(OUR_TARGETS, self.filter())
    }
}

impl FromStr for Level {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [
            Self::Error,
            Self::Warn,
            Self::Info,
            Self::Debug,
            Self::Trace,
        ]
        .into_iter()
        .find(|level| level.as_str() == text)
        .ok_or_else(|| ParseError {
            text: text.to_owned(),
            choices: "error, warn, info, debug, trace",
        })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Changes the level of a running daemon. Clones share one state.
#[derive(Clone, Debug)]
pub struct LogHandle {
    filter: reload::Handle<Targets, Registry>,
    level: Arc<Mutex<Levels>>,
}

#[derive(Clone, Copy, Debug)]
struct Levels {
    configured: Level,
    current: Level,
}

impl LogHandle {
    /// Sets the configured level, and ends a raise by [`Self::toggle_debug`] if that changes it.
    pub fn set_level(&self, level: Level) {
        self.change(|levels| {
            if levels.configured != level {
                *levels = Levels {
                    configured: level,
                    current: level,
                };
            }
        });
    }

    /// From the configured level up to debug (up to trace where debug is configured), or back
    /// again. Returns the level that holds from now on.
    pub fn toggle_debug(&self) -> Level {
        self.change(|levels| {
            levels.current = if levels.current != levels.configured {
                levels.configured
            } else if levels.configured < Level::Debug {
                Level::Debug
            } else {
                Level::Trace
            };
        })
    }

    /// The level that holds now.
    pub fn level(&self) -> Level {
        self.change(|_| ())
    }

    fn change(&self, change: impl FnOnce(&mut Levels)) -> Level {
        let mut levels = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let before = levels.current;
        change(&mut levels);
        if levels.current != before {
            // Fails only where the subscriber is gone, and with it everything to filter.
            drop(self.filter.reload(levels.current.targets()));
        }
        levels.current
    }
}

/// Sets up the process's log. Without a format it is pretty on a terminal, goes to the journal where
/// systemd has put that behind stdout, and is JSON on stdout elsewhere.
///
/// # Errors
/// When the log has been set up before, or the journal is asked for and can't be had.
pub fn init(format: Option<LogFormat>, level: Level) -> Result<LogHandle, LogError> {
    let is_terminal = io::stdout().is_terminal();
    let connect = || Journal::connect(Path::new(journal::SOCKET));
    let journal = match format {
        Some(LogFormat::Journal) => Some(connect().map_err(LogError::NoJournal)?),
        None if journal::is_behind(io::stdout()) => connect().ok(),
        Some(LogFormat::Json | LogFormat::Pretty) | None => None,
    };
    if let Some(journal) = journal {
        let (filter, handle) = filter(level);
        let registry = tracing_subscriber::registry().with(filter).with(journal);
        tracing::subscriber::set_global_default(registry)?;
        return Ok(handle);
    }
    let is_pretty = format.map_or(is_terminal, |format| format == LogFormat::Pretty);
    // https://no-color.org
    let colour = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let colour = is_pretty.then_some(colour);
    let (subscriber, handle) = subscriber(colour, level, io::stdout);
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(handle)
}

/// From now on a panic is a line in the log like any other failure.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let text = panic.payload_as_str().unwrap_or("no text");
        tracing::error!(
            event = "panic",
            error = text,
            place,
            "a task panicked: this is a bug"
        );
    }));
}

/// The level's filter, and what changes it.
fn filter(level: Level) -> (reload::Layer<Targets, Registry>, LogHandle) {
    let (filter, reload) = reload::Layer::new(level.targets());
    let handle = LogHandle {
        filter: reload,
        level: Arc::new(Mutex::new(Levels {
            configured: level,
            current: level,
        })),
    };
    (filter, handle)
}

/// Pretty lines, with colours or without, or else JSON.
fn subscriber<W>(
    pretty: Option<bool>,
    level: Level,
    writer: W,
) -> (Box<dyn Subscriber + Send + Sync>, LogHandle)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = filter(level);
    // A full disk or a closed pipe behind stdout must not end the daemon: the layer would report
    // it with eprintln, which panics where stderr is gone too.
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(false)
        .log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = match pretty {
        None => Lines::Json(Json),
        Some(colour) => Lines::Pretty(Pretty { colour }),
    };
    let subscriber = Box::new(registry.with(layer.event_format(lines)));
    (subscriber, handle)
}

#[cfg(test)]
mod tests;
