//! `[THREAD:] [NAME =] VERB ARG...`: the thread, the place of the result, and the arguments.

use std::sync::Arc;

use super::{Above, Parser};
use crate::script::advice;
use crate::script::ast::{Arg, Call, Do, Pace, Place, RunnerRef, StmtKind};
use crate::script::diagnostic::Diagnostic;
use crate::script::expr::{self, Blanks, unexpected};
use crate::script::fail_point;
use crate::script::lexer::{Kind, Lexer, Token};
use crate::script::look;
use crate::script::scope::Form;
use crate::script::source::Span;
use crate::script::verbs::{Param, Verb};
use crate::script::words::{self, KEYWORDS, SOFT_KEYWORDS};

/// Whether a colon stands behind the bracket that opens at the lexer's place and its match.
fn colon_follows(mut lexer: Lexer<'_>) -> bool {
    let mut depth = 0_usize;
    while let Ok(token) = lexer.next() {
        match &token.kind {
            Kind::End => return false,
            Kind::Sign("[") => depth += 1,
            Kind::Sign("]") if depth <= 1 => return lexer.peek().is_ok_and(|next| next.is(":")),
            Kind::Sign("]") => depth -= 1,
            _ => {}
        }
    }
    false
}

/// Whether one of `signs` follows `head`. What follows a verb that takes the name of a file or a
/// fail point need not be made of tokens.
fn followed(lexer: &mut Lexer<'_>, head: &Token, signs: &[&str]) -> Result<bool, Diagnostic> {
    let takes_raw = || {
        let verb = head.word().and_then(Verb::named);
        verb.is_some_and(|verb| verb.params.iter().any(|param| param.is_raw()))
    };
    match lexer.peek() {
        Err(_) if takes_raw() => Ok(false),
        next => next.map(|next| signs.iter().any(|sign| next.is(sign))),
    }
}

/// Fails if `verb` is not done where `runner`, which stands at `at`, says.
fn has_its_runner(verb: &Verb, runner: Option<&RunnerRef>, at: Span) -> Result<(), Diagnostic> {
    match runner {
        Some(_) if verb.params == [Param::Fail] => {
            let message = format!("the host does `{}`, not a thread of the guest", verb.name);
            Err(Diagnostic::new(at, message, "`fail` without a thread", "a thread"))
        }
        Some(RunnerRef::Interrupt) if !verb.is_operation() => {
            let message = format!("an interrupt handler cannot do `{}`", verb.name);
            Err(Diagnostic::new(at, message, "t0 to t63, or nothing", "`intr`"))
        }
        _ => Ok(()),
    }
}

impl Parser {
    /// `start THREAD: [NAME =] VERB ARG...`; the keyword is read.
    pub(super) fn start(&mut self, lexer: &mut Lexer<'_>, span: Span) -> Result<(), Diagnostic> {
        let first = lexer.peek()?.clone();
        let what = self.statement(lexer, span, Pace::Start)?;
        words::end(lexer)?;
        let refuse = |message: &str| {
            let expected = "a thread and an operation: `start t1: VERB ARG...`";
            Err(Diagnostic::new(first.span, message, expected, first.describe()))
        };
        match (&what.runner, what.call.verb.is_operation()) {
            (None, _) => return refuse("`start` needs a thread"),
            (Some(RunnerRef::Interrupt), _) => {
                return refuse("an interrupt handler is not a thread, and has nothing to join");
            }
            (Some(RunnerRef::Thread(_)), true) => {}
            (Some(RunnerRef::Thread(_)), false) => {
                return refuse(&format!(
                    "`{}` is done by the script itself, and cannot be started",
                    what.call.verb.name
                ));
            }
        }
        self.push(span, StmtKind::Do(Arc::new(what)));
        self.above = Above::Verb;
        Ok(())
    }

