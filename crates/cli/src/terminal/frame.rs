//! Lines on a terminal that are redrawn in place.

use std::fmt::Write as _;

use crossterm::cursor::MoveToPreviousLine;
use crossterm::terminal::{Clear, ClearType};

use crate::terminal::output::{Output, OutputError};

/// What was drawn last.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    drawn_lines: u16,
}

impl Frame {
    /// Draws `lines` where the last ones were. Those that the screen has no room for are left out.
    pub(crate) fn draw(
        &mut self,
        mut lines: Vec<String>,
        out: &mut Output,
    ) -> Result<(), OutputError> {
        // A line more than the screen has would scroll, and the next redraw would miss the top.
        if let Some((_, rows)) = out.size() {
            lines.truncate(rows.saturating_sub(1));
        }
        let mut text = self.erase();
        for line in &lines {
            // Writing into a String can't fail.
            let _ = writeln!(text, "{line}");
        }
        self.drawn_lines = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        out.write(&text)
    }

    /// What takes the last lines away and leaves the cursor at their beginning.
    pub(crate) fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn_lines) {
            0 => String::new(),
            lines => format!(
                "{}{}",
                MoveToPreviousLine(lines),
                Clear(ClearType::FromCursorDown)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Frame;

    #[test]
    fn a_frame_is_taken_away_once() {
        let mut frame = Frame::default();
        assert_eq!(frame.erase(), "");
        frame.drawn_lines = 3;
        assert_eq!(frame.erase(), "\u{1b}[3F\u{1b}[J");
        assert_eq!(frame.erase(), "");
    }
}
