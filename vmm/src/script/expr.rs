//! Expressions: parsing and resolution in one go.

use super::ast::{Expr, MapRef, Operator, Term, TermKind};
use super::diagnostic::Diagnostic;
use super::lexer::{Kind, Lexer, Token};
use super::names::{self, MapField};
use super::scope::{Form, Scope};
use super::source::Span;
use super::verbs::Verb;
use super::words;
use crate::spelling::closest;
use vmkern_abi::control::MapId;

/// Deepest nesting of parentheses and brackets. The parser descends once for each level.
const MAX_DEPTH: usize = 64;

/// Whether blanks may stand around an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blanks {
    /// They may: after `let`, `assert`, `expect`, `repeat`, and within parentheses and brackets.
    Allowed,
    /// They end the expression: it is one argument of several.
    End,
}

/// Parses one expression at the lexer's place.
pub(super) fn parse(
    lexer: &mut Lexer<'_>,
    scope: &Scope,
    blanks: Blanks,
) -> Result<Expr, Diagnostic> {
    Parser { lexer, scope, depth: 0 }.expr(blanks)
}

/// The forms of a term, for messages.
const EXPECTED: &str = "a number, a `$NAME` or a counter";

/// The names of maps, for messages.
pub(super) const MAP: &str = "a map: kernel_map kmem_map exec_map pipe_map buffer_map clean_map \
                              pager_map, or a `$NAME` bound by kmem_suballoc";

/// Parses a map at the lexer's place.
pub(super) fn map(lexer: &mut Lexer<'_>, scope: &Scope) -> Result<MapRef, Diagnostic> {
    let token = lexer.next()?;
    if !token.is("$") {
        return named_map(&token, scope).map(MapRef::Named);
    }
    let bound = Parser { lexer, scope, depth: 0 }.reference(token.span)?;
    bound.map(scope)
}

/// The boot-time map that `token` names.
fn named_map(token: &Token, scope: &Scope) -> Result<MapId, Diagnostic> {
    let word = token.word().unwrap_or_default();
    let known = MapId::NAMED.into_iter().find(|&(name, _)| name == word);
    known.map(|(_, map)| map).ok_or_else(|| {
        let error = Diagnostic::new(token.span, "unknown map", MAP, token.describe());
        if scope.maps().any(|name| name == word) {
            return error.suggest(Some(format!("${word}")));
        }
        error.suggest(closest(word, MapId::NAMED.map(|(name, _)| name)))
    })
}

/// `$NAME` or `$NAME[EXPR]`, resolved.
struct Reference {
    term: Term,
    /// As the script writes it, without an index.
    shown: String,
    can_be_map: bool,
}

impl Reference {
    fn map(self, scope: &Scope) -> Result<MapRef, Diagnostic> {
        if self.can_be_map {
            return Ok(MapRef::Bound(Box::new(self.term)));
        }
        let Self { term, shown, .. } = self;
        let message = format!("`{shown}` is a number, not a map");
        let error = Diagnostic::new(term.span, message, MAP, format!("`{shown}`"));
        Err(error.suggest(
            closest(shown.trim_start_matches('$'), scope.maps()).map(|name| format!("${name}")),
        ))
    }
}

/// The error for a token that cannot follow.
pub(super) fn unexpected(token: &Token, expected: &str) -> Diagnostic {
    let message = match token.kind {
        Kind::End => "the line ends too early".to_owned(),
        _ => format!("unexpected {}", token.describe().trim_start_matches("the ")),
    };
    let error = Diagnostic::new(token.span, message, expected, token.describe());
    if Operator::ALL.iter().any(|operator| token.is(operator.sign())) {
        return error.help("an expression with spaces stands in parentheses here");
    }
    error
}

struct Parser<'p, 'a> {
    lexer: &'p mut Lexer<'a>,
    scope: &'p Scope,
    depth: usize,
}

