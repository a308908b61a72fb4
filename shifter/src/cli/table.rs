//! Aligned columns.

use std::io;

use super::screen::{Screen, Style};

/// A cell: text and how it stands out.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            style: Style::Plain,
        }
    }
}

impl Cell {
    /// The text as the screen shows it.
    pub fn painted(&self, screen: &Screen<'_>) -> String {
        screen.paint(self.style, &self.text)
    }
}

/// A cell that stands out.
pub(super) fn styled(style: Style, text: impl Into<String>) -> Cell {
    Cell {
        text: text.into(),
        style,
    }
}

/// A pool's name in its colour.
pub(super) fn pool(pool: crate::proto::Pool) -> Cell {
    let style = match pool {
        crate::proto::Pool::Blue => Style::Blue,
        crate::proto::Pool::Green => Style::Green,
        crate::proto::Pool::Unspecified => Style::Plain,
    };
    styled(style, pool.word())
}

/// Columns two spaces apart. A heading that begins with `>` aligns its column
/// to the right.
pub(super) struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub fn new(headings: &[&str]) -> Self {
        let heads = headings
            .iter()
            .map(|heading| styled(Style::Bold, heading.trim_start_matches('>')));
        Self {
            right: headings.iter().map(|h| h.starts_with('>')).collect(),
            rows: vec![heads.collect()],
        }
    }

    pub fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        self.rows.push(cells.into());
    }

    /// Lines, coloured where the screen can show it.
    pub fn lines(&self, screen: &Screen<'_>) -> Vec<String> {
        let widths: Vec<usize> = (0..self.right.len())
            .map(|column| {
                let width = |row: &Vec<Cell>| row.get(column).map_or(0, width);
                self.rows.iter().map(width).max().unwrap_or(0)
            })
            .collect();
        let line = |row: &Vec<Cell>| {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[column] - width(cell));
                let text = cell.painted(screen);
                let last = column + 1 == row.len();
                match (self.right[column], last) {
                    (true, _) => line.push_str(&(pad + &text)),
                    (false, true) => line.push_str(&text),
                    (false, false) => line.push_str(&(text + &pad)),
                }
                if !last {
                    line.push_str("  ");
                }
            }
            line
        };
        self.rows.iter().map(line).collect()
    }

    pub fn print(&self, screen: &mut Screen<'_>) -> io::Result<()> {
        for line in self.lines(screen) {
            screen.line(&line)?;
        }
        Ok(())
    }
}

fn width(cell: &Cell) -> usize {
    cell.text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(terminal: bool, no_color: bool) -> Vec<String> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut screen = Screen::new((&mut out, terminal), (&mut err, terminal));
        screen.forbid_colour(no_color);
        let mut table = Table::new(&["NAME", ">FLOWS", "WHY"]);
        table.row(["web".into(), "1,000".into(), "a – b".into()]);
        table.row(["longer".into(), styled(Style::Loud, "1"), "".into()]);
        table.lines(&screen)
    }

    const PLAIN: [&str; 3] = [
        "NAME    FLOWS  WHY",
        "web     1,000  a – b",
        "longer      1  ",
    ];

    #[test]
    fn columns_are_aligned_and_lines_do_not_end_in_padding() {
        assert_eq!(lines(false, false), PLAIN);
    }

    #[test]
    fn colours_appear_on_a_terminal_only_and_move_no_column() {
        assert_eq!(lines(true, true), PLAIN);
        let coloured = lines(true, false);
        if std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) {
            assert_eq!(coloured[2], "longer      \x1b[33m1\x1b[0m  ");
        } else {
            assert_eq!(coloured, PLAIN);
        }
    }
}
