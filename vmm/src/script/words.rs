//! Words that stand for something: threads, verbs, flags.

use vmkern_abi::control::{MallocFlags, MapKind};
use vmkern_abi::layout::Protection;

use super::advice;
use super::ast::{RunnerRef, ThreadRef};
use super::diagnostic::Diagnostic;
use super::expr::{self, Blanks, unexpected};
use super::lexer::{Kind, Lexer, Token};
use super::scope::Scope;
use super::verbs::{FLAGS, PROTECTIONS, VERBS, Verb};
use crate::guest::ThreadId;
use crate::spelling::closest;

/// Words that begin a line which is not a verb.
pub(super) const KEYWORDS: [&str; 8] =
    ["let", "expect", "assert", "repeat", "end", "print", "start", "guest"];
/// Keywords that can also be names: the next token decides.
pub(super) const SOFT_KEYWORDS: [&str; 2] = ["start", "guest"];

/// Nothing may follow.
pub(super) fn end(lexer: &mut Lexer<'_>) -> Result<(), Diagnostic> {
    let token = lexer.next()?;
    if token.kind == Kind::End { Ok(()) } else { Err(unexpected(&token, "the end of the line")) }
}

/// The names of threads, for messages.
pub(super) const THREADS: &str = "t0 to t63, or t[EXPR]";

/// The thread that `token` names.
fn fixed(token: &Token) -> Result<ThreadId, Diagnostic> {
    let word = token.word().unwrap_or_default();
    let number = |word: &str| {
        let digits = word.strip_prefix('t').filter(|n| *n == "0" || !n.starts_with('0'))?;
        digits.parse().ok().and_then(ThreadId::new)
    };
    number(word).ok_or_else(|| {
        let message = format!("{} is not a thread", token.describe());
        let small = word.to_ascii_lowercase();
        let meant = number(&small).is_some().then_some(small);
        Diagnostic::new(token.span, message, THREADS, token.describe()).suggest(meant)
    })
}

/// The thread that `token` and what follows it name.
pub(super) fn thread(
    token: &Token,
    lexer: &mut Lexer<'_>,
    scope: &Scope,
) -> Result<ThreadRef, Diagnostic> {
    let next = lexer.peek()?;
    if token.word() != Some("t") || !next.is("[") || next.spaced {
        return fixed(token).map(ThreadRef::Fixed);
    }
    lexer.next()?;
    let index = expr::parse(lexer, scope, Blanks::Allowed)?;
    let close = lexer.next()?;
    if !close.is("]") {
        return Err(unexpected(&close, "an operator or `]`"));
    }
    match index.literal() {
        Some(number) if number >= u64::from(ThreadId::COUNT) => {
            let found = format!("`t[{number}]`");
            Err(Diagnostic::new(
                token.span.to(close.span),
                format!("{found} is not a thread"),
                THREADS,
                found,
            ))
        }
        _ => Ok(ThreadRef::Computed(Box::new(index))),
    }
}

/// The thread or handler that `token` and the tokens behind it name in front of a colon.
pub(super) fn runner(
    token: &Token,
    lexer: &mut Lexer<'_>,
    scope: &Scope,
) -> Result<RunnerRef, Diagnostic> {
    if token.word() == Some("intr") {
        return Ok(RunnerRef::Interrupt);
    }
    thread(token, lexer, scope).map(RunnerRef::Thread).map_err(|error| {
        if error.expected == THREADS {
            error.expecting("t0 to t63, t[EXPR] or intr")
        } else {
            error
        }
    })
}

/// The verb that `token` names; `bound` when a `NAME =` stands before it.
pub(super) fn verb(token: &Token, bound: bool) -> Result<&'static Verb, Diagnostic> {
    let Some(word) = token.word() else {
        let error = unexpected(token, "a verb");
        return Err(if bound && token.kind != Kind::End { error.help(advice::LET) } else { error });
    };
    let Some(verb) = Verb::named(word) else {
        let error = Diagnostic::new(
            token.span,
            format!("unknown verb `{word}`"),
            "a verb",
            token.describe(),
        );
        let keywords: &[&str] = if bound { &[] } else { &KEYWORDS };
        let known = VERBS.iter().map(|verb| verb.name).chain(keywords.iter().copied());
        return Err(advice::verb(word, bound, known, error));
    };
    if !verb.is_offered() {
        let message = not_yet(word);
        let offered: Vec<_> =
            VERBS.iter().filter(|verb| verb.is_offered()).map(|verb| verb.name).collect();
        return Err(Diagnostic::new(
            token.span,
            message,
            "a verb that it offers",
            token.describe(),
        )
        .help(format!("it offers {}", offered.join(" "))));
    }
    Ok(verb)
}

/// The message for a verb or a name whose feature the kernel does not have yet.
pub(super) fn not_yet(word: &str) -> String {
    format!("`{word}` is part of the language, but not yet of this kernel")
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
            let meant = word.trim_start_matches("M_");
            let meant =
                names.into_iter().find(|name| *name == meant).or_else(|| closest(meant, names));
            return Err(Diagnostic::new(token.span, "unknown flag", expected, token.describe())
                .suggest(meant));
        };
        flags |= flag;
        if lexer.accept("|")?.is_none() {
            return Ok(flags);
        }
    }
}

/// What a range can allow.
pub(super) const PROTECTION: &str = "`rw`, `r` or `none`";

/// A name of [`PROTECTIONS`].
pub(super) fn protection(lexer: &mut Lexer<'_>) -> Result<Protection, Diagnostic> {
    let token = lexer.next()?;
    let word = token.word().unwrap_or_default();
    let named = PROTECTIONS.iter().find(|(name, _)| *name == word);
    named.map(|&(_, protection)| protection).ok_or_else(|| {
        let names = PROTECTIONS.map(|(name, _)| name);
        Diagnostic::new(token.span, "unknown protection", PROTECTION, token.describe())
            .suggest(closest(word, names))
    })
}

/// `system`, or nothing.
pub(super) fn kind(lexer: &mut Lexer<'_>) -> Result<MapKind, Diagnostic> {
    let token = lexer.peek()?.clone();
    match token.word() {
        Some("system") => lexer.next().map(|_| MapKind::System),
        Some(word) => Err(Diagnostic::new(
            token.span,
            "unknown kind of map",
            "`system` or nothing",
            token.describe(),
        )
        .suggest(closest(word, ["system"]))),
        None => Ok(MapKind::User),
    }
}