    /// The part in front of the colon, if a colon follows; `head` is read.
    fn runner(&self, lexer: &mut Lexer<'_>, head: &Token) -> Result<Option<RunnerRef>, Diagnostic> {
        let is_runner = if head.word() == Some("t") && followed(lexer, head, &["["])? {
            // `t[EXPR]:` is a thread, `t[EXPR] =` an element of a series.
            colon_follows(lexer.clone())
        } else {
            followed(lexer, head, &[":"])?
        };
        if !is_runner {
            return Ok(None);
        }
        let runner = words::runner(head, lexer, &self.scope)?;
        let colon = lexer.next()?;
        if colon.is(":") { Ok(Some(runner)) } else { Err(unexpected(&colon, "`:`")) }
    }

    /// `[THREAD:] [NAME =] VERB ARG...`
    pub(super) fn statement(
        &mut self,
        lexer: &mut Lexer<'_>,
        span: Span,
        pace: Pace,
    ) -> Result<Do, Diagnostic> {
        let mut head = lexer.next()?;
        let before = head.span;
        let runner = self.runner(lexer, &head)?;
        if runner.is_some() {
            head = lexer.next()?;
        }
        let mut place = None;
        if followed(lexer, &head, &["=", "["])? {
            place = Some(self.place(lexer, &head)?);
            head = lexer.next()?;
        }
        let verb = words::verb(&head, place.is_some())?;
        has_its_runner(verb, runner.as_ref(), before)?;
        let args = self.arguments(lexer, verb)?;
        let bind = place.map(|(place, form)| {
            self.scope.bind(place.name, form, verb.gives);
            place
        });
        Ok(Do { span, runner, pace, bind, call: Call { verb, args } })
    }

    /// The statement of on_lowmem: `VERB ARG...`, an operation, with neither thread nor name.
    fn later(&self, lexer: &mut Lexer<'_>) -> Result<Call, Diagnostic> {
        const EXPECTED: &str = "a verb that is an operation";
        let head = lexer.next()?;
        let next = lexer.peek()?;
        if next.is(":") {
            let message = "the handler runs on the thread that invokes the event";
            return Err(Diagnostic::new(head.span, message, EXPECTED, head.describe()));
        }
        if next.is("=") || next.is("[") {
            let message = "the result of a handler goes nowhere, so it binds no name";
            return Err(Diagnostic::new(head.span, message, EXPECTED, head.describe()));
        }
        let verb = words::verb(&head, false)?;
        if !verb.is_operation() {
            let message = format!("`{}` is not an operation of the guest", verb.name);
            return Err(Diagnostic::new(head.span, message, EXPECTED, head.describe()));
        }
        Ok(Call { verb, args: self.arguments(lexer, verb)? })
    }

    /// `NAME =` or `NAME[EXPR] =`; `head` is the name, already read.
    pub(super) fn place(
        &mut self,
        lexer: &mut Lexer<'_>,
        head: &Token,
    ) -> Result<(Place, Form), Diagnostic> {
        // 1. A name that is free for use.
        let Some(name) = head.word() else {
            let error = unexpected(head, "a name");
            return Err(if head.is("$") {
                error.help("a name is bound without `$`, and read with it")
            } else {
                error
            });
        };
        if KEYWORDS.contains(&name) && !SOFT_KEYWORDS.contains(&name) {
            return Err(Diagnostic::new(
                head.span,
                format!("`{name}` is a keyword"),
                "another name",
                head.describe(),
            ));
        }
        if name == "i" && self.scope.loops > 0 {
            let message = "`i` is the counter of this repeat";
            return Err(Diagnostic::new(head.span, message, "another name", head.describe()));
        }
        // 2. An index makes it an element of a series.
        let mut index = None;
        if lexer.accept("[")?.is_some() {
            index = Some(expr::parse(lexer, &self.scope, Blanks::Allowed)?);
            let close = lexer.next()?;
            if !close.is("]") {
                return Err(unexpected(&close, "an operator or `]`"));
            }
        }
        // 3. The sign.
        let equals = lexer.next()?;
        if !equals.is("=") {
            return Err(unexpected(&equals, "`=`"));
        }
        let form = if index.is_some() { Form::Series } else { Form::Single };
        Ok((Place { name: self.scope.id(name), index }, form))
    }

