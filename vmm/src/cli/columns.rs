//! Text that fits the terminal: paragraphs, and rows of two columns.

use std::env;
use std::fmt::Write as _;
use std::io::IsTerminal as _;

use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::tcgetwinsize;
use vmkern::script::{FAINT, STRONG};

/// Columns at most, however wide the terminal is.
pub const MOST: usize = 100;
/// Columns at least. A narrower terminal breaks lines.
const LEAST: usize = 20;
/// Below this width the left one of two columns has lines of its own.
const SIDE_BY_SIDE: usize = 60;
/// Columns in front of a row, and in front of the right column that has lines of its own.
const INDENT: usize = 2;
const DEEP: usize = 6;

/// Columns of the terminal, or of the environment's `COLUMNS` without one, as the parser of the
/// command line finds them for `--help`.
pub fn width() -> usize {
    let sizes = [tcgetwinsize(stdout()), tcgetwinsize(stderr()), tcgetwinsize(stdin())];
    let of_terminal = sizes.into_iter().flatten().map(|size| usize::from(size.ws_col));
    let of_environment = || env::var("COLUMNS").ok()?.parse().ok();
    let known = of_terminal.into_iter().find(|&columns| columns > 0).or_else(of_environment);
    known.unwrap_or(MOST).clamp(LEAST, MOST)
}

/// Columns for a list: as [`width`] says where standard output is a terminal or the environment
/// asks for it. In a pipe each entry of a list is a line.
pub fn list_width() -> usize {
    let is_wanted = std::io::stdout().is_terminal() || env::var_os("COLUMNS").is_some();
    if is_wanted { width() } else { usize::MAX }
}

/// Text that is being laid out.
pub struct Page {
    text: String,
    width: usize,
    /// Columns of the left one of two, the indent included.
    left: usize,
}

impl Page {
    /// An empty page, whose rows have a left column of `left` columns where there is room for two.
    pub fn new(width: usize, left: usize) -> Self {
        let left = if width < SIDE_BY_SIDE { DEEP } else { left.min(width / 2) };
        Self { text: String::new(), width, left }
    }

    /// The text, ready to be printed.
    pub fn finish(self) -> String {
        self.text
    }

    /// Adds a heading, behind an empty line if anything stands above it.
    pub fn heading(&mut self, title: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        let _ = writeln!(self.text, "{gap}{STRONG}{title}{STRONG:#}");
    }

    /// Adds a paragraph whose lines begin with `indent` blanks.
    pub fn paragraph(&mut self, indent: usize, words: &str) {
        self.text.push_str(&" ".repeat(indent));
        self.words(indent, words);
        self.text.push('\n');
    }

    /// Adds a row: `says` in Markdown, without its marks, beside `name`.
    pub fn row(&mut self, name: &str, says: &str) {
        self.entry(name, &unlinked(says));
    }

    /// Adds a row: `says` as it is beside `name`, or below a name that is too long.
    pub fn entry(&mut self, name: &str, says: &str) {
        let _ = write!(self.text, "{}{FAINT}", " ".repeat(INDENT));
        self.words(INDENT, name);
        let _ = write!(self.text, "{FAINT:#}");
        let used = INDENT + name.chars().count();
        if used + 2 > self.left {
            let _ = write!(self.text, "\n{}", " ".repeat(self.left));
        } else {
            self.text.push_str(&" ".repeat(self.left - used));
        }
        self.words(self.left, says);
        self.text.push('\n');
    }

    /// Adds a line as it is.
    pub fn line(&mut self, indent: usize, line: &str) {
        let _ = writeln!(self.text, "{}{line}", " ".repeat(indent));
    }

    /// Adds words at column `indent`, to which further lines return.
    fn words(&mut self, indent: usize, words: &str) {
        let mut column = indent;
        for (index, word) in words.split_whitespace().enumerate() {
            let len = word.chars().count();
            if index > 0 && column + 1 + len > self.width {
                let _ = write!(self.text, "\n{}", " ".repeat(indent));
                column = indent;
            } else if index > 0 {
                self.text.push(' ');
                column += 1;
            }
            self.text.push_str(word);
            column += len;
        }
    }
}

/// Markdown without its links and marks of code.
fn unlinked(markdown: &str) -> String {
    let mut text = markdown.replace('`', "");
    while let Some((before, label, after)) = link(&text) {
        text = format!("{before}{label}{after}");
    }
    text
}

/// The first link: the text before it, its label, and the text behind it.
fn link(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once('[')?;
    let (label, rest) = rest.split_once("](")?;
    let (_, after) = rest.split_once(')')?;
    Some((before, label, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lose_their_targets() {
        assert_eq!(unlinked("an [image](image.md) of `x[1]`"), "an image of x[1]");
        assert_eq!(unlinked("[`a b`](c.md) and [d](e)"), "a b and d");
    }

    #[test]
    fn a_row_has_two_columns_where_there_is_room_for_them() {
        let page = |width, left| {
            let mut page = Page::new(width, left);
            page.row("a name", "one two three");
            page.row("a name that is long", "one");
            vmkern::text::unstyled(&page.finish())
        };
        let pad = " ".repeat(12);
        assert_eq!(
            page(100, 12),
            format!("  a name    one two three\n  a name that is long\n{pad}one\n")
        );
        assert_eq!(
            page(20, 12),
            "  a name\n      one two three\n  a name that is\n  long\n      one\n"
        );
    }
}
