//! Lines into statements, statements into blocks. Every name and verb is resolved here, before anything boots.

use vmkern_abi::control::KernReturn;

use super::ast::{Arg, Call, Compare, Do, Expect, Expected, Place, PrintArg, Runner, Script, Stmt, StmtKind};
use super::diagnostic::{Diagnostic, closest};
use super::expr::{self, Blanks, unexpected};
use super::lexer::{Kind, Lexer, Token};
use super::look;
use super::scope::{Form, Scope};
use super::source::{Source, Span};
use super::verbs::{Action, Gives, Param, Verb};
use super::words::{self, KEYWORDS};

/// Most errors reported for one script.
const MAX_ERRORS: usize = 20;
/// Deepest nesting of `repeat`.
const MAX_LOOPS: usize = 64;

/// Reads a script.
///
/// # Errors
/// Everything that is wrong with it, in the order of the lines; at least one.
pub fn parse(source: &Source) -> Result<Script, Vec<Diagnostic>> {
    let mut parser = Parser { scope: Scope::default(), blocks: Vec::new(), body: Vec::new(), above: Above::Nothing };
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
    if let Some(open) = parser.blocks.last() {
        errors.push(Diagnostic::new(open.span, "a `repeat` without its `end`", "`end` below", "the end of the script"));
    }
    if errors.is_empty() {
        Ok(Script { source: source.clone(), names: parser.scope.into_names(), body: parser.body })
    } else {
        Err(errors)
    }
}

/// What stands above a line, as `expect` sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Above {
    /// Nothing that could be judged.
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
    count: Option<super::ast::Expr>,
    /// The statements around it.
    outer: Vec<Stmt>,
}

struct Parser {
    scope: Scope,
    blocks: Vec<Block>,
    body: Vec<Stmt>,
    above: Above,
}

/// Whether one of `signs` follows `head`. What follows a verb that takes the name of a file need not be made of tokens.
fn followed(lexer: &mut Lexer<'_>, head: &Token, signs: &[&str]) -> Result<bool, Diagnostic> {
    let takes_file = || head.word().and_then(Verb::named).is_some_and(|verb| verb.params.contains(&Param::File));
    match lexer.peek() {
        Err(_) if takes_file() => Ok(false),
        next => next.map(|next| signs.iter().any(|sign| next.is(sign))),
    }
}

impl Parser {
    fn line(&mut self, number: usize, text: &str) -> Result<(), Diagnostic> {
        let mut lexer = Lexer::new(number, text);
        let first = lexer.peek()?.clone();
        let span = Span { line: number, start: first.span.start, end: text.trim_end().len() };
        let keyword = match &first.kind {
            Kind::End => return Ok(()),
            Kind::Word(word) => KEYWORDS.iter().copied().find(|keyword| keyword == word),
            _ => return Err(unexpected(&first, "a verb, a binding or a keyword")),
        };
        let above = std::mem::replace(&mut self.above, Above::Nothing);
        let Some(keyword) = keyword else {
            let kind = StmtKind::Do(self.statement(&mut lexer)?);
            words::end(&mut lexer)?;
            self.push(span, kind);
            self.above = Above::Verb;
            return Ok(());
        };
        lexer.next()?;
        if lexer.peek()?.is(":") {
            return Err(Diagnostic::new(
                first.span,
                format!("`{keyword}` is no thread"),
                "t0 to t63",
                first.describe(),
            ));
        }
        match keyword {
            "let" => self.binding(&mut lexer, span),
            "assert" => self.assertion(&mut lexer, span),
            "print" => self.print(&mut lexer, span),
            "expect" => self.expectation(&mut lexer, span, first.span, above),
            "repeat" => self.open(&mut lexer, span),
            _ => self.close(&mut lexer, first.span),
        }
    }

