//! Runs statements, one after the other.
//!
//! A statement is sent when the one before it has answered and been judged. Nothing is sent ahead:
//! almost every statement can fail, and after a failure the guest must stand exactly as the failing
//! statement left it. While both sides are awake, a call costs no more than the way through two
//! rings.
//!
//! The result of a verb is judged by the statement that follows, if that is an `expect`, and else
//! before anything else happens: see [`super::judge`].

use std::collections::BTreeMap;
use std::sync::Arc;

use vmkern_abi::control::Outcome;

use super::ast::{Expect, Expr, NameId, PrintArg, Stmt, StmtKind};
use super::diagnostic::Diagnostic;
use super::env::{Bound, Env};
use super::fail::Missed;
use super::judge::{Judging, Unjudged};
use super::lexer::Radix;
use super::observe::{Detail, Observer, Seen, TooMuch};
use super::outcome::{Ending, Step, StepResult, number, shown};
use super::random::Random;
use super::source::{Source, Span};
use super::started::Outstanding;
use super::stop::Stop;
use super::target::Target;
use super::verbs::Piece;
use crate::guest::ThreadId;

/// Why a run is over before its last statement. Boxed: it is rare and large.
pub(super) type Over = Box<Ending>;

/// A script that is running.
pub(super) struct Run<'r> {
    /// The text that the statements were made from.
    pub(super) source: Source,
    pub(super) target: &'r mut dyn Target,
    pub(super) env: Env,
    pub(super) random: Random,
    pub(super) stop: &'r Stop,
    pub(super) observer: &'r mut dyn Observer,
    pub(super) judging: Judging,
    /// The statement that was done last, if it has not been judged yet.
    pub(super) unjudged: Option<Unjudged>,
    /// The counters of the `repeat` blocks around the current statement, with their lines.
    pub(super) loops: Vec<(usize, u64)>,
    /// Threads that were blocked or started and are not joined yet.
    pub(super) outstanding: BTreeMap<ThreadId, Outstanding>,
    /// Statements that were started so far.
    pub(super) starts: u64,
    /// Whether some of them may not have begun yet.
    pub(super) unbegun: bool,
    /// The `expect` below the statement that is being done.
    pub(super) below: Option<Arc<Expect>>,
    /// Whether the guest is known to be dead.
    pub(super) is_buried: bool,
    /// Cycles of the last statement that was judged.
    pub(super) cycles: u64,
    /// The terms that were evaluated for the current statement, with their values. A report tells
    /// these: another evaluation could give others.
    pub(super) seen: Vec<(Span, u64)>,
    /// The guest's counters after the step before, for a watcher that wants detail.
    counters: Vec<(&'static str, u64)>,
    /// What `hog` holds.
    pub(super) hogged: Vec<Piece>,
}

impl<'r> Run<'r> {
    /// Nothing run yet.
    pub(super) fn new(
        source: Source,
        target: &'r mut dyn Target,
        seed: u64,
        stop: &'r Stop,
        observer: &'r mut dyn Observer,
    ) -> Self {
        // 1. The guest's counters before the first step.
        let counters = match observer.detail() {
            Detail::Full => target.counters(),
            Detail::Brief => Vec::new(),
        };
        // 2. Nothing is bound, and nothing has run.
        Self {
            source,
            target,
            env: Env::default(),
            random: Random::new(seed),
            stop,
            observer,
            judging: Judging::Strict,
            unjudged: None,
            loops: Vec::new(),
            outstanding: BTreeMap::new(),
            starts: 0,
            unbegun: false,
            below: None,
            is_buried: false,
            cycles: 0,
            seen: Vec::new(),
            counters,
            hogged: Vec::new(),
        }
    }

    /// Binds what is bound before the first line.
    pub(super) fn preset(&mut self, presets: &[(NameId, u64)]) {
        for &(name, value) in presets {
            // Not an element of a series: there is always room.
            let _ = self.env.bind(name, None, Bound::Number(value, Radix::Decimal));
        }
    }

