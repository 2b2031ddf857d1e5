//! Lines into statements, statements into blocks. Every name and verb is resolved here, before
//! anything boots.

mod call;
mod keywords;

use std::sync::Arc;

use super::ast::{Expr, NameId, Pace, Script, Stmt, StmtKind};
use super::diagnostic::Diagnostic;
use super::expr::{self, Blanks, unexpected};
use super::guest_line::{self, GuestOptions};
use super::lexer::{Kind, Lexer, Token};
use super::scope::{Form, Scope};
use super::source::{Source, Span};
use super::verbs::Gives;
use super::words::{self, KEYWORDS, SOFT_KEYWORDS};

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

/// The statement above a line, as `expect` sees it.
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
    /// The options of the `guest` line.
    guest: Option<GuestOptions>,
    /// Whether a statement stands above.
    has_begun: bool,
}

/// Whether the word at the lexer's place is followed by what makes it a name that is bound.
fn is_bound(mut lexer: Lexer<'_>) -> bool {
    let is_sign = |token: &Token| token.is("=") || token.is("[");
    lexer.next().is_ok() && lexer.peek().is_ok_and(is_sign)
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

    /// The bindings before the first line.
    pub(super) fn presets(&self) -> &[(NameId, u64)] {
        &self.presets
    }

    /// The names that lines so far have bound.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.scope.bound()
    }

    /// The error if no line follows: a `repeat` is open.
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
    /// The error in it.
    pub(super) fn line(&mut self, number: usize, text: &str) -> Result<(), Diagnostic> {
        let before = (self.above, self.has_begun);
        self.statement_line(number, text).inspect_err(|_| (self.above, self.has_begun) = before)
    }

    /// The options of a `guest` line that was read since the last call.
    pub(super) fn take_guest(&mut self) -> Option<GuestOptions> {
        self.guest.take()
    }

    /// From now on a `guest` line may follow, as if no statement stood above.
    pub(super) fn begin_again(&mut self) {
        self.has_begun = false;
    }

    /// The line of the first `repeat` that is open.
    pub(super) fn first_open(&self) -> Option<usize> {
        self.blocks.first().map(|block| block.span.line)
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

    /// After an error in `text`: continues as if the line had been right, so that one mistake is
    /// reported once.
    fn recover(&mut self, number: usize, text: &str) {
        (self.above, self.has_begun) = (Above::Wrong, true);
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
        // Whatever the line should bind: its use is not a second error.
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
