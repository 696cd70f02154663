//! What happened in an experiment, as it is told and as it is printed.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::terminal::output::Look;
use crate::terminal::style::Tone;
use crate::terminal::wrap::wrap;

/// Columns of text where the output is no terminal, and at most where it is.
const WIDTH: usize = 96;

/// What became of an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// The failure came, and went with the cure.
    AsExpected,
    /// Something else happened.
    Unexpected,
    /// It can't be done here.
    NotRun,
}

/// An experiment as it went.
#[derive(Debug, Serialize)]
pub(super) struct Tale {
    name: &'static str,
    title: &'static str,
    /// What became of it.
    pub(super) verdict: Verdict,
    steps: Vec<Step>,
    /// What was counted, for scripts. The names stay.
    facts: BTreeMap<&'static str, Value>,
}

/// Something that was done, and what the kernel said to it.
#[derive(Debug, Serialize)]
struct Step {
    kind: Kind,
    text: String,
    answers: Vec<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Action,
    Cure,
    Note,
}

#[derive(Debug, Serialize)]
struct Answer {
    text: String,
    /// What should have come instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<String>,
}

impl Tale {
    /// Nothing has happened yet.
    pub(super) fn new(name: &'static str, title: &'static str) -> Self {
        Self {
            name,
            title,
            verdict: Verdict::AsExpected,
            steps: Vec::new(),
            facts: BTreeMap::new(),
        }
    }

    /// Something is done.
    pub(super) fn action(&mut self, text: impl Into<String>) {
        self.begin(Kind::Action, text.into());
    }

    /// What mends it; the actions that follow show that it does.
    pub(super) fn cure(&mut self, text: impl Into<String>) {
        self.begin(Kind::Cure, text.into());
    }

    /// Something worth knowing, above all what depends on this kernel.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.begin(Kind::Note, text.into());
    }

    /// What came of the last step, whatever it was.
    pub(super) fn answer(&mut self, text: impl Into<String>) {
        self.add(text.into(), None);
    }

    /// What came of the last step, which should have been `wanted`.
    pub(super) fn expect(&mut self, held: bool, text: impl Into<String>, wanted: &str) {
        if !held {
            self.verdict = Verdict::Unexpected;
        }
        self.add(text.into(), (!held).then(|| wanted.to_owned()));
    }

    /// It can't be done here.
    pub(super) fn not_run(&mut self, why: impl Into<String>) {
        self.verdict = Verdict::NotRun;
        self.note(why);
    }

    /// The kernel would not do what no experiment is about.
    pub(super) fn broke(&mut self, error: &anyhow::Error) {
        self.verdict = Verdict::Unexpected;
        self.add(
            format!("{error:#}"),
            Some("the experiment to go on".to_owned()),
        );
    }

    /// Something that was counted.
    pub(super) fn fact(&mut self, name: &'static str, value: impl Into<Value>) {
        self.facts.insert(name, value.into());
    }

    fn begin(&mut self, kind: Kind, text: String) {
        self.steps.push(Step {
            kind,
            text,
            answers: Vec::new(),
        });
    }

    fn add(&mut self, text: String, expected: Option<String>) {
        if self.steps.is_empty() {
            self.action("The experiment is set up.");
        }
        if let Some(step) = self.steps.last_mut() {
            step.answers.push(Answer { text, expected });
        }
    }

    /// For people.
    pub(super) fn lines(&self, look: Look) -> Vec<String> {
        let width = look.width.map_or(WIDTH, |width| width.min(WIDTH));
        let title = format!("{}: {}", self.name, self.title);
        let mut lines = wrap(&title, width, "", "  ");
        for line in &mut lines {
            *line = look.paint(&line, Tone::Strong);
        }
        let mut number = 0;
        for step in &self.steps {
            let (label, tone) = match step.kind {
                Kind::Action => {
                    number += 1;
                    (format!("{number}."), Tone::Plain)
                }
                Kind::Cure => ("CURE".to_owned(), Tone::Good),
                Kind::Note => ("note".to_owned(), Tone::Faint),
            };
            let text = wrap(&step.text, width, &format!("  {label:<5}"), "       ");
            lines.extend(text.into_iter().map(|line| look.paint(line, tone)));
            for answer in &step.answers {
                lines.extend(answer.lines(width, look));
            }
        }
        let (text, tone) = match self.verdict {
            Verdict::AsExpected => ("  as expected: reproduced, and cured", Tone::Good),
            Verdict::Unexpected => ("  NOT AS EXPECTED: see the lines with !!", Tone::Bad),
            Verdict::NotRun => ("  NOT RUN here", Tone::Odd),
        };
        lines.push(look.paint(text, tone));
        lines
    }
}

impl Answer {
    fn lines(&self, width: usize, look: Look) -> Vec<String> {
        let mut lines = wrap(&self.text, width, "       -> ", "          ");
        if let Some(expected) = &self.expected {
            let text = wrap(
                &format!("expected: {expected}"),
                width,
                "       !! ",
                "          ",
            );
            lines.extend(text.into_iter().map(|line| look.paint(line, Tone::Bad)));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look = Look {
        colored: false,
        width: None,
    };

    #[test]
    fn what_was_expected_is_told_only_when_it_did_not_come() {
        let mut tale = Tale::new("a", "b");
        tale.action("Something is done.");
        tale.expect(true, "it works", "that it works");
        assert_eq!(tale.verdict, Verdict::AsExpected);
        tale.cure("Do it well.");
        tale.expect(false, "it fails", "that it works");
        tale.fact("count", 3);
        assert_eq!(
            tale.lines(LOOK),
            [
                "a: b",
                "  1.   Something is done.",
                "       -> it works",
                "  CURE Do it well.",
                "       -> it fails",
                "       !! expected: that it works",
                "  NOT AS EXPECTED: see the lines with !!",
            ]
        );
        let json = serde_json::to_value(&tale).unwrap();
        assert_eq!(json["verdict"], "unexpected");
        assert_eq!(json["facts"]["count"], 3);
        assert_eq!(json["steps"][1]["answers"][0]["expected"], "that it works");
    }

    #[test]
    fn what_breaks_before_the_first_step_is_told_too() {
        let mut tale = Tale::new("a", "b");
        tale.broke(&anyhow::anyhow!("no socket"));
        assert_eq!(tale.verdict, Verdict::Unexpected);
        assert!(
            tale.lines(LOOK)
                .iter()
                .any(|line| line.contains("no socket"))
        );
    }
}
