//! What `rollcall up` shows: on a terminal the roll and the latest events, redrawn in place; in a
//! pipe a line for each event.

use std::collections::VecDeque;

use rollcall_protocol::api::EventRow;

use super::watch::Roll;
use crate::terminal::frame::Frame;
use crate::terminal::output::{Look, Output, OutputError};
use crate::terminal::style::Tone;
use crate::terminal::table;
use crate::{events, ls};

/// Events that stay on the screen.
const EVENTS: usize = 8;

/// What is shown.
#[derive(Debug)]
pub(super) struct Screen {
    is_terminal: bool,
    roll: Option<Roll>,
    latest: VecDeque<EventRow>,
    is_degraded: bool,
    frame: Frame,
}

impl Screen {
    /// An empty screen, or a pipe.
    pub(super) fn new(is_terminal: bool) -> Self {
        Self {
            is_terminal,
            roll: None,
            latest: VecDeque::new(),
            is_degraded: false,
            frame: Frame::default(),
        }
    }

    /// Shows the roll. In a pipe: the first one whole; the events tell how it goes on.
    pub(super) fn roll(&mut self, roll: Roll, out: &mut Output) -> Result<(), OutputError> {
        if self.is_terminal {
            self.roll = Some(roll);
            return self.draw(out);
        }
        if let Some(reason) = &roll.degraded
            && !self.is_degraded
        {
            out.line(&format!("the master is not storing reports: {reason}"))?;
        } else if roll.degraded.is_none() && self.is_degraded {
            out.line("the master is storing reports again")?;
        }
        self.is_degraded = roll.degraded.is_some();
        if self.roll.is_none()
            && let Some(slaves) = &roll.slaves
        {
            for line in ls::lines(slaves, roll.now_ms, out.look()) {
                out.line(&line)?;
            }
            self.roll = Some(roll);
        }
        Ok(())
    }

    /// Shows an event.
    pub(super) fn event(&mut self, event: EventRow, out: &mut Output) -> Result<(), OutputError> {
        if !self.is_terminal {
            return out.line(&events::line(&event, out.look()));
        }
        self.latest.truncate(EVENTS - 1);
        self.latest.push_front(event);
        self.draw(out)
    }

    /// Shows a line that stays.
    pub(super) fn notice(&mut self, text: &str, out: &mut Output) -> Result<(), OutputError> {
        let look = out.look();
        let text = table::cut(text, look.width.unwrap_or(usize::MAX));
        if !self.is_terminal {
            return out.line(&text);
        }
        let erase = self.frame.erase();
        out.write(&format!("{erase}{text}\n"))?;
        self.draw(out)
    }

    fn draw(&mut self, out: &mut Output) -> Result<(), OutputError> {
        let lines = self.lines(out.look());
        self.frame.draw(lines, out)
    }

    fn lines(&self, look: Look) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(roll) = &self.roll {
            match &roll.slaves {
                Some(slaves) => {
                    lines.extend(ls::lines(slaves, roll.now_ms, look));
                    lines.push(look.paint(ls::summary(slaves), Tone::Faint));
                }
                None => lines.push(look.paint("the master does not answer", Tone::Bad)),
            }
            if let Some(reason) = &roll.degraded {
                let text = format!("the master is not storing reports: {reason}");
                let text = table::cut(&text, look.width.unwrap_or(usize::MAX)).into_owned();
                lines.push(look.paint(text, Tone::Bad));
            }
        }
        if !self.latest.is_empty() {
            lines.push(String::new());
            lines.extend(
                self.latest
                    .iter()
                    .rev()
                    .map(|event| events::line(event, look)),
            );
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const LOOK: Look = Look {
        colored: false,
        width: Some(60),
    };

    fn roll() -> Roll {
        Roll {
            slaves: Some(vec![testing::row("web-1")]),
            degraded: Some("disk full".to_owned()),
            now_ms: 61_000,
        }
    }

    #[test]
    fn a_frame_has_the_roll_and_the_latest_events_oldest_first() {
        let mut screen = Screen::new(true);
        screen.roll = Some(roll());
        for id in 0..20 {
            screen.latest.truncate(EVENTS - 1);
            screen
                .latest
                .push_front(testing::event(id, &format!("web-{id}")));
        }
        let lines = screen.lines(LOOK);
        assert_eq!(lines.len(), 2 + 1 + 1 + 1 + EVENTS);
        assert!(lines[1].starts_with("web-1  up"), "{lines:#?}");
        assert_eq!(lines[3], "the master is not storing reports: disk full");
        assert!(lines[5].contains("web-12"), "{lines:#?}");
        assert!(lines[12].contains("web-19"), "{lines:#?}");
    }
}