impl Parser<'_, '_> {
    fn expr(&mut self, blanks: Blanks) -> Result<Expr, Diagnostic> {
        let mut expr = Expr::from(self.term()?);
        loop {
            let next = self.lexer.peek()?;
            let operator = Operator::ALL.into_iter().find(|operator| next.is(operator.sign()));
            let Some(operator) = operator.filter(|_| blanks == Blanks::Allowed || !next.spaced)
            else {
                return Ok(expr);
            };
            self.lexer.next()?;
            let right = self.lexer.peek()?;
            if blanks == Blanks::End && right.spaced {
                let found = right.describe();
                let message = format!("a blank after `{}`", operator.sign());
                return Err(Diagnostic::new(
                    right.span,
                    message,
                    "a term right behind the operator",
                    found,
                )
                .help("an expression with spaces stands in parentheses here"));
            }
            let right = self.term()?;
            expr.span = expr.span.to(right.span);
            expr.rest.push((operator, right));
        }
    }

    /// An expression up to `close`, within brackets of some kind.
    fn nested(&mut self, close: &str) -> Result<(Expr, Span), Diagnostic> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let span = self.lexer.peek()?.span;
            let message = format!("more than {MAX_DEPTH} levels of parentheses");
            return Err(Diagnostic::new(span, message, "a simpler expression", "another level"));
        }
        let expr = self.expr(Blanks::Allowed)?;
        let end = self.lexer.next()?;
        if !end.is(close) {
            return Err(unexpected(&end, &format!("an operator or `{close}`")));
        }
        self.depth -= 1;
        Ok((expr, end.span))
    }

    fn term(&mut self) -> Result<Term, Diagnostic> {
        let token = self.lexer.next()?;
        let start = token.span;
        match &token.kind {
            Kind::Number(value, radix) => {
                Ok(Term { span: start, kind: TermKind::Number(*value, *radix) })
            }
            Kind::Sign("(") => {
                let (inner, end) = self.nested(")")?;
                Ok(Term { span: start.to(end), kind: TermKind::Group(inner) })
            }
            Kind::Sign("$") => self.bound(start),
            Kind::Word(word) if word == "rand" => self.rand(start),
            Kind::Word(word) => self.plain(word, &token),
            _ => Err(unexpected(&token, "a number, a `$NAME` or a counter")),
        }
    }

    /// `$NAME`, `$NAME[EXPR]`, `$i`, and properties of maps; the `$` is read.
    fn bound(&mut self, dollar: Span) -> Result<Term, Diagnostic> {
        let reference = self.reference(dollar)?;
        let next = self.lexer.peek()?;
        if !next.is(".") || next.spaced {
            return Ok(reference.term);
        }
        let start = reference.term.span;
        let map = reference.map(self.scope)?;
        self.property(start, map)
    }

    /// `$NAME`, `$NAME[EXPR]`, `$i`; the `$` is read.
    fn reference(&mut self, dollar: Span) -> Result<Reference, Diagnostic> {
        // 1. The name, right behind the sign.
        let token = self.lexer.next()?;
        let Some(name) = token.word().filter(|_| !token.spaced) else {
            return Err(unexpected(&token, "a name right behind `$`"));
        };
        let span = dollar.to(token.span);
        let unbound = |scope: &Scope, shown: String| unbound(scope, span, name, &shown);
        // 2. An element of a series.
        let next = self.lexer.peek()?;
        if next.is("[") && !next.spaced {
            let shown = format!("${name}[]");
            let Some(id) = self.scope.find(name, Form::Series) else {
                return Err(unbound(self.scope, shown));
            };
            self.lexer.next()?;
            let (index, end) = self.nested("]")?;
            let term = Term { span: dollar.to(end), kind: TermKind::Element(id, index) };
            return Ok(Reference {
                term,
                shown,
                can_be_map: self.scope.can_be_map(id, Form::Series),
            });
        }
        // 3. A single value, or the counter of a loop.
        let shown = format!("${name}");
        let (kind, can_be_map) = if name == "i" && self.scope.loops > 0 {
            (TermKind::LoopIndex, false)
        } else if let Some(id) = self.scope.find(name, Form::Single) {
            (TermKind::Value(id), self.scope.can_be_map(id, Form::Single))
        } else if name == "i" {
            return Err(Diagnostic::new(
                span,
                "`$i` outside a `repeat`",
                "a name bound above",
                "`$i`",
            ));
        } else if self.scope.find(name, Form::Series).is_some() {
            return Err(unbound(self.scope, shown)
                .help(format!("`{name}` is a series: `${name}[EXPR]` is one of its elements")));
        } else {
            return Err(unbound(self.scope, shown));
        };
        Ok(Reference { term: Term { span, kind }, shown, can_be_map })
    }

    /// `.FIELD` of `map`, which began at `start`; the dot is not read yet.
    fn property(&mut self, start: Span, map: MapRef) -> Result<Term, Diagnostic> {
        self.lexer.next()?;
        let field = self.lexer.next()?;
        let name = field.word().unwrap_or_default();
        let Some(known) = MapField::from_name(name) else {
            let expected = "min, max, size, entries or max_free";
            return Err(Diagnostic::new(
                field.span,
                "unknown property of a map",
                expected,
                field.describe(),
            )
            .suggest(closest(name, MapField::ALL.map(MapField::name))));
        };
        Ok(Term { span: start.to(field.span), kind: TermKind::MapField(map, known) })
    }

    /// `rand(LO,HI)`; the word is read.
    fn rand(&mut self, start: Span) -> Result<Term, Diagnostic> {
        if self.lexer.accept("(")?.is_none() {
            return Err(unexpected(&self.lexer.next()?, "`(LO,HI)` after `rand`"));
        }
        let (low, _) = self.nested(",")?;
        let (high, end) = self.nested(")")?;
        Ok(Term { span: start.to(end), kind: TermKind::Rand(low, high) })
    }

    /// A name without a `$`.
    fn plain(&mut self, word: &str, token: &Token) -> Result<Term, Diagnostic> {
        // 1. A field of a map.
        let next = self.lexer.peek()?;
        if next.is(".") && !next.spaced {
            let map = named_map(token, self.scope)?;
            return self.property(token.span, MapRef::Named(map));
        }
        // 2. Words and counters of the language.
        match word {
            "page_size" => return Ok(Term { span: token.span, kind: TermKind::PageSize }),
            "now" => return Ok(Term { span: token.span, kind: TermKind::Now }),
            "cycles" => return Ok(Term { span: token.span, kind: TermKind::Cycles }),
            _ => {}
        }
        if let Some(counter) = names::counter(word) {
            return Ok(Term { span: token.span, kind: TermKind::Counter(counter) });
        }
        // 3. No such word: advice by what was probably meant.
        if names::is_later(word) {
            return Err(Diagnostic::new(
                token.span,
                words::not_yet(word),
                EXPECTED,
                token.describe(),
            ));
        }
        Err(self.unknown(word, token))
    }

    /// The error of a word that is not part of the language, with advice on what was meant.
    fn unknown(&self, word: &str, token: &Token) -> Diagnostic {
        let error = Diagnostic::new(
            token.span,
            format!("unknown name `{word}`"),
            EXPECTED,
            token.describe(),
        );
        if word == "hex" {
            return error.help("`hex(EXPR)` stands in `print` alone, where it prints hexadecimal");
        }
        if let Some(verb) = Verb::named(word) {
            return error.help(format!(
                "a verb stands in a statement of its own: `NAME = {}`",
                verb.signature()
            ));
        }
        if self.scope.find(word, Form::Single).is_some() || (word == "i" && self.scope.loops > 0) {
            return error.suggest(Some(format!("${word}")));
        }
        if MapId::NAMED.iter().any(|&(name, _)| name == word) {
            return error.help(format!("a map is not a number, but `{word}.size` is one"));
        }
        error.suggest(closest(word, names::all()))
    }
}

/// The error of a name that is not bound, with another one that is.
fn unbound(scope: &Scope, span: Span, name: &str, shown: &str) -> Diagnostic {
    let error = Diagnostic::new(
        span,
        format!("`{shown}` is not bound"),
        "a name bound above",
        format!("`{shown}`"),
    );
    error.suggest(
        scope.suggest(name).filter(|other| *other != name).map(|other| format!("${other}")),
    )
}