    /// Runs `body`. The result of its last statement is not judged yet: an `expect` may follow.
    pub(super) fn block(&mut self, body: &[Stmt]) -> Result<(), Over> {
        for (number, statement) in body.iter().enumerate() {
            if let StmtKind::Expect(expect) = &statement.kind {
                self.settle(Some(expect))?;
                continue;
            }
            self.settle(None)?;
            self.stop.check().map_err(|error| self.lost(statement.span, None, error))?;
            self.below = match body.get(number + 1).map(|next| &next.kind) {
                Some(StmtKind::Expect(expect)) => Some(Arc::clone(expect)),
                _ => None,
            };
            let done = self.statement(statement);
            self.or_skip(statement, done)?;
        }
        Ok(())
    }

    fn statement(&mut self, statement: &Stmt) -> Result<(), Over> {
        let at = statement.span;
        self.seen.clear();
        match &statement.kind {
            StmtKind::Do(what) => self.perform(what),
            StmtKind::Expect(expect) => self.settle(Some(expect)),
            StmtKind::Let { place, value: expr } => {
                let value = self.eval(at, expr)?;
                let bound = Bound::Number(value, self.radix(expr));
                let place = self.place(at, place)?;
                self.bind(at, place, bound)
            }
            StmtKind::Assert { left, compare, right } => {
                let (a, b) = (self.eval(at, left)?, self.eval(at, right)?);
                if compare.holds(a, b) {
                    return Ok(());
                }
                let text = |expr: &Expr| self.source.text(expr.span).to_owned();
                let expected = format!("{} {} {}", text(left), compare.sign(), text(right));
                let radix = self.radix(left).max(self.radix(right));
                let got = format!("{} and {}", shown(a, radix), shown(b, radix));
                Err(self.failed(Missed::assertion(at, left, right), expected, got))
            }
            StmtKind::Repeat { count, body } => self.repeat(at, count, body),
            StmtKind::Print(args) => self.print(at, args),
        }
    }

    fn repeat(&mut self, at: Span, count: &Expr, body: &[Stmt]) -> Result<(), Over> {
        let count = self.eval(at, count)?;
        self.loops.push((at.line, 0));
        for i in 0..count {
            if let Some(last) = self.loops.last_mut() {
                last.1 = i;
            }
            if body.is_empty() {
                break;
            }
            self.block(body)?;
            // In the loop: a report shows its counter.
            self.settle(None)?;
        }
        self.loops.pop();
        Ok(())
    }

    fn print(&mut self, at: Span, args: &[PrintArg]) -> Result<(), Over> {
        let mut output = String::new();
        for (index, arg) in args.iter().enumerate() {
            if index > 0 {
                output.push(' ');
            }
            match arg {
                PrintArg::Text(text) => output.push_str(text),
                PrintArg::Number(expr) => output.push_str(&number(self.eval(at, expr)?)),
                PrintArg::Hex(expr) => output.push_str(&format!("{:#x}", self.eval(at, expr)?)),
            }
        }
        let result = StepResult::Given(Outcome::Ok);
        let step = Step { output: Some(output), ..Step::plain(at.line, "print", result) };
        self.show(at, step)
    }

    /// Shows a step to the watcher, which may have had enough.
    pub(super) fn show(&mut self, span: Span, mut step: Step) -> Result<(), Over> {
        if self.observer.detail() == Detail::Full {
            step.seen = Some(self.look());
        }
        let end =
            |TooMuch { message, expected }| wrong(Diagnostic::new(span, message, expected, "more"));
        self.observer.step(&step).map_err(end)
    }

    /// The guest as it is, and what is different from the last look.
    fn look(&mut self) -> Seen {
        let counters = self.target.counters();
        let before = std::mem::replace(&mut self.counters, counters);
        let changes = before.iter().zip(&self.counters).filter(|((_, then), (_, now))| then != now);
        let changed = changes
            .map(|(&(name, then), &(_, now))| (name, then, now))
            .filter(|change| change.0 != "ticks");
        let changed = changed.collect();
        let ticks =
            self.counters.iter().find(|(name, _)| *name == "ticks").map_or(0, |&(_, ticks)| ticks);
        Seen { now: self.target.now().unwrap_or(0), ticks, changed }
    }
}

/// The end of a run because of an error that only running shows.
pub(super) fn wrong(error: Diagnostic) -> Over {
    Box::new(Ending::Script(Box::new(error)))
}
