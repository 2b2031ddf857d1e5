//! Lines into statements, statements into blocks. Every name and verb is resolved here, before
//! anything boots.

use std::sync::Arc;

use vmkern_abi::control::KernReturn;

use super::advice;
use super::ast::{
    Arg, Call, Compare, Do, Expect, Expected, Expr, NameId, Pace, Place, PrintArg, RunnerRef,
    Script, Stmt, StmtKind,
};
use super::diagnostic::Diagnostic;
use super::expr::{self, Blanks, unexpected};
use super::guest_line::{self, GuestOptions};
use super::lexer::{Kind, Lexer, Token};
use super::look;
use super::scope::{Form, Scope};
use super::source::{Source, Span};
use super::verbs::{Gives, Param, Verb};
use super::words::{self, KEYWORDS, SOFT_KEYWORDS};
use crate::spelling::closest;

/// Most errors reported for one script.
const MAX_ERRORS: usize = 20;
/// Deepest nesting of `repeat`.
const MAX_LOOPS: usize = 64;

/// Reads a script.
///
/// # Errors
/// Everything that is wrong with it, in the order of the lines; at least one.
pub fn parse(source: &Source) -> Result<Script, Vec<Diagnostic>> {
    parse_with(source, &[])
}

/// Reads a script in which these names are bound before the first line. A `let` of such a name does
/// nothing.
///
/// # Errors
/// As [`parse`].
pub fn parse_with(source: &Source, presets: &[(String, u64)]) -> Result<Script, Vec<Diagnostic>> {
    let mut parser = Parser::new(presets);
    let mut errors = Vec::new();
    for number in 1..=source.line_count() {
        let text = source.line(number);
        if let Err(error) = parser.line(number, text) {
            errors.push(error);
            parser.recover(number, text);
            if errors.len() == MAX_ERRORS {
                return Err(errors);
            }
        }
    }
    errors.extend(parser.unclosed());
    if errors.is_empty() {
        let Parser { body, presets, guest, .. } = parser;
        let guest = guest.unwrap_or_default();
        Ok(Script { source: source.clone(), body, presets, guest })
    } else {
        Err(errors)
    }
}

/// What stands above a line, as `expect` sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Above {
    /// Nothing that could be judged.
    #[default]
    Nothing,
    /// A verb without an `expect`.
    Verb,
    /// A line that is wrong itself.
    Wrong,
}

/// A `repeat` that waits for its `end`.
struct Block {
    span: Span,
    /// Nothing when the `repeat` line itself is wrong.
    count: Option<Expr>,
    /// The statements around it.
    outer: Vec<Stmt>,
}

/// Reads lines, one at a time, and keeps the statements that they make.
#[derive(Default)]
pub(super) struct Parser {
    scope: Scope,
    blocks: Vec<Block>,
    body: Vec<Stmt>,
    above: Above,
    presets: Vec<(NameId, u64)>,
    /// What the `guest` line says.
    guest: Option<GuestOptions>,
    /// Whether a statement stands above.
    has_begun: bool,
}

/// Whether the word at the lexer's place is followed by what makes it a name that is bound.
fn is_bound(mut lexer: Lexer<'_>) -> bool {
    let is_sign = |token: &Token| token.is("=") || token.is("[");
    lexer.next().is_ok() && lexer.peek().is_ok_and(is_sign)
}

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

/// Whether one of `signs` follows `head`. What follows a verb that takes the name of a file need
/// not be made of tokens.
fn followed(lexer: &mut Lexer<'_>, head: &Token, signs: &[&str]) -> Result<bool, Diagnostic> {
    let takes_file =
        || head.word().and_then(Verb::named).is_some_and(|verb| verb.params.contains(&Param::File));
    match lexer.peek() {
        Err(_) if takes_file() => Ok(false),
        next => next.map(|next| signs.iter().any(|sign| next.is(sign))),
    }
}

impl Parser {
    /// Nothing read yet, and these names bound.
    pub(super) fn new(presets: &[(String, u64)]) -> Self {
        let mut parser = Self::default();
        for (name, value) in presets {
            let id = parser.scope.id(name);
            parser.scope.bind(id, Form::Single, Gives::Number);
            parser.presets.push((id, *value));
        }
        parser
    }

