//! Advice for the mistakes of users who know another language.

use super::diagnostic::Diagnostic;
use crate::spelling::closest;

const REPEAT: &str = "`repeat COUNT` ... `end` is the only loop; `$i` in it counts from 0";
const JUDGE: &str =
    "there are no branches: a script ends at the first `expect` or `assert` that does not hold";

/// Words of other languages, and what stands in their place here.
const FOREIGN: [(&str, &str); 17] = [
    ("if", JUDGE),
    ("else", JUDGE),
    ("elif", JUDGE),
    ("switch", JUDGE),
    ("while", REPEAT),
    ("for", REPEAT),
    ("foreach", REPEAT),
    ("loop", REPEAT),
    ("until", REPEAT),
    ("do", REPEAT),
    ("done", REPEAT),
    ("break", REPEAT),
    ("return", "a script ends with its last line"),
    ("exit", "a script ends with its last line"),
    ("var", "`let NAME = EXPR` binds a number"),
    ("set", "`let NAME = EXPR` binds a number"),
    ("echo", "`print` writes strings and numbers"),
];

/// The counterpart of a word of another language.
pub(super) fn foreign(word: &str) -> Option<&'static str> {
    let small = word.to_ascii_lowercase();
    FOREIGN.iter().find(|(foreign, _)| *foreign == small).map(|(_, advice)| *advice)
}

/// Binding a number takes a `let`.
pub(super) const LET: &str = "`let NAME = EXPR` binds a number";

/// For a verb that is called as C would.
pub(super) fn call(signature: &str) -> String {
    format!(
        "arguments follow the verb, with blanks between them and no parentheses around: \
         `{signature}`"
    )
}

/// Adds what the number `word` could have been meant to be.
pub(super) fn number(word: &str, error: Diagnostic) -> Diagnostic {
    if word.len() > 40 {
        return error;
    }
    let small = word.to_ascii_lowercase().replace('_', "");
    let is_hex = small.starts_with("0x");
    let len = if is_hex {
        small.len()
    } else {
        small.find(|c: char| !c.is_ascii_digit()).unwrap_or(small.len())
    };
    let (digits, suffix) = small.split_at(len);
    let unit = match suffix {
        "" => "",
        "k" | "kb" | "kib" => "K",
        "m" | "mb" | "mib" => "M",
        "g" | "gb" | "gib" => "G",
        "us" | "usec" => "us",
        "ms" | "msec" => "ms",
        "s" | "sec" | "secs" => "s",
        _ => return error,
    };
    let meant = format!("{digits}{unit}");
    let is_good = meant != word && super::lexer::number(&meant).is_ok();
    error.suggest(is_good.then_some(meant))
}

/// Adds what the character `stray` could have been meant to be.
pub(super) fn stray(stray: char, error: Diagnostic) -> Diagnostic {
    match stray {
        '\'' => error.help("strings stand in double quotes"),
        ';' => error.help("a statement ends with its line"),
        '{' | '}' => error.help(REPEAT),
        '&' => error.help("flags are joined by `|`"),
        '!' => error.help("OP is one of == != < <= > >="),
        _ => error,
    }
}

/// For a word where a verb should stand, behind `NAME =` if `bound`: the advice, if there is any.
pub(super) fn verb<'a>(
    word: &str,
    bound: bool,
    names: impl IntoIterator<Item = &'a str>,
    error: Diagnostic,
) -> Diagnostic {
    match foreign(word).filter(|_| !bound) {
        Some(advice) => error.help(advice),
        None => match closest(word, names) {
            None if bound => error.help(LET),
            help => error.suggest(help),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::source::Span;

    #[test]
    fn a_number_of_another_language_gets_the_one_that_it_means_here() {
        let cases = [
            ("12k", Some("12K")),
            ("12KB", Some("12K")),
            ("4MiB", Some("4M")),
            ("5MS", Some("5ms")),
            ("5S", Some("5s")),
            ("0X10", Some("0x10")),
            ("0xFFFF_0000", Some("0xffff0000")),
            ("1_000", Some("1000")),
            ("12Q", None),
            ("0x", None),
            ("99999999999999999999K", None),
        ];
        for (word, meant) in cases {
            let error =
                number(word, Diagnostic::new(Span { line: 1, start: 0, end: 1 }, "", "", ""));
            assert_eq!(error.help, meant.map(|meant| format!("did you mean `{meant}`?")), "{word}");
        }
    }
}
