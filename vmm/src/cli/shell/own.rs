//! Words that are the shell's own: `exit`, `quit`, `help`, and `guest` alone.

use vmkern::script::{Diagnostic, Span};

/// What a line asks of the shell itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Own<'l> {
    /// To leave.
    Exit,
    /// To explain a word, or the whole language.
    Help(Option<Word<'l>>),
    /// To boot another guest with the same options.
    Guest,
}

/// A word with its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word<'l> {
    pub text: &'l str,
    pub span: Span,
}

/// What line number `line` asks of the shell itself, if it does.
///
/// # Errors
/// When more words stand there than the first one takes.
pub fn read(line: usize, text: &str) -> Option<Result<Own<'_>, Diagnostic>> {
    let words = words(line, text);
    let (first, rest) = words.split_first()?;
    // `help = kmem_alloc ...` binds a name.
    if rest.first().is_some_and(|word| word.text.starts_with(['=', '['])) {
        return None;
    }
    let (own, taken) = match first.text {
        "exit" | "quit" => (Own::Exit, 0),
        "help" => (Own::Help(rest.first().copied()), 1),
        "guest" if rest.is_empty() => (Own::Guest, 0),
        _ => return None,
    };
    Some(rest.get(taken).map_or(Ok(own), |surplus| {
        let message = format!("`{}` takes no more arguments", first.text);
        let found = format!("`{}`", surplus.text);
        Err(Diagnostic::new(surplus.span, message, "the end of the line", found))
    }))
}

/// The words in front of a comment.
fn words(line: usize, text: &str) -> Vec<Word<'_>> {
    let words = text.split_whitespace().map(|word| {
        let start = word.as_ptr().addr() - text.as_ptr().addr();
        Word { text: word, span: Span { line, start, end: start + word.len() } }
    });
    words.take_while(|word| !word.text.starts_with('#')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shells_own_words_take_what_they_take_and_nothing_more() {
        let word = Word { text: "read", span: Span { line: 3, start: 6, end: 10 } };
        for (text, own) in [
            (" exit", Own::Exit),
            ("quit # now", Own::Exit),
            ("help", Own::Help(None)),
            (" help read", Own::Help(Some(word))),
            ("guest # again", Own::Guest),
        ] {
            assert_eq!(read(3, text), Some(Ok(own)), "{text}");
        }
        for text in ["", "# exit", "help = kmem_alloc kmem_map 4K", "exit[0] = read 1", "settle"] {
            assert_eq!(read(1, text), None, "{text}");
        }
        assert_eq!(read(1, "guest vcpus=2"), None);
        for (text, start) in [("exit 3", 5), ("help read it", 10)] {
            let error = read(1, text).expect("it is the shell's").expect_err("it has too much");
            assert_eq!(error.span.start, start, "{text}");
        }
    }
}
