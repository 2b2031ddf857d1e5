//! The text of a script, and places in it.

use std::sync::Arc;

/// A piece of one line: bytes `start..end` of line `line` (counted from 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Line number, from 1.
    pub line: usize,
    /// First byte within the line.
    pub start: usize,
    /// First byte past the piece.
    pub end: usize,
}

impl Span {
    /// From the start of this piece to the end of `other`, on the same line.
    #[must_use]
    pub fn to(self, other: Self) -> Self {
        Self { end: other.end.max(self.end), ..self }
    }
}

/// A script's name and text. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Source {
    name: Arc<str>,
    text: Arc<String>,
    lines: Arc<Vec<(usize, usize)>>,
    /// Lines in front of the first that is here: they were read elsewhere, or forgotten.
    before: usize,
}

/// `line` without what ends it.
fn without_end(line: &str) -> &str {
    let body = line.strip_suffix('\n').unwrap_or(line);
    body.strip_suffix('\r').unwrap_or(body)
}

/// The bytes are not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8 {
    /// Line of the first bad byte, from 1.
    pub line: usize,
    /// Its column in characters, from 1.
    pub column: usize,
    /// The byte.
    pub byte: u8,
}

impl NotUtf8 {
    /// The error in the script `name`, with its place.
    #[must_use]
    pub fn at(&self, name: &str) -> String {
        let Self { line, column, byte } = self;
        format!("{name}:{line}:{column}: byte {byte:#04x} is not UTF-8")
    }
}

impl Source {
    /// A script called `name` in messages.
    #[must_use]
    pub fn new(name: &str, text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = Vec::new();
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            lines.push((start, start + without_end(line).len()));
            start += line.len();
        }
        let (text, lines) = (Arc::new(text.to_owned()), Arc::new(lines));
        Self { name: name.into(), text, lines, before: 0 }
    }

    /// A script called `name` of which no line is here yet, and `before` lines came earlier: they
    /// count, and are empty.
    #[must_use]
    pub fn behind(name: &str, before: usize) -> Self {
        Self { before, ..Self::new(name, "") }
    }

    /// Adds a line, with its end or without one, and returns its number. Costs no more than the
    /// line while there is no other clone of this text.
    pub fn push(&mut self, line: &str) -> usize {
        let line = without_end(line);
        let text = Arc::make_mut(&mut self.text);
        let start = text.len();
        text.push_str(line);
        text.push('\n');
        let lines = Arc::make_mut(&mut self.lines);
        lines.push((start, start + line.len()));
        self.before + lines.len()
    }

    /// Forgets the lines in front of line `first`, which keep their numbers and are empty from now
    /// on. A script without an end would fill the memory of the host.
    pub fn forget_before(&mut self, first: usize) {
        let gone = first.saturating_sub(self.before + 1).min(self.lines.len());
        let end = self.lines.get(gone).map_or(self.text.len(), |&(start, _)| start);
        let lines = Arc::make_mut(&mut self.lines);
        lines.drain(..gone);
        lines.iter_mut().for_each(|line| *line = (line.0 - end, line.1 - end));
        Arc::make_mut(&mut self.text).drain(..end);
        self.before += gone;
    }

    /// Bytes of the lines that are here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether no line is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// A script from the bytes of a file.
    ///
    /// # Errors
    /// When they are not UTF-8.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, NotUtf8> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(name, text)),
            Err(error) => {
                let (good, bad) = bytes.split_at(error.valid_up_to());
                let line_start = good.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
                let column = String::from_utf8_lossy(&good[line_start..]).chars().count() + 1;
                let line = good.iter().filter(|&&b| b == b'\n').count() + 1;
                Err(NotUtf8 { line, column, byte: bad[0] })
            }
        }
    }

    /// The name used in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many lines there are.
    #[must_use]
    pub fn line_count(&self) -> usize {
        self.before + self.lines.len()
    }

    /// Line number `line` (from 1) without its end; empty when there is no such line.
    #[must_use]
    pub fn line(&self, line: usize) -> &str {
        let index = line.checked_sub(self.before + 1);
        let Some(&(start, end)) = index.and_then(|index| self.lines.get(index)) else {
            return "";
        };
        &self.text[start..end]
    }

    /// The text of `span`.
    #[must_use]
    pub fn text(&self, span: Span) -> &str {
        self.line(span.line).get(span.start..span.end).unwrap_or("")
    }

    /// The column of the start of `span`, in characters from 1.
    #[must_use]
    pub fn column(&self, span: Span) -> usize {
        self.line(span.line).get(..span.start).map_or(0, |before| before.chars().count()) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_from_one_and_lose_their_ends() {
        let source = Source::new("x", "a\r\nbb\n\nc");
        assert_eq!(source.line_count(), 4);
        assert_eq!((1..=5).map(|n| source.line(n)).collect::<Vec<_>>(), ["a", "bb", "", "c", ""]);
    }

    #[test]
    fn lines_that_are_forgotten_leave_the_numbers_of_the_others() {
        let mut source = Source::behind("x", 2);
        assert_eq!((source.push("three"), source.push("four"), source.push("five")), (3, 4, 5));
        source.forget_before(4);
        assert_eq!((source.line(3), source.line(4), source.line(5)), ("", "four", "five"));
        assert_eq!((source.line_count(), source.push("six"), source.len()), (5, 6, 14));
        source.forget_before(100);
        assert_eq!((source.line_count(), source.is_empty(), source.line(6)), (6, true, ""));
        source.forget_before(1);
        assert_eq!((source.push("seven"), source.line(7)), (7, "seven"));
    }

    #[test]
    fn columns_count_characters_not_bytes() {
        let source = Source::new("x", "\"äö\" x");
        assert_eq!(source.column(Span { line: 1, start: 7, end: 8 }), 6);
    }

    #[test]
    fn the_first_byte_that_is_not_utf8_is_named() {
        let error =
            Source::from_bytes("x", b"ok\n# \xc3\xa4 \xff").expect_err("0xff is never UTF-8");
        assert_eq!(error, NotUtf8 { line: 2, column: 5, byte: 0xff });
    }
}
