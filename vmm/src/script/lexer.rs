//! One line of a script, cut into tokens on demand.
//!
//! On demand, because what follows a verb that the kernel does not offer need not be cut at all.

use super::advice;
use super::diagnostic::Diagnostic;
use super::source::Span;

/// The kind of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A name, a verb, a keyword.
    Word(String),
    /// A number, its suffix applied, and how it is written.
    Number(u64, Radix),
    /// A string, its quotes and escapes resolved.
    Text(String),
    /// Punctuation.
    Sign(&'static str),
    /// The end of the line, or the comment that ends it.
    End,
}

/// How a number is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Radix {
    /// In decimal, or in no way in particular.
    #[default]
    Decimal,
    /// With `0x`.
    Hexadecimal,
}

/// A token with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: Kind,
    pub span: Span,
    /// Whether a blank stands before it (or it is the first of its line).
    pub spaced: bool,
}

impl Token {
    /// How a message names it.
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Word(word) => format!("`{word}`"),
            Kind::Number(value, Radix::Decimal) => format!("the number {value}"),
            Kind::Number(value, Radix::Hexadecimal) => format!("the number {value:#x}"),
            Kind::Text(text) => format!("the string {text:?}"),
            Kind::Sign(sign) => format!("`{sign}`"),
            Kind::End => "the end of the line".to_owned(),
        }
    }

    pub fn is(&self, sign: &str) -> bool {
        matches!(&self.kind, Kind::Sign(s) if *s == sign)
    }

    pub fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }
}

/// Longer signs first.
const SIGNS: [&str; 22] = [
    "==", "..", "!=", "<=", ">=", "=", "<", ">", "$", "(", ")", "[", "]", "+", "-", "*", "/", "%",
    "|", ":", ",", ".",
];

/// A cursor over one line.
#[derive(Clone, Debug)]
pub(super) struct Lexer<'a> {
    line: usize,
    text: &'a str,
    at: usize,
    /// Where what has not been taken yet begins.
    taken: usize,
    peeked: Option<Token>,
}

impl<'a> Lexer<'a> {
    pub fn new(line: usize, text: &'a str) -> Self {
        Self { line, text, at: 0, taken: 0, peeked: None }
    }

    /// The next token, left in place.
    pub fn peek(&mut self) -> Result<&Token, Diagnostic> {
        let token = match self.peeked.take() {
            Some(token) => token,
            None => self.scan()?,
        };
        Ok(self.peeked.insert(token))
    }

    /// The next token. After the end of the line there is only the end of the line.
    pub fn next(&mut self) -> Result<Token, Diagnostic> {
        let token = match self.peeked.take() {
            Some(token) => token,
            None => self.scan()?,
        };
        self.taken = self.at;
        Ok(token)
    }

    /// Takes the next token if it is `sign`.
    pub fn accept(&mut self, sign: &str) -> Result<Option<Token>, Diagnostic> {
        if self.peek()?.is(sign) { self.next().map(Some) } else { Ok(None) }
    }

    /// What has not been taken yet as one token, whatever it is made of: the rest of the line, or
    /// its end.
    pub fn rest(&mut self) -> Token {
        (self.at, self.peeked) = (self.taken, None);
        let rest = self.text[self.at..].trim_start();
        let span = Span {
            line: self.line,
            start: self.text.len() - rest.len(),
            end: self.text.trim_end().len(),
        };
        let kind = if rest.is_empty() || rest.starts_with('#') {
            Kind::End
        } else {
            Kind::Word(rest.to_owned())
        };
        Token { kind, span, spaced: true }
    }

    /// All that has not been taken yet, up to a comment, without the blanks around it. It is taken
    /// with that.
    pub fn tail(&mut self) -> (&'a str, Span) {
        let rest = &self.text[self.taken..];
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let start = self.taken + rest.len() - rest.trim_start().len();
        let tail = rest.trim();
        (self.at, self.taken, self.peeked) = (self.text.len(), self.text.len(), None);
        (tail, Span { line: self.line, start, end: start + tail.len() })
    }

    /// The name of a file: a string, or all up to the next blank.
    pub fn file(&mut self) -> Result<String, Diagnostic> {
        (self.at, self.peeked) = (self.taken, None);
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        let start = self.at;
        if self.text[start..].starts_with('"') {
            let name = self.string()?;
            self.taken = self.at;
            return match name {
                Kind::Text(name) if !name.is_empty() => Ok(name),
                _ => Err(Diagnostic::new(
                    self.span(start),
                    "a file without a name",
                    "FILE",
                    "an empty string",
                )),
            };
        }
        let rest = &self.text[start..];
        let len = rest.find(char::is_whitespace).unwrap_or(rest.len());
        self.at += len;
        self.taken = self.at;
        Ok(rest[..len].to_owned())
    }

    fn span(&self, start: usize) -> Span {
        Span { line: self.line, start, end: self.at }
    }

