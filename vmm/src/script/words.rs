//! Words that stand for something: threads, verbs, flags.

use vmkern_abi::control::MallocFlags;

use super::ast::ThreadId;
use super::diagnostic::{Diagnostic, closest};
use super::expr::unexpected;
use super::lexer::{Kind, Lexer, Token};
use super::verbs::{FLAGS, VERBS, Verb};

/// Words that begin a line which is no verb.
pub(super) const KEYWORDS: [&str; 6] = ["let", "expect", "assert", "repeat", "end", "print"];

/// Nothing may follow.
pub(super) fn end(lexer: &mut Lexer<'_>) -> Result<(), Diagnostic> {
    let token = lexer.next()?;
    if token.kind == Kind::End { Ok(()) } else { Err(unexpected(&token, "the end of the line")) }
}

/// The thread that `token` names.
pub(super) fn thread(token: &Token) -> Result<ThreadId, Diagnostic> {
    let word = token.word().unwrap_or_default();
    let error = |message: String, expected: &str| Err(Diagnostic::new(token.span, message, expected, token.describe()));
    if word == "intr" {
        let message = "`intr:` is part of the language, but this kernel runs no operation from an interrupt handler";
        return error(message.to_owned(), "t0");
    }
    let number = word.strip_prefix('t').filter(|n| *n == "0" || !n.starts_with('0')).and_then(|n| n.parse().ok());
    match number {
        Some(number) if number == ThreadId::FIRST.number() => Ok(ThreadId(number)),
        Some(number) if number < ThreadId::COUNT => {
            error(format!("thread `{word}` is part of the language, but this kernel runs t0 alone"), "t0")
        }
        _ => error(format!("`{word}` is no thread"), "t0 to t63 or intr"),
    }
}

/// The verb that `token` names; `bound` when a `NAME =` stands before it.
pub(super) fn verb(token: &Token, bound: bool) -> Result<&'static Verb, Diagnostic> {
    let Some(word) = token.word() else { return Err(unexpected(token, "a verb")) };
    let Some(verb) = Verb::named(word) else {
        let error = Diagnostic::new(token.span, format!("unknown verb `{word}`"), "a verb", token.describe());
        let keywords: &[&str] = if bound { &[] } else { &KEYWORDS };
        let help = closest(word, VERBS.iter().map(|verb| verb.name).chain(keywords.iter().copied()));
        if help.is_none() && bound {
            return Err(error.help("`let NAME = EXPR` binds a number"));
        }
        return Err(error.suggest(help));
    };
    if verb.build.is_none() {
        let message = format!("`{word}` is part of the language, but this kernel does not offer it");
        let offered: Vec<_> = VERBS.iter().filter(|verb| verb.build.is_some()).map(|verb| verb.name).collect();
        return Err(Diagnostic::new(token.span, message, "a verb that it offers", token.describe())
            .help(format!("it offers {}", offered.join(" "))));
    }
    Ok(verb)
}

/// `FLAG|FLAG...`, or nothing.
pub(super) fn flags(lexer: &mut Lexer<'_>) -> Result<MallocFlags, Diagnostic> {
    let mut flags = MallocFlags::empty();
    if lexer.peek()?.kind == Kind::End {
        return Ok(flags);
    }
    loop {
        let token = lexer.next()?;
        let word = token.word().unwrap_or_default();
        let Some(&(_, flag)) = FLAGS.iter().find(|&&(name, _)| name == word) else {
            let names = FLAGS.map(|(name, _)| name);
            let expected = "flags joined by `|`: WAITOK NOWAIT ZERO USE_RESERVE";
            return Err(Diagnostic::new(token.span, "unknown flag", expected, token.describe())
                .suggest(closest(word.trim_start_matches("M_"), names)));
        };
        flags |= flag;
        if lexer.accept("|")?.is_none() {
            return Ok(flags);
        }
    }
}
