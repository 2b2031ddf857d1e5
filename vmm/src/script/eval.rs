//! Runs a script, one statement at a time.
//!
//! A statement is sent when the one before it has answered and been judged. Nothing is sent ahead: almost every
//! statement can fail, and after a failure the guest must stand exactly as the failing statement left it. While both
//! sides are awake, a call costs no more than the way through two rings.

use std::collections::BTreeMap;

use vmkern_abi::control::Outcome;

use super::ast::{Expr, PrintArg, Runner, Script, Stmt, StmtKind, ThreadId};
use super::diagnostic::Diagnostic;
use super::env::{Bound, Env};
use super::outcome::{Ending, Step, StepResult, number};
use super::perform::Outstanding;
use super::random::Random;
use super::stop::Stop;
use super::target::Target;

/// Runs `script` on `target`. Each finished statement is shown to `observe`.
pub fn run(script: &Script, target: &mut dyn Target, seed: u64, stop: &Stop, observe: &mut dyn FnMut(&Step)) -> Ending {
    let env = Env::new(script.names.len());
    let random = Random::new(seed);
    let mut run = Run { script, target, env, random, stop, observe, loops: Vec::new(), blocked: BTreeMap::new() };
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
    pub(super) observe: &'r mut dyn FnMut(&Step),
    /// The counters of the `repeat` blocks around the current statement, with their lines.
    pub(super) loops: Vec<(usize, u64)>,
    /// Threads that were blocked and are not joined yet.
    pub(super) blocked: BTreeMap<ThreadId, Outstanding>,
}

impl Run<'_> {
    fn block(&mut self, body: &[Stmt]) -> Result<(), Over> {
        for statement in body {
            self.stop.check().map_err(|error| self.lost(statement, None, error))?;
            self.statement(statement)?;
        }
        Ok(())
    }

    fn statement(&mut self, statement: &Stmt) -> Result<(), Over> {
        match &statement.kind {
            StmtKind::Do(what) => self.perform(statement, what),
            StmtKind::Let { place, value } => {
                let value = self.eval(statement, value)?;
                let (name, index) = self.place(statement, place)?;
                self.env.bind(name, index, Bound::Number(value));
                Ok(())
            }
            StmtKind::Assert { left, compare, right } => {
                let (a, b) = (self.eval(statement, left)?, self.eval(statement, right)?);
                if compare.holds(a, b) {
                    return Ok(());
                }
                let text = |expr: &Expr| self.script.source.text(expr.span).to_owned();
                let expected = format!("{} {} {}", text(left), compare.sign(), text(right));
                let got = format!("{} and {}", number(a), number(b));
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
            }
        }
        let result = StepResult::Given(Outcome::Ok);
        let line = statement.span.line;
        let (runner, output) = (Runner::DEFAULT, Some(output));
        (self.observe)(&Step { line, runner, verb: "print", result, cycles: 0, output });
        Ok(())
    }
}

/// The end of a run because of an error that only running shows.
pub(super) fn wrong(error: Diagnostic) -> Over {
    Box::new(Ending::Script(Box::new(error)))
}
