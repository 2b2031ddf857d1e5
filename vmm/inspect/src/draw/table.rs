//! Columns.

use super::text::STRONG;

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Rows under a heading, each column as wide as its widest cell.
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells that are missing are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines, each indented by `indent`.
    pub fn draw(&self, indent: usize) -> String {
        // 1. Columns as wide as their widest cell.
        let heads = self.columns.iter().map(|(head, _)| head.len());
        let mut widths: Vec<usize> = heads.collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        // 2. A line, aligned, without blanks at its end.
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let mut line = String::new();
            for (((_, align), width), cell) in self.columns.iter().zip(&widths).zip(cells) {
                let padding = " ".repeat(width - cell.chars().count());
                let parts = if *align == Align::Left { [cell, &padding] } else { [&padding, cell] };
                if !line.is_empty() {
                    line.push_str("  ");
                }
                line.extend(parts);
            }
            line.trim_end().to_owned()
        };
        // 3. The heads and the rows.
        let mut out = format!(
            "{:indent$}{STRONG}{}{STRONG:#}\n",
            "",
            line(&mut self.columns.iter().map(|(head, _)| *head))
        );
        for row in &self.rows {
            out.push_str(&" ".repeat(indent));
            out.push_str(&line(&mut row.iter().map(String::as_str)));
            out.push('\n');
        }
        out
    }
}