    /// After an error in `text`: goes on as if the line had been good, so that one mistake is reported once.
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
        let (name, form) = name.split_once('[').map_or((name, Form::Single), |(name, _)| (name, Form::Series));
        let id = self.scope.id(name.trim());
        // Whatever it was meant to be: no second error comes of it.
        self.scope.bind(id, form, Gives::Either);
    }

    fn push(&mut self, span: Span, kind: StmtKind) {
        self.body.push(Stmt { span, kind });
    }

    fn enter(&mut self, span: Span, count: Option<super::ast::Expr>) {
        let outer = std::mem::take(&mut self.body);
        self.blocks.push(Block { span, count, outer });
        self.scope.loops += 1;
    }

    /// `[THREAD:] [NAME =] VERB ARG...`
    fn statement(&mut self, lexer: &mut Lexer<'_>) -> Result<Do, Diagnostic> {
        let mut head = lexer.next()?;
        let mut runner = None;
        let before = head.span;
        if followed(lexer, &head, &[":"])? {
            runner = Some(words::runner(&head)?);
            lexer.next()?;
            head = lexer.next()?;
        }
        let mut place = None;
        if followed(lexer, &head, &["=", "["])? {
            place = Some(self.place(lexer, &head)?);
            head = lexer.next()?;
        }
        let verb = words::verb(&head, place.is_some())?;
        if runner == Some(Runner::Interrupt) && !matches!(verb.action, Action::Operation(_)) {
            let message = format!("`{}` is nothing that an interrupt handler does", verb.name);
            return Err(Diagnostic::new(before, message, "t0 to t63, or nothing", "`intr`"));
        }
        let args = self.arguments(lexer, verb)?;
        let bind = place.map(|(place, form)| {
            self.scope.bind(place.name, form, verb.gives);
            place
        });
        Ok(Do { runner, bind, call: Call { verb, args }, expect: None })
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
            let message = "what a handler gives goes to nobody, so it binds no name";
            return Err(Diagnostic::new(head.span, message, EXPECTED, head.describe()));
        }
        let verb = words::verb(&head, false)?;
        if !matches!(verb.action, Action::Operation(_)) {
            let message = format!("`{}` is no operation of the guest", verb.name);
            return Err(Diagnostic::new(head.span, message, EXPECTED, head.describe()));
        }
        Ok(Call { verb, args: self.arguments(lexer, verb)? })
    }

    /// `NAME =` or `NAME[EXPR] =`; `head` is the name, already read.
    fn place(&mut self, lexer: &mut Lexer<'_>, head: &Token) -> Result<(Place, Form), Diagnostic> {
        let Some(name) = head.word() else { return Err(unexpected(head, "a name")) };
        if KEYWORDS.contains(&name) {
            return Err(Diagnostic::new(head.span, format!("`{name}` is a keyword"), "another name", head.describe()));
        }
        if name == "i" && self.scope.loops > 0 {
            let message = "`i` is the counter of this repeat";
            return Err(Diagnostic::new(head.span, message, "another name", head.describe()));
        }
        let mut index = None;
        if lexer.accept("[")?.is_some() {
            index = Some(expr::parse(lexer, &self.scope, Blanks::Allowed)?);
            let close = lexer.next()?;
            if !close.is("]") {
                return Err(unexpected(&close, "an operator or `]`"));
            }
        }
        let equals = lexer.next()?;
        if !equals.is("=") {
            return Err(unexpected(&equals, "`=`"));
        }
        let form = if index.is_some() { Form::Series } else { Form::Single };
        Ok((Place { name: self.scope.id(name), index }, form))
    }

    fn arguments(&self, lexer: &mut Lexer<'_>, verb: &'static Verb) -> Result<Vec<Arg>, Diagnostic> {
        let mut args = Vec::new();
        for &param in verb.params {
            let expected = match param {
                Param::Map => expr::MAP,
                Param::Number(name) => name,
                Param::Seed => "SEED or `zero`",
                Param::Thread => "t0 to t63",
                Param::Statement => "a verb",
                Param::File => "FILE",
                Param::What => "WHAT",
                Param::Flags | Param::System => "",
            };
            // A file's name follows rules of its own, and need not be made of tokens.
            let next = if param == Param::File { lexer.rest() } else { lexer.peek()?.clone() };
            if next.kind == Kind::End && !expected.is_empty() {
                let message = format!("`{}` lacks an argument", verb.name);
                let error = Diagnostic::new(next.span, message, expected, next.describe());
                return Err(error.help(format!("usage: {}", verb.signature())));
            }
            args.push(match param {
                Param::Map => Arg::Map(expr::map(lexer, &self.scope)?),
                Param::Seed if next.word() == Some("zero") => {
                    lexer.next()?;
                    Arg::Zero
                }
                Param::Number(_) | Param::Seed => Arg::Number(expr::parse(lexer, &self.scope, Blanks::End)?),
                Param::Flags => Arg::Flags(words::flags(lexer)?),
                Param::System => Arg::Kind(words::kind(lexer)?),
                Param::Thread => Arg::Thread(words::thread(&lexer.next()?)?),
                Param::Statement => Arg::Call(self.later(lexer)?),
                Param::File => Arg::File(lexer.file()?),
                Param::What => Arg::What(look::parse(lexer, &self.scope)?),
            });
        }
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

    fn binding(&mut self, lexer: &mut Lexer<'_>, span: Span) -> Result<(), Diagnostic> {
        let head = lexer.next()?;
        let (place, form) = self.place(lexer, &head)?;
        if let Some(verb) = lexer.peek()?.word().and_then(Verb::named) {
            let token = lexer.next()?;
            let message = format!("`let` binds a number, and `{}` is a verb", verb.name);
            return Err(Diagnostic::new(token.span, message, "an expression", token.describe()).help(format!(
                "without `let`: `{} = {} ...`",
                head.word().unwrap_or("NAME"),
                verb.name
            )));
        }
        let value = expr::parse(lexer, &self.scope, Blanks::Allowed)?;
        words::end(lexer)?;
        self.scope.bind(place.name, form, Gives::Number);
        self.push(span, StmtKind::Let { place, value });
        Ok(())
    }

    fn assertion(&mut self, lexer: &mut Lexer<'_>, span: Span) -> Result<(), Diagnostic> {
        let left = expr::parse(lexer, &self.scope, Blanks::Allowed)?;
        let token = lexer.next()?;
        let Some(compare) = Compare::ALL.into_iter().find(|compare| token.is(compare.sign())) else {
            return Err(unexpected(&token, "an operator: == != < <= > >="));
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
            } else {
                PrintArg::Number(expr::parse(lexer, &self.scope, Blanks::End)?)
            });
        }
        self.push(span, StmtKind::Print(args));
        Ok(())
    }

    fn expectation(&mut self, lexer: &mut Lexer<'_>, span: Span, word: Span, above: Above) -> Result<(), Diagnostic> {
        let what = self.expected(lexer)?;
        words::end(lexer)?;
        match (above, self.body.last_mut()) {
            (Above::Verb, Some(Stmt { kind: StmtKind::Do(statement), .. })) => {
                statement.expect = Some(Expect { span, what });
                Ok(())
            }
            (Above::Wrong, _) => Ok(()),
            _ => Err(Diagnostic::new(word, "`expect` has nothing to judge", "a verb just above", "`expect`")),
        }
    }

    fn expected(&self, lexer: &mut Lexer<'_>) -> Result<Expected, Diagnostic> {
        const WHAT: &str = "ok, null, blocked, a number, error KERN_* or panic \"TEXT\"";
        let token = lexer.peek()?.clone();
        let simple = match token.word() {
            Some("ok") => Expected::Ok,
            Some("null") => Expected::Null,
            Some("blocked") => Expected::Blocked,
            Some("error") => {
                lexer.next()?;
                let name = lexer.next()?;
                let word = name.word().unwrap_or_default();
                let error = || {
                    let names = KernReturn::ALL.map(KernReturn::name);
                    Diagnostic::new(name.span, "unknown error", "a KERN_* name", name.describe())
                        .help(format!("they are {}", names.join(" ")))
                };
                return KernReturn::from_name(word).map(Expected::Error).ok_or_else(error);
            }
            Some("panic") => {
                lexer.next()?;
                let text = lexer.next()?;
                return match text.kind {
                    Kind::Text(text) => Ok(Expected::Panic(text)),
                    _ => Err(unexpected(&text, "a string: a part of the panic's message")),
                };
            }
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
                    Err(error) if error.span == token.span => Err(Diagnostic { expected: WHAT.to_owned(), ..error }),
                    other => other.map(Expected::Number),
                };
            }
        };
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
            return Err(Diagnostic::new(word, "an `end` without its `repeat`", "a statement", "`end`"));
        };
        self.scope.loops -= 1;
        let body = std::mem::replace(&mut self.body, block.outer);
        if let Some(count) = block.count {
            self.push(block.span, StmtKind::Repeat { count, body });
        }
        Ok(())
    }
}