    fn scan(&mut self) -> Result<Token, Diagnostic> {
        // 1. Blanks, and whether there were any.
        let blanks = self.text[self.at..].len() - self.text[self.at..].trim_start().len();
        let spaced = blanks > 0 || self.at == 0;
        self.at += blanks;
        let start = self.at;
        let rest = &self.text[start..];
        let Some(first) = rest.chars().next().filter(|&c| c != '#') else {
            let span = Span { line: self.line, start, end: start };
            return Ok(Token { kind: Kind::End, span, spaced });
        };
        // 2. A token, by its first character.
        let kind = if first.is_ascii_alphabetic() || first == '_' {
            Kind::Word(self.take_word().to_owned())
        } else if first.is_ascii_digit() {
            let word = self.take_word();
            let value = number(word).map_err(|expected| {
                let message = format!("bad number `{word}`");
                advice::number(
                    word,
                    Diagnostic::new(self.span(start), message, expected, format!("`{word}`")),
                )
            })?;
            Kind::Number(
                value,
                if word.starts_with("0x") { Radix::Hexadecimal } else { Radix::Decimal },
            )
        } else if first == '"' {
            self.string()?
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            self.at += sign.len();
            Kind::Sign(sign)
        } else {
            self.at += first.len_utf8();
            let found = format!("`{}`", first.escape_debug());
            let span = self.span(start);
            let message = format!("stray character {found}");
            return Err(advice::stray(
                first,
                Diagnostic::new(span, message, "a name, a number or a sign", found),
            ));
        };
        Ok(Token { kind, span: self.span(start), spaced })
    }

    fn take_word(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn string(&mut self) -> Result<Kind, Diagnostic> {
        // 1. Characters up to the closing quote.
        let start = self.at;
        let mut value = String::new();
        let mut chars = self.text[start..].char_indices().skip(1);
        while let Some((offset, c)) = chars.next() {
            match c {
                '"' => {
                    self.at = start + offset + 1;
                    return Ok(Kind::Text(value));
                }
                // 2. Escapes, of which there are two.
                '\\' => match chars.next() {
                    Some((_, c @ ('"' | '\\'))) => value.push(c),
                    other => {
                        let at = start + offset;
                        let end = at + 1 + other.map_or(0, |(_, c)| c.len_utf8());
                        let span = Span { line: self.line, start: at, end };
                        let found = format!("`{}`", &self.text[at..end]);
                        return Err(Diagnostic::new(
                            span,
                            "unknown escape in a string",
                            r#"`\"` or `\\`"#,
                            found,
                        ));
                    }
                },
                c => value.push(c),
            }
        }
        // 3. The line ends first.
        self.at = self.text.len();
        let found = "the end of the line";
        Err(Diagnostic::new(self.span(start), "an unterminated string", "a closing `\"`", found))
    }
}

/// Reads a number: decimal or `0x`, with `K`, `M`, `G` (powers of 1024) or `us`, `ms`, `s`
/// (microseconds). A time that 64 bits do not hold is the longest that they do: no clock comes so
/// far.
///
/// # Errors
/// The expected form.
pub fn number(word: &str) -> Result<u64, &'static str> {
    // 1. Digits and a suffix.
    const SUFFIXES: [(&str, u64); 6] = [
        ("K", 1 << 10),
        ("M", 1 << 20),
        ("G", 1 << 30),
        ("us", 1),
        ("ms", 1_000),
        ("s", 1_000_000),
    ];
    const FIT: &str = "a number of at most 64 bits";
    let (digits, radix) = word.strip_prefix("0x").map_or((word, 10), |hex| (hex, 16));
    let len = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let (digits, suffix) = digits.split_at(len);
    if digits.is_empty() {
        return Err("digits");
    }
    // 2. What the suffix stands for.
    let unit = match suffix {
        "" => 1,
        suffix => {
            SUFFIXES
                .iter()
                .find(|(name, _)| *name == suffix)
                .ok_or("digits and a suffix of K M G us ms s, or none")?
                .1
        }
    };
    // 3. A time beyond 64 bits never ends.
    let is_time = suffix.ends_with('s');
    match u64::from_str_radix(digits, radix).ok().and_then(|value| value.checked_mul(unit)) {
        None if is_time => Ok(u64::MAX),
        value => value.ok_or(FIT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Kind> {
        let mut lexer = Lexer::new(1, text);
        let mut kinds = Vec::new();
        loop {
            match lexer.next().expect("the line is good").kind {
                Kind::End => return kinds,
                kind => kinds.push(kind),
            }
        }
    }

    #[test]
    fn numbers_know_radix_and_suffix() {
        let good = [
            ("0", 0),
            ("12K", 12 << 10),
            ("0x10", 16),
            ("0x10K", 16 << 10),
            ("3G", 3 << 30),
            ("5us", 5),
            ("5ms", 5_000),
            ("2s", 2_000_000),
            ("9223372036854775807us", (1 << 63) - 1),
            ("9223372036854775807ms", u64::MAX),
            ("18446744073709551616s", u64::MAX),
            ("18446744073709551615", u64::MAX),
            ("0xffffffffffffffff", u64::MAX),
        ];
        for (text, value) in good {
            assert_eq!(number(text), Ok(value), "{text}");
        }
        for bad in ["0x", "12k", "1KB", "18446744073709551616", "17179869184G", "1_000", "0xfg"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_comment_ends_the_line_but_not_inside_a_string() {
        assert_eq!(
            kinds("print \"a # b\" # c"),
            [Kind::Word("print".into()), Kind::Text("a # b".into())]
        );
    }

    #[test]
    fn signs_are_as_long_as_they_can_be() {
        assert_eq!(kinds("<= = == !="), ["<=", "=", "==", "!="].map(Kind::Sign));
    }

    #[test]
    fn an_open_string_is_reported_from_its_quote_on() {
        let error = Lexer::new(3, "  \"abc").next().expect_err("there is no closing quote");
        assert_eq!(error.span, Span { line: 3, start: 2, end: 6 });
    }
}
