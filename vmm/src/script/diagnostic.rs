//! What is wrong with a script: where, what was expected, what stands there.

use std::fmt::Write as _;

use super::source::{Source, Span};

/// An error in a script, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The place.
    pub span: Span,
    /// What is wrong, in one line.
    pub message: String,
    /// What was expected there.
    pub expected: String,
    /// What stands there instead.
    pub found: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error at `span`.
    #[must_use]
    pub fn new(span: Span, message: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { span, message: message.into(), expected: expected.into(), found: found.into(), help: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
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
        let Span { line, start, end } = self.span;
        let text = source.line(line);
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        let before = text.get(..start).unwrap_or(text);
        let marked = text.get(start..end).map_or(0, |piece| piece.chars().count()).max(1);
        // A tab takes one column here, so that the carets stand where they should on every terminal.
        let shown = text.replace('\t', " ");
        let mut out = String::new();
        let column = source.column(self.span);
        let _ = writeln!(out, "{}:{line}:{column}: {}", source.name(), self.message);
        let _ = writeln!(out, "{gutter} |");
        let _ = writeln!(out, "{number} | {shown}");
        let pad = " ".repeat(before.chars().count());
        let _ = write!(out, "{gutter} | {pad}{} expected {}", "^".repeat(marked), self.expected);
        if let Some(help) = &self.help {
            let _ = write!(out, "\n{gutter} = {help}");
        }
        out
    }
}

/// The candidate that looks most like `word`, if any looks like it at all.
#[must_use]
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|&(likeness, _)| likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_place() {
        let source = Source::new("a.kmem", "\ta = kmem_maloc kmem_map 1");
        let span = Span { line: 1, start: 5, end: 15 };
        let text = Diagnostic::new(span, "unknown verb `kmem_maloc`", "a verb", "`kmem_maloc`")
            .suggest(closest("kmem_maloc", ["kmem_free", "kmem_malloc"]))
            .render(&source);
        assert_eq!(
            text,
            "a.kmem:1:6: unknown verb `kmem_maloc`\n  |\n1 |  a = kmem_maloc kmem_map 1\n  |      ^^^^^^^^^^ expected a verb\n  = did you mean `kmem_malloc`?"
        );
    }

    #[test]
    fn nothing_is_suggested_for_what_resembles_nothing() {
        assert_eq!(closest("frobnicate", ["kmem_free", "sleep"]), None);
    }
}