    /// What is bound before the first line.
    pub(super) fn presets(&self) -> &[(NameId, u64)] {
        &self.presets
    }

    /// The names that lines so far have bound.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.scope.bound()
    }

    /// What is wrong if no line follows: a `repeat` is open.
    pub(super) fn unclosed(&self) -> Option<Diagnostic> {
        const MESSAGE: &str = "a `repeat` without its `end`";
        let open = self.blocks.last()?;
        Some(Diagnostic::new(open.span, MESSAGE, "`end` below", "the end of the script"))
    }

    /// The statements that are complete.
    pub(super) fn take(&mut self) -> Vec<Stmt> {
        std::mem::take(&mut self.body)
    }

    /// Forgets what is not complete.
    pub(super) fn forget(&mut self) {
        self.blocks.clear();
        self.scope.loops = 0;
        self.body.clear();
        self.above = Above::Nothing;
    }

    /// Reads line `number`. One that is wrong changes nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn line(&mut self, number: usize, text: &str) -> Result<(), Diagnostic> {
        let above = self.above;
        self.statement_line(number, text).inspect_err(|_| self.above = above)
    }

    fn statement_line(&mut self, number: usize, text: &str) -> Result<(), Diagnostic> {
        // 1. The first word.
        let mut lexer = Lexer::new(number, text);
        let first = lexer.peek()?.clone();
        let span = Span { line: number, start: first.span.start, end: text.trim_end().len() };
        let keyword = match &first.kind {
            Kind::End => return Ok(()),
            Kind::Word(word) => KEYWORDS.iter().copied().find(|keyword| keyword == word),
            _ => {
                let error = unexpected(&first, "a verb, a binding or a keyword");
                let help = "a name is bound without `$`: `let NAME = EXPR`, or `NAME = VERB ...`";
                return Err(if first.is("$") { error.help(help) } else { error });
            }
        };
        let keyword =
            keyword.filter(|keyword| !(SOFT_KEYWORDS.contains(keyword) && is_bound(lexer.clone())));
        // 2. A verb or a binding.
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let above = std::mem::replace(&mut self.above, Above::Nothing);
        let Some(keyword) = keyword else {
            let kind = StmtKind::Do(Arc::new(self.statement(&mut lexer, span, Pace::Wait)?));
            words::end(&mut lexer)?;
            self.push(span, kind);
            self.above = Above::Verb;
            return Ok(());
        };
        // 3. A keyword.
        lexer.next()?;
        no_thread(&mut lexer, keyword, &first)?;
        match keyword {
            "let" => self.binding(&mut lexer, span),
            "assert" => self.assertion(&mut lexer, span),
            "print" => self.print(&mut lexer, span),
            "expect" => self.expectation(&mut lexer, span, first.span, above),
            "repeat" => self.open(&mut lexer, span),
            "start" => self.start(&mut lexer, span),
            "guest" if is_first => {
                guest_line::parse(&mut lexer).map(|options| self.guest = Some(options))
            }
            "guest" => {
                let message = "`guest` stands before every other statement";
                Err(Diagnostic::new(first.span, message, "another statement", first.describe()))
            }
            _ => self.close(&mut lexer, first.span),
        }
    }

    /// After an error in `text`: goes on as if the line had been good, so that one mistake is
    /// reported once.
    fn recover(&mut self, number: usize, text: &str) {
        self.above = Above::Wrong;
        let mut words = text.split_whitespace();
        match words.next() {
            Some("repeat") => {
                let span = Span { line: number, start: 0, end: text.len() };
                self.enter(span, None);
                return;
            }
            Some("expect") => self.above = Above::Nothing,
            _ => {}
        }
        let text = text.trim_start().strip_prefix("let ").unwrap_or(text);
        let text = text.split_once(": ").map_or(text, |(_, rest)| rest);
        let Some((name, _)) = text.split_once('=') else { return };
        let (name, form) =
            name.split_once('[').map_or((name, Form::Single), |(name, _)| (name, Form::Series));
        let id = self.scope.id(name.trim());
        // Whatever it was meant to be: no second error comes of it.
        self.scope.bind(id, form, Gives::Either);
    }

    fn push(&mut self, span: Span, kind: StmtKind) {
        self.body.push(Stmt { span, kind });
    }

    fn enter(&mut self, span: Span, count: Option<Expr>) {
        let outer = std::mem::take(&mut self.body);
        self.blocks.push(Block { span, count, outer });
        self.scope.loops += 1;
    }

    /// `start THREAD: [NAME =] VERB ARG...`; the keyword is read.
    fn start(&mut self, lexer: &mut Lexer<'_>, span: Span) -> Result<(), Diagnostic> {
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

    /// What stands before the colon, if a colon follows; `head` is read.
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
    fn statement(
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
        if matches!(runner, Some(RunnerRef::Interrupt)) && !verb.is_operation() {
            let message = format!("an interrupt handler cannot do `{}`", verb.name);
            return Err(Diagnostic::new(before, message, "t0 to t63, or nothing", "`intr`"));
        }
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
    fn place(&mut self, lexer: &mut Lexer<'_>, head: &Token) -> Result<(Place, Form), Diagnostic> {
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
        // The name of a file need not be made of tokens.
        let is_call = verb.params.first() != Some(&Param::File) && lexer.peek()?.is("(");
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
                Param::Look => "WHAT",
                Param::Flags | Param::Kind => "",
            };
            // A file's name follows rules of its own, and need not be made of tokens.
            let next = if param == Param::File { lexer.rest() } else { lexer.peek()?.clone() };
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
            Param::Thread => {
                let token = lexer.next()?;
                Arg::Thread(words::thread(&token, lexer, &self.scope)?)
            }
            Param::Op => Arg::Call(self.later(lexer)?),
            Param::File => Arg::File(lexer.file()?),
            Param::Look => Arg::What(look::parse(lexer, &self.scope)?),
        })
    }

    fn binding(&mut self, lexer: &mut Lexer<'_>, span: Span) -> Result<(), Diagnostic> {
        let head = lexer.next()?;
        let (place, form) = self.place(lexer, &head)?;
        if let Some(verb) = lexer.peek()?.word().and_then(Verb::named) {
            let token = lexer.next()?;
            let message = format!("`let` binds a number, and `{}` is a verb", verb.name);
            return Err(Diagnostic::new(token.span, message, "an expression", token.describe())
                .help(format!(
                    "without `let`: `{} = {} ...`",
                    head.word().unwrap_or("NAME"),
                    verb.name
                )));
        }
        let value = expr::parse(lexer, &self.scope, Blanks::Allowed)?;
        words::end(lexer)?;
        let is_preset =
            form == Form::Single && self.presets.iter().any(|&(name, _)| name == place.name);
        if !is_preset {
            self.scope.bind(place.name, form, Gives::Number);
            self.push(span, StmtKind::Let { place, value });
        }
        Ok(())
    }

    fn assertion(&mut self, lexer: &mut Lexer<'_>, span: Span) -> Result<(), Diagnostic> {
        let left = expr::parse(lexer, &self.scope, Blanks::Allowed)?;
        let token = lexer.next()?;
        let Some(compare) = Compare::ALL.into_iter().find(|compare| token.is(compare.sign()))
        else {
            let error = unexpected(&token, "an operator: == != < <= > >=");
            return Err(if token.is("=") { error.suggest(Some("==")) } else { error });
        };
        let right = expr::parse(lexer, &self.scope, Blanks::Allowed)?;
        words::end(lexer)?;
        self.push(span, StmtKind::Assert { left, compare, right });
        Ok(())
    }

    fn print(&mut self, lexer: &mut Lexer<'_>, span: Span) -> Result<(), Diagnostic> {
        let mut args = Vec::new();
        while lexer.peek()?.kind != Kind::End {
            let next = lexer.peek()?.clone();
            args.push(if let Kind::Text(text) = next.kind {
                lexer.next()?;
                PrintArg::Text(text)
            } else if next.word() == Some("hex") {
                lexer.next()?;
                let open = lexer.peek()?;
                if !open.is("(") || open.spaced {
                    return Err(unexpected(open, "`(EXPR)` right behind `hex`"));
                }
                PrintArg::Hex(expr::parse(lexer, &self.scope, Blanks::End)?)
            } else {
                PrintArg::Number(expr::parse(lexer, &self.scope, Blanks::End)?)
            });
        }
        self.push(span, StmtKind::Print(args));
        Ok(())
    }

    fn expectation(
        &mut self,
        lexer: &mut Lexer<'_>,
        span: Span,
        word: Span,
        above: Above,
    ) -> Result<(), Diagnostic> {
        let what = self.expected(lexer)?;
        words::end(lexer)?;
        match above {
            Above::Verb => {
                self.push(span, StmtKind::Expect(Arc::new(Expect { span, what })));
                Ok(())
            }
            Above::Wrong => Ok(()),
            Above::Nothing => Err(Diagnostic::new(
                word,
                "`expect` has nothing to judge",
                "a verb just above",
                "`expect`",
            )),
        }
    }

    fn expected(&self, lexer: &mut Lexer<'_>) -> Result<Expected, Diagnostic> {
        // 1. Words.
        const WHAT: &str = "ok, null, blocked, a number, error KERN_* or panic \"TEXT\"";
        let token = lexer.peek()?.clone();
        let simple = match token.word() {
            Some("ok") => Expected::Ok,
            Some("null") => Expected::Null,
            Some("blocked") => Expected::Blocked,
            Some("error") => {
                lexer.next()?;
                return error_name(lexer);
            }
            Some("panic") => {
                lexer.next()?;
                let text = lexer.next()?;
                return match text.kind {
                    Kind::Text(text) => Ok(Expected::Panic(text)),
                    _ => Err(unexpected(&text, "a string: a part of the panic's message")),
                };
            }
            // 2. A number, unless it is a word that was meant for one of those.
            _ => {
                return match expr::parse(lexer, &self.scope, Blanks::Allowed) {
                    Err(error) if error.span == token.span && token.word().is_some() => {
                        let words = ["ok", "null", "blocked", "error", "panic"];
                        let help = closest(token.word().unwrap_or_default(), words);
                        let mut error = Diagnostic { expected: WHAT.to_owned(), ..error };
                        if let Some(word) = help {
                            error = error.suggest(Some(word));
                        }
                        Err(error)
                    }
                    Err(error) if error.span == token.span => {
                        Err(Diagnostic { expected: WHAT.to_owned(), ..error })
                    }
                    other => other.map(Expected::Number),
                };
            }
        };
        // 3. The word itself.
        lexer.next()?;
        Ok(simple)
    }

    fn open(&mut self, lexer: &mut Lexer<'_>, span: Span) -> Result<(), Diagnostic> {
        if self.blocks.len() >= MAX_LOOPS {
            let message = format!("more than {MAX_LOOPS} levels of `repeat`");
            return Err(Diagnostic::new(span, message, "fewer", "another level"));
        }
        let count = expr::parse(lexer, &self.scope, Blanks::Allowed)?;
        words::end(lexer)?;
        self.enter(span, Some(count));
        Ok(())
    }

    fn close(&mut self, lexer: &mut Lexer<'_>, word: Span) -> Result<(), Diagnostic> {
        words::end(lexer)?;
        let Some(block) = self.blocks.pop() else {
            return Err(Diagnostic::new(
                word,
                "an `end` without its `repeat`",
                "a statement",
                "`end`",
            ));
        };
        self.scope.loops -= 1;
        let body = std::mem::replace(&mut self.body, block.outer);
        if let Some(count) = block.count {
            self.push(block.span, StmtKind::Repeat { count, body });
        }
        Ok(())
    }
}

/// Fails if a keyword stands where a thread could.
fn no_thread(lexer: &mut Lexer<'_>, keyword: &str, first: &Token) -> Result<(), Diagnostic> {
    if lexer.peek()?.is(":") {
        return Err(Diagnostic::new(
            first.span,
            format!("`{keyword}` is not a thread"),
            words::THREADS,
            first.describe(),
        ));
    }
    Ok(())
}

/// The error that `expect error` names.
fn error_name(lexer: &mut Lexer<'_>) -> Result<Expected, Diagnostic> {
    let name = lexer.next()?;
    let word = name.word().unwrap_or_default();
    let error = || {
        let names = KernReturn::ALL.map(KernReturn::name);
        let error = Diagnostic::new(name.span, "unknown error", "a KERN_* name", name.describe());
        let meant = closest(word, names).or_else(|| closest(&format!("KERN_{word}"), names));
        let all = format!("they are {}", names.join(" "));
        if meant.is_some() { error.suggest(meant) } else { error.help(all) }
    };
    KernReturn::from_name(word).map(Expected::Error).ok_or_else(error)
}
