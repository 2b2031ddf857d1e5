//! Errors in a script: the place, what was expected, and what was found.

use std::fmt::Write as _;

use super::source::{Source, Span};
use crate::text::{is_hazard, one_line};

/// An error in a script, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The place.
    pub span: Span,
    /// The error, in one line.
    pub message: String,
    /// What was expected there.
    pub expected: String,
    /// What was found instead.
    pub found: String,
    /// The remedy.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at `span`.
    #[must_use]
    pub fn new(
        span: Span,
        message: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        let quoted = |text: String| clip(one_line(text.as_bytes()));
        let [message, expected, found] =
            [message.into(), expected.into(), found.into()].map(quoted);
        Self { span, message, expected, found, help: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with something else that was expected.
    #[must_use]
    pub(super) fn expecting(mut self, expected: &str) -> Self {
        expected.clone_into(&mut self.expected);
        self
    }

    /// The same with a did-you-mean, if there is a name to offer.
    #[must_use]
    pub fn suggest(mut self, name: Option<impl std::fmt::Display>) -> Self {
        if let Some(name) = name {
            self.help = Some(format!("did you mean `{name}`?"));
        }
        self
    }

    /// The message with the source line and a caret under the place, without a final newline.
    #[must_use]
    pub fn render(&self, source: &Source) -> String {
        let line = self.span.line;
        let (name, column) = (source.name(), source.column(self.span));
        let marked = self.marked(&line.to_string(), source.line(line));
        format!("{name}:{line}:{column}: {}\n{marked}", self.message)
    }

    /// The message with `text`, the value of an option, and a caret under the place, without a
    /// final newline.
    #[must_use]
    pub(super) fn render_option(&self, text: &str) -> String {
        format!("{}\n{}", self.message, self.marked(" ", text))
    }

    /// `text`, which is the line called `number`, with a caret under the place.
    fn marked(&self, number: &str, text: &str) -> String {
        let Span { start, end, .. } = self.span;
        let gutter = " ".repeat(number.len());
        let Excerpt { text: shown, before, marked } = excerpt(text, start, end);
        let mut out = String::new();
        let _ = writeln!(out, "{gutter} |");
        let _ = writeln!(out, "{number} | {shown}");
        let pad = " ".repeat(before);
        let _ = write!(out, "{gutter} | {pad}{} expected {}", "^".repeat(marked), self.expected);
        if let Some(help) = &self.help {
            let _ = write!(out, "\n{gutter} = {help}");
        }
        out
    }
}

/// Characters of a line that are shown with an error in it.
const EXCERPT: usize = 160;

/// A piece of a line with the place of an error.
struct Excerpt {
    text: String,
    /// Columns before the place.
    before: usize,
    /// Columns of the place, at least one.
    marked: usize,
}

/// What is shown of the line `text` for an error at bytes `start..end`: all, or what stands around
/// the place.
fn excerpt(text: &str, start: usize, end: usize) -> Excerpt {
    const DOTS: &str = "...";
    let start = if text.is_char_boundary(start) { start } else { text.len() };
    let from =
        text[..start].char_indices().rev().take(EXCERPT / 2).last().map_or(start, |(at, _)| at);
    let to = text[start..].char_indices().nth(EXCERPT / 2).map_or(text.len(), |(at, _)| start + at);
    let before = text[from..start].chars().count();
    let marked = text.get(start..end.min(to)).map_or(0, |piece| piece.chars().count()).max(1);
    let (dots_before, dots_after) =
        (if from > 0 { DOTS } else { "" }, if to < text.len() { DOTS } else { "" });
    // Each takes one column here, so that the carets stand where they should on every terminal.
    let shown = text[from..to].replace('\t', " ").replace(is_hazard, "\u{fffd}");
    let text = format!("{dots_before}{shown}{dots_after}");
    Excerpt { text, before: before + dots_before.len(), marked }
}

/// `line` as a report shows it: the beginning of one that is long.
#[must_use]
pub fn shortened(line: &str) -> String {
    excerpt(line, 0, 0).text
}

/// What a message quotes is as long as the script makes it. The middle of a long text is left out.
fn clip(text: String) -> String {
    const MAX: usize = 1000;
    const ENDS: usize = 100;
    if text.len() <= MAX {
        return text;
    }
    let head: String = text.chars().take(ENDS).collect();
    let mut tail: Vec<char> = text.chars().rev().take(ENDS).collect();
    tail.reverse();
    format!("{head}...{}", tail.into_iter().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spelling::closest;

    #[test]
    fn the_caret_stands_under_the_place() {
        let source = Source::new("a.kmem", "\ta = kmem_maloc kmem_map 1");
        let span = Span { line: 1, start: 5, end: 15 };
        let text = Diagnostic::new(span, "unknown verb `kmem_maloc`", "a verb", "`kmem_maloc`")
            .suggest(closest("kmem_maloc", ["kmem_free", "kmem_malloc"]))
            .render(&source);
        assert_eq!(
            text,
            "a.kmem:1:6: unknown verb `kmem_maloc`\n  |\n\
             1 |  a = kmem_maloc kmem_map 1\n  |      ^^^^^^^^^^ expected a verb\n  = did you mean \
             `kmem_malloc`?"
        );
    }

    #[test]
    fn a_long_line_is_shown_around_the_place_and_a_long_quote_at_its_ends() {
        let word = "ä".repeat(100_000);
        let line = format!("{} {word}", "x ".repeat(5_000));
        let source = Source::new("a.kmem", &line);
        let span = Span { line: 1, start: 10_001, end: 10_001 + word.len() };
        let error =
            Diagnostic::new(span, format!("unknown verb `{word}`"), "a verb", format!("`{word}`"));
        let text = error.render(&source);
        assert!(text.len() < 2_000, "{} bytes", text.len());
        assert!(text.contains("1 | ...") && text.ends_with("^ expected a verb"), "{text}");
        assert!(
            error.message.starts_with("unknown verb `ää") && error.message.ends_with("ää`"),
            "{}",
            error.message
        );
    }
}
