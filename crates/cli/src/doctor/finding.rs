//! What the doctor finds.

use serde::Serialize;

use crate::terminal::style::Tone;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing fails by it alone.
    Notice,
    /// It fails under load, or somebody believes what is not so.
    Warning,
    /// It fails now, or is about to.
    Critical,
}

impl Severity {
    /// As in JSON.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// Its colour.
    pub(super) fn tone(self) -> Tone {
        match self {
            Self::Ok => Tone::Good,
            Self::Notice => Tone::Odd,
            Self::Warning => Tone::Warning,
            Self::Critical => Tone::Bad,
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// A stable name.
    pub(super) id: &'static str,
    pub(super) severity: Severity,
    /// What is so, with its figures.
    pub(super) what: String,
    /// What it means, in a sentence.
    pub(super) means: String,
    /// The command that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mend: Option<String>,
}

impl Finding {
    /// A finding that takes no command.
    pub(super) fn new(
        id: &'static str,
        severity: Severity,
        what: impl Into<String>,
        means: impl Into<String>,
    ) -> Self {
        Self {
            id,
            severity,
            what: what.into(),
            means: means.into(),
            mend: None,
        }
    }

    /// The same with the command that mends it, if it needs mending.
    pub(super) fn mend(self, command: impl Into<String>) -> Self {
        self.mend_if(Some(command.into()))
    }

    /// The same if there is such a command.
    pub(super) fn mend_if(mut self, command: Option<String>) -> Self {
        self.mend = command.filter(|_| self.severity > Severity::Ok);
        self
    }
}

/// `sysctl -w name=value`
pub(super) fn set(name: &str, value: impl std::fmt::Display) -> String {
    format!("sysctl -w {name}={value}")
}

/// Puts the worst first; the others stay as they are.
pub(super) fn sort(findings: &mut [Finding]) {
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
}

/// The worst of them.
pub(super) fn worst(findings: &[Finding]) -> Severity {
    let all = findings.iter().map(|finding| finding.severity);
    all.max().unwrap_or(Severity::Ok)
}

/// "1 connection", "2 connections"
pub(super) fn counted(count: u64, one: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_needs_it_is_mended() {
        let finding = |severity| Finding::new("a", severity, "b", "c").mend("d").mend;
        assert_eq!(finding(Severity::Ok), None);
        assert_eq!(finding(Severity::Notice).as_deref(), Some("d"));
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!(counted(1, "file"), "1 file");
        assert_eq!(counted(0, "file"), "0 files");
    }
}
