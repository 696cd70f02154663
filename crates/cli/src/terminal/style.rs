//! Colour: when, and which.

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::IsTerminal;

use clap::ValueEnum;
use crossterm::style::{Attribute, Color, Colored, ContentStyle};

/// When to colour, as given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always, also into a pipe.
    Always,
    /// Never.
    Never,
}

/// What a piece of text means, from which its colour follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Nothing special.
    Plain,
    /// All is well.
    Good,
    /// Worth a look.
    Warning,
    /// Trouble.
    Bad,
    /// Not known.
    Odd,
    /// Less important than the rest.
    Faint,
    /// A heading.
    Strong,
}

impl Tone {
    /// The colour of the text, if it has one of its own.
    pub(crate) fn color(self) -> Option<Color> {
        match self {
            Self::Good => Some(Color::Green),
            Self::Warning => Some(Color::Yellow),
            Self::Bad => Some(Color::Red),
            Self::Odd => Some(Color::Magenta),
            Self::Plain | Self::Faint | Self::Strong => None,
        }
    }

    /// The weight of the text, if it differs from the usual one.
    pub(crate) fn attribute(self) -> Option<Attribute> {
        match self {
            Self::Bad | Self::Strong => Some(Attribute::Bold),
            Self::Faint => Some(Attribute::Dim),
            Self::Plain | Self::Good | Self::Warning | Self::Odd => None,
        }
    }
}

/// Whether standard output is coloured under `choice`, on this terminal and in this environment.
pub(crate) fn resolve(choice: ColorChoice) -> bool {
    decide(choice, std::io::stdout().is_terminal(), |name| {
        env::var_os(name)
    })
}

fn decide(
    choice: ColorChoice,
    is_terminal: bool,
    variable: impl Fn(&str) -> Option<OsString>,
) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => {
            is_terminal
                && variable("NO_COLOR").is_none_or(|value| value.is_empty())
                && variable("TERM").is_none_or(|term| term != "dumb")
        }
    }
}

/// Makes crossterm, which reads NO_COLOR on its own, follow what [`resolve`] has said.
pub(crate) fn apply(colored: bool) {
    Colored::set_ansi_color_disabled(!colored);
}

/// `text` in `tone`, or bare when not `colored`.
pub(crate) fn paint(text: impl Display, tone: Tone, colored: bool) -> String {
    if !colored || tone == Tone::Plain {
        return text.to_string();
    }
    let mut style = ContentStyle::new();
    style.foreground_color = tone.color();
    if let Some(attribute) = tone.attribute() {
        style.attributes.set(attribute);
    }
    style.apply(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::{ColorChoice, Tone, decide, paint};

    #[test]
    fn only_a_terminal_is_colored_and_the_environment_may_object() {
        let auto = |is_terminal, variables: &[(&str, &str)]| {
            decide(ColorChoice::Auto, is_terminal, |asked_for| {
                let found = variables.iter().find(|(name, _)| *name == asked_for);
                found.map(|(_, value)| value.into())
            })
        };
        assert!(auto(true, &[("TERM", "xterm"), ("NO_COLOR", "")]));
        assert!(!auto(false, &[("TERM", "xterm")]));
        assert!(!auto(true, &[("TERM", "xterm"), ("NO_COLOR", "1")]));
        assert!(!auto(true, &[("TERM", "dumb")]));
        assert!(decide(ColorChoice::Always, false, |_| Some("1".into())));
        assert!(!decide(ColorChoice::Never, true, |_| None));
    }

    #[test]
    fn bare_when_not_colored() {
        assert_eq!(paint("down", Tone::Bad, false), "down");
        assert_eq!(paint("as is", Tone::Plain, true), "as is");
    }

    #[test]
    fn colored_text_is_reset_at_its_end() {
        super::apply(true);
        let text = paint("down", Tone::Bad, true);
        assert!(text.starts_with("\u{1b}["), "{text:?}");
        assert!(text.contains("down\u{1b}["), "{text:?}");
    }
}
