//! Tables that fit the terminal.

use std::borrow::Cow;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::terminal::output::Look;
use crate::terminal::style::Tone;

/// Blanks between two columns.
const GAP: usize = 2;
/// A text in the last column that would get less than this pushes another column out first.
const TEXT_WIDTH_MIN: usize = 40;

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// Its heading.
    pub(crate) title: &'static str,
    /// When the terminal is too narrow, the column with the highest rank goes first; those of
    /// rank 0 stay.
    pub(crate) rank: u8,
    /// Whether it holds numbers, which stand at its right edge.
    pub(crate) is_number: bool,
}

impl Column {
    /// One that holds text.
    pub(crate) const fn text(title: &'static str, rank: u8) -> Self {
        Self {
            title,
            rank,
            is_number: false,
        }
    }

    /// One that holds numbers.
    pub(crate) const fn number(title: &'static str, rank: u8) -> Self {
        Self {
            title,
            rank,
            is_number: true,
        }
    }
}

/// A field of a table.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    text: String,
    tone: Tone,
}

impl Field {
    /// A field with `text` in `tone`. The text must be safe for a terminal.
    pub(crate) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }

    /// A field with `text` and no colour. The text must be safe for a terminal.
    pub(crate) fn plain(text: impl Into<String>) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// The lines of a table: a heading and one line a row. On a terminal columns are left out, and at
/// last the last column is cut, until it fits.
pub(crate) fn lines(columns: &[Column], rows: &[Vec<Field>], look: Look) -> Vec<String> {
    let mut widths: Vec<usize> = columns.iter().map(|column| column.title.width()).collect();
    for row in rows {
        for (width, field) in widths.iter_mut().zip(row) {
            *width = (*width).max(field.text.width());
        }
    }
    let shown = fitting(columns, &mut widths, look.width);
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    if look.colored {
        table.enforce_styling().style_text_only();
    } else {
        table.force_no_tty();
    }
    let heading = |at: &usize| Field::new(columns[*at].title, Tone::Strong);
    table.add_row(shown.iter().map(|at| cell(&heading(at), widths[*at])));
    for row in rows {
        let fields = shown.iter().filter_map(|at| Some((*at, row.get(*at)?)));
        table.add_row(fields.map(|(at, field)| cell(field, widths[at])));
    }
    for (position, at) in shown.iter().enumerate() {
        if let Some(column) = table.column_mut(position) {
            let is_last = position + 1 == shown.len();
            column.set_padding((0, if is_last { 0 } else { 2 }));
            if columns[*at].is_number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// `text` cut to `width` columns of the terminal, with a mark where it was cut.
pub(crate) fn cut(text: &str, width: usize) -> Cow<'_, str> {
    if text.width() <= width {
        return Cow::Borrowed(text);
    }
    let mut taken = 0;
    let kept = text.char_indices().find_map(|(at, character)| {
        taken += character.width().unwrap_or(0);
        (taken + 1 > width).then_some(at)
    });
    Cow::Owned(match kept {
        Some(at) if width > 0 => format!("{}…", &text[..at]),
        _ => String::new(),
    })
}

/// The columns that fit into `width`; the width of the last one is cut to what is left.
fn fitting(columns: &[Column], widths: &mut [usize], width: Option<usize>) -> Vec<usize> {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let Some(width) = width else {
        return shown;
    };
    loop {
        let Some((last, others)) = shown.split_last() else {
            return shown;
        };
        let before: usize = others.iter().map(|at| widths[*at] + GAP).sum();
        let left = width.saturating_sub(before);
        let is_enough = widths[*last] <= left;
        // The last column may be cut when it is a text that stays.
        let is_cuttable = columns[*last].rank == 0 && left >= TEXT_WIDTH_MIN.min(widths[*last]);
        let expendable = shown
            .iter()
            .copied()
            .filter(|at| columns[*at].rank > 0)
            .max_by_key(|at| columns[*at].rank);
        match expendable {
            Some(worst) if !is_enough && !is_cuttable => shown.retain(|at| *at != worst),
            _ => {
                widths[*last] = widths[*last].min(left.max(1));
                return shown;
            }
        }
    }
}

fn cell(field: &Field, width: usize) -> comfy_table::Cell {
    let mut cell = comfy_table::Cell::new(cut(&field.text, width));
    if let Some(color) = field.tone.color() {
        cell = cell.fg(color);
    }
    if let Some(attribute) = field.tone.attribute() {
        cell = cell.add_attribute(attribute);
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [
        Column::text("NAME", 0),
        Column::number("SEQUENCE", 1),
        Column::text("TEXT", 0),
    ];

    fn table(width: Option<usize>, colored: bool) -> Vec<String> {
        let row = |name: &str, number: &str, text: &str| {
            vec![
                Field::plain(name),
                Field::plain(number),
                Field::new(text, Tone::Bad),
            ]
        };
        let rows = [
            row("a", "7", "all is well"),
            row(
                "web-1",
                "12345",
                "the disk of this host is nearly full: 満杯",
            ),
        ];
        crate::terminal::style::apply(true);
        lines(&COLUMNS, &rows, Look { colored, width })
    }

    #[test]
    fn columns_are_aligned_and_nothing_is_lost_in_a_pipe() {
        assert_eq!(
            table(None, false),
            [
                "NAME   SEQUENCE  TEXT",
                "a             7  all is well",
                "web-1     12345  the disk of this host is nearly full: 満杯",
            ]
        );
        assert_eq!(table(Some(59), false), table(None, false));
    }

    #[test]
    fn a_narrow_terminal_cuts_the_text_then_drops_columns_then_cuts_the_text_again() {
        let third = |width| table(Some(width), false).remove(2);
        assert_eq!(
            third(58),
            "web-1     12345  the disk of this host is nearly full: 満…"
        );
        assert_eq!(
            third(56),
            "web-1  the disk of this host is nearly full: 満杯"
        );
        assert_eq!(third(10), "web-1  th…");
        for width in 8..70 {
            for line in table(Some(width), false) {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn color_does_not_move_columns() {
        let colored = table(None, true);
        assert!(
            colored[1].starts_with("a             7  \u{1b}["),
            "{colored:?}"
        );
        assert!(colored[0].contains("NAME"), "{colored:?}");
    }

    #[test]
    fn text_is_cut_at_its_width_on_the_screen() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("満杯満杯", 6), "満杯…");
        assert_eq!(cut("abc", 1), "…");
        assert_eq!(cut("abc", 0), "");
    }
}