    fn arguments(
        &self,
        lexer: &mut Lexer<'_>,
        verb: &'static Verb,
    ) -> Result<Vec<Arg>, Diagnostic> {
        let is_raw = verb.params.first().is_some_and(|param| param.is_raw());
        let is_call = !is_raw && lexer.peek()?.is("(");
        let args = self.arguments_of(lexer, verb);
        args.map_err(|error| match error.found.as_str() {
            "`(`" | "`,`" => error.help(advice::call(&verb.signature())),
            _ if is_call => error.help(advice::call(&verb.signature())),
            _ => error,
        })
    }

    fn arguments_of(
        &self,
        lexer: &mut Lexer<'_>,
        verb: &'static Verb,
    ) -> Result<Vec<Arg>, Diagnostic> {
        // 1. The arguments that the verb has.
        let mut args = Vec::new();
        for &param in verb.params {
            let expected = match param {
                Param::Map(_) => expr::MAP,
                Param::Number(name) => name,
                Param::Seed => "SEED or `zero`",
                Param::Thread => words::THREADS,
                Param::Op => "a verb",
                Param::File => "FILE",
                Param::Fail => fail_point::EXPECTED,
                Param::Look => "WHAT",
                Param::Allows => words::PROTECTION,
                Param::Amount => "SIZE or `leave`",
                Param::Flags | Param::Kind | Param::Chunk => "",
            };
            let next = if param.is_raw() { lexer.rest() } else { lexer.peek()?.clone() };
            if next.kind == Kind::End && !expected.is_empty() {
                let message = format!("`{}` lacks an argument", verb.name);
                let error = Diagnostic::new(next.span, message, expected, next.describe());
                return Err(error.help(format!("usage: {}", verb.signature())));
            }
            args.push(self.argument(lexer, param)?);
        }
        // 2. Nothing behind them.
        let next = lexer.peek()?;
        if next.kind != Kind::End {
            let message = format!("`{}` takes no more arguments", verb.name);
            let mut error = unexpected(next, "the end of the line");
            error.message = message;
            let usage = format!("usage: {}", verb.signature());
            error.help = Some(error.help.map_or(usage.clone(), |help| format!("{help}; {usage}")));
            return Err(error);
        }
        Ok(args)
    }

    /// The next argument, which `param` says the form of.
    fn argument(&self, lexer: &mut Lexer<'_>, param: Param) -> Result<Arg, Diagnostic> {
        Ok(match param {
            Param::Map(_) => Arg::Map(expr::map(lexer, &self.scope)?),
            Param::Seed if lexer.peek()?.word() == Some("zero") => {
                lexer.next()?;
                Arg::Zero
            }
            Param::Seed => Arg::Seed(expr::parse(lexer, &self.scope, Blanks::End)?),
            Param::Number(_) => Arg::Number(expr::parse(lexer, &self.scope, Blanks::End)?),
            Param::Flags => Arg::Flags(words::flags(lexer)?),
            Param::Kind => Arg::Kind(words::kind(lexer)?),
            Param::Allows => Arg::Allows(words::protection(lexer)?),
            Param::Chunk if lexer.peek()?.kind == Kind::End => Arg::Chunk(None),
            Param::Chunk => Arg::Chunk(Some(expr::parse(lexer, &self.scope, Blanks::End)?)),
            Param::Amount if lexer.peek()?.word() == Some("leave") => {
                lexer.next()?;
                Arg::Leave(expr::parse(lexer, &self.scope, Blanks::End)?)
            }
            Param::Amount => Arg::Bytes(expr::parse(lexer, &self.scope, Blanks::End)?),
            Param::Thread => {
                let token = lexer.next()?;
                Arg::Thread(words::thread(&token, lexer, &self.scope)?)
            }
            Param::Op => Arg::Call(self.later(lexer)?),
            Param::File => Arg::File(lexer.file()?),
            Param::Fail => Arg::Fail(fail_point::parse(lexer)?),
            Param::Look => Arg::What(look::parse(lexer, &self.scope)?),
        })
    }
}
