//! Runs a script, one statement at a time.
//!
//! A statement is sent when the one before it has answered and been judged. Nothing is sent ahead:
//! almost every statement can fail, and after a failure the guest must stand exactly as the failing
//! statement left it. While both sides are awake, a call costs no more than the way through two
//! rings.

use std::collections::BTreeMap;

use vmkern_abi::control::Outcome;

use super::ast::{Expr, PrintArg, Script, Stmt, StmtKind, ThreadId};
use super::diagnostic::Diagnostic;
use super::env::{Bound, Env};
use super::lexer::Radix;
use super::observe::{Detail, Observer, Seen, TooMuch};
use super::outcome::{Ending, Step, StepResult, number, shown};
use super::random::Random;
use super::source::Span;
use super::started::Outstanding;
use super::stop::Stop;
use super::target::Target;

/// Runs `script` on `target`. Each finished statement is shown to `observer`.
pub fn run(
    script: &Script,
    target: &mut dyn Target,
    seed: u64,
    stop: &Stop,
    observer: &mut dyn Observer,
) -> Ending {
    let mut env = Env::new(script.names.len());
    for &(name, value) in &script.presets {
        // No element of a series.
        let _ = env.bind(name, None, Bound::Number(value, Radix::Decimal));
    }
    let counters = match observer.detail() {
        Detail::Full => target.counters(),
        Detail::Brief => Vec::new(),
    };
    let mut run = Run {
        script,
        target,
        env,
        random: Random::new(seed),
        stop,
        observer,
        loops: Vec::new(),
        outstanding: BTreeMap::new(),
        starts: 0,
        unbegun: false,
        cycles: 0,
        counters,
    };
    match run.block(&script.body).and_then(|()| run.end()) {
        Ok(()) => Ending::Finished,
        Err(ending) => *ending,
    }
}

/// Why a run is over before its last statement. Boxed: it is rare and large.
pub(super) type Over = Box<Ending>;

/// A script on its way.
pub(super) struct Run<'r> {
    pub(super) script: &'r Script,
    pub(super) target: &'r mut dyn Target,
    pub(super) env: Env,
    pub(super) random: Random,
    pub(super) stop: &'r Stop,
    pub(super) observer: &'r mut dyn Observer,
    /// The counters of the `repeat` blocks around the current statement, with their lines.
    pub(super) loops: Vec<(usize, u64)>,
    /// Threads that were blocked or started and are not joined yet.
    pub(super) outstanding: BTreeMap<ThreadId, Outstanding<'r>>,
    /// Statements that were started so far.
    pub(super) starts: u64,
    /// Whether some of them may not have begun yet.
    pub(super) unbegun: bool,
    /// Cycles of the last statement that was judged.
    pub(super) cycles: u64,
    /// The guest's counters after the step before, for a watcher that wants detail.
    counters: Vec<(&'static str, u64)>,
}

impl<'r> Run<'r> {
    fn block(&mut self, body: &'r [Stmt]) -> Result<(), Over> {
        for statement in body {
            self.stop.check().map_err(|error| self.lost(statement, None, error))?;
            self.statement(statement)?;
        }
        Ok(())
    }

    fn statement(&mut self, statement: &'r Stmt) -> Result<(), Over> {
        match &statement.kind {
            StmtKind::Do(what) => self.perform(statement, what),
            StmtKind::Let { place, value: expr } => {
                let value = self.eval(statement, expr)?;
                let bound = Bound::Number(value, self.radix(expr));
                let place = self.place(statement, place)?;
                self.bind(statement.span, place, bound)
            }
            StmtKind::Assert { left, compare, right } => {
                let (a, b) = (self.eval(statement, left)?, self.eval(statement, right)?);
                if compare.holds(a, b) {
                    return Ok(());
                }
                let text = |expr: &Expr| self.script.source.text(expr.span).to_owned();
                let expected = format!("{} {} {}", text(left), compare.sign(), text(right));
                let radix = self.radix(left).max(self.radix(right));
                let got = format!("{} and {}", shown(a, radix), shown(b, radix));
                Err(self.failed(statement, expected, got, None))
            }
            StmtKind::Repeat { count, body } => {
                let count = self.eval(statement, count)?;
                self.loops.push((statement.span.line, 0));
                for i in 0..count {
                    if let Some(last) = self.loops.last_mut() {
                        last.1 = i;
                    }
                    if body.is_empty() {
                        break;
                    }
                    self.block(body)?;
                }
                self.loops.pop();
                Ok(())
            }
            StmtKind::Print(args) => self.print(statement, args),
        }
    }

    fn print(&mut self, statement: &Stmt, args: &[PrintArg]) -> Result<(), Over> {
        let mut output = String::new();
        for (index, arg) in args.iter().enumerate() {
            if index > 0 {
                output.push(' ');
            }
            match arg {
                PrintArg::Text(text) => output.push_str(text),
                PrintArg::Number(expr) => output.push_str(&number(self.eval(statement, expr)?)),
                PrintArg::Hex(expr) => {
                    output.push_str(&format!("{:#x}", self.eval(statement, expr)?))
                }
            }
        }
        let result = StepResult::Given(Outcome::Ok);
        let step =
            Step { output: Some(output), ..Step::plain(statement.span.line, "print", result) };
        self.show(statement.span, step)
    }

    /// Shows a step to the watcher, who may have had enough.
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
