//! Words that stand for something: threads, verbs, flags.

use vmkern_abi::control::{MallocFlags, MapKind};

use super::ast::{Runner, ThreadId};
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
    let number = word.strip_prefix('t').filter(|n| *n == "0" || !n.starts_with('0')).and_then(|n| n.parse().ok());
    number.filter(|&number| number < ThreadId::COUNT).map(ThreadId).ok_or_else(|| {
        Diagnostic::new(token.span, format!("{} is no thread", token.describe()), "t0 to t63", token.describe())
    })
}

/// What `token` names before a colon.
pub(super) fn runner(token: &Token) -> Result<Runner, Diagnostic> {
    if token.word() == Some("intr") {
        return Ok(Runner::Interrupt);
    }
    thread(token).map(Runner::Thread).map_err(|error| Diagnostic { expected: "t0 to t63 or intr".to_owned(), ..error })
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
    if !verb.is_offered() {
        let message = format!("`{word}` is part of the language, but this kernel does not offer it");
        let offered: Vec<_> = VERBS.iter().filter(|verb| verb.is_offered()).map(|verb| verb.name).collect();
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

/// `system`, or nothing.
pub(super) fn kind(lexer: &mut Lexer<'_>) -> Result<MapKind, Diagnostic> {
    let token = lexer.peek()?.clone();
    match token.word() {
        Some("system") => lexer.next().map(|_| MapKind::System),
        Some(word) => Err(Diagnostic::new(token.span, "unknown kind of map", "`system` or nothing", token.describe())
            .suggest(closest(word, ["system"]))),
        None => Ok(MapKind::User),
    }
}
