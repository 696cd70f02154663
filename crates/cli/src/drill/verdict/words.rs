//! The verdict in words.

use super::{Blackouts, Restarts, Verdict};
use crate::terminal::escape::escape;
use crate::terminal::output::Look;
use crate::terminal::style::Tone;
use crate::terminal::time;

/// Faults that are shown to people at most.
const LINES_MAX: usize = 10;

/// A figure of the verdict.
type Figure = (u64, &'static str, &'static str, Option<u64>);

impl Verdict {
    /// For people.
    pub(in crate::drill) fn lines(&self, look: Look) -> Vec<String> {
        let mut lines: Vec<_> = self
            .figures()
            .iter()
            .map(|(count, name, about, wanted)| {
                let tone = match wanted {
                    Some(wanted) if wanted == count => Tone::Good,
                    Some(_) => Tone::Bad,
                    None => Tone::Plain,
                };
                let figure = look.paint(format!("{:>9}", grouped(*count)), tone);
                format!("  {name:<14}{figure}   {about}")
            })
            .collect();
        lines.extend(self.restart_lines());
        for fault in self.faults.iter().take(LINES_MAX) {
            lines.push(look.paint(format!("  fault  {}", escape_lines(fault)), Tone::Bad));
        }
        lines.push(self.conclusion(look));
        lines
    }

    /// Each with what it is called, what it is, and what it must be, if it must be anything.
    fn figures(&self) -> [Figure; 16] {
        const NONE: Option<u64> = Some(0);
        let all = Some(self.sent);
        let alarms = self.false_alarms.late + self.false_alarms.missing;
        [
            (
                self.sent,
                "sent",
                "reports seen in a slave's spool or on the wire, each once",
                None,
            ),
            (
                self.acked,
                "acked",
                "of them, by acks seen on the wire",
                all,
            ),
            (
                self.stored,
                "stored",
                "of them, in the master's database",
                all,
            ),
            (self.lost, "lost", "sent, and not stored", NONE),
            (self.doubled, "doubled", "applied more than once", NONE),
            (
                self.reordered,
                "reordered",
                "applied after a later one of the same slave",
                NONE,
            ),
            (
                self.altered,
                "altered",
                "stored with another content than sent",
                NONE,
            ),
            (
                self.acked_unstored,
                "acked early",
                "acked, and not on disk when the master was down",
                NONE,
            ),
            (
                self.unspooled,
                "unspooled",
                "neither acked nor in the spool when the slave was down",
                NONE,
            ),
            (
                self.baseless_acks,
                "baseless acks",
                "of what was never sent",
                NONE,
            ),
            (
                self.rows_wrong,
                "wrong rows",
                "slaves whose row on the roll counts something else",
                NONE,
            ),
            (
                self.changes.made,
                "changes",
                "of a check's state in the stored reports",
                None,
            ),
            (self.changes.missing, "  untold", "not in the history", NONE),
            (self.changes.doubled, "  told twice", "in the history", NONE),
            (
                alarms,
                "false alarms",
                "slaves called late or missing",
                NONE,
            ),
            (
                self.resent,
                "resent",
                "sent again, and rightly not applied again",
                None,
            ),
        ]
    }

    fn restart_lines(&self) -> Vec<String> {
        let restarts = |name: &str, restarts: Restarts| {
            format!(
                "  {name:<14}killed {} (SIGKILL), restarted as planned {} (SIGTERM)",
                times(restarts.killed),
                times(restarts.planned)
            )
        };
        let blackout = |name: &str, blackouts: Blackouts| match (blackouts.p50, blackouts.max) {
            (Some(p50), Some(max)) => format!(
                "  {name:<14}p50 {p50} ms, max {max} ms of {}, from the master's end to each slave's next ack",
                blackouts.count
            ),
            _ => format!("  {name:<14}none was measured"),
        };
        vec![
            restarts("master", self.restarts.master),
            restarts("slaves", self.restarts.slaves),
            blackout("blackout", self.blackout_ms.killed),
            blackout("  planned", self.blackout_ms.planned),
        ]
    }

    fn conclusion(&self, look: Look) -> String {
        let took = time::length(self.load_ms);
        if self.passed {
            let text = format!("PASSED: nothing was lost, doubled or reordered in {took}");
            return look.paint(text, Tone::Good);
        }
        let why = if self.sent == 0 {
            "no report was seen"
        } else if !self.settled {
            "not every report was delivered in the end"
        } else {
            "not everything is as promised"
        };
        look.paint(format!("FAILED: {why} (seed {})", self.seed), Tone::Bad)
    }
}

/// "once", "2 times".
fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    }
}

/// With a comma after each three digits.
pub(in crate::drill) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The end of a log may be in it: its lines stay lines.
fn escape_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| escape(line).into_owned()).collect();
    lines.join("\n         ")
}
