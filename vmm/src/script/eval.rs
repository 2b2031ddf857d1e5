//! Runs a script, one statement at a time.
//!
//! A statement is sent when the one before it has answered and been judged. Nothing is sent ahead: almost every
//! statement can fail, and after a failure the guest must stand exactly as the failing statement left it. While both
//! sides are awake, a call costs no more than the way through two rings.

use std::collections::BTreeMap;

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{Op, Outcome};

use super::ast::{Arg, Do, Expected, Expr, Place, PrintArg, Script, Stmt, StmtKind, Term, TermKind, ThreadId};
use super::diagnostic::Diagnostic;
use super::env::{Bound, Env};
use super::outcome::{Ending, Failure, Step, StepResult, number};
use super::random::Random;
use super::show::{call, names};
use super::source::Span;
use super::stop::Stop;
use super::target::{Panic, Reply, Target, TargetError};
use super::verbs::Value;

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
type Over = Box<Ending>;

/// A statement whose thread sleeps.
struct Outstanding {
    span: Span,
    waits_for: String,
}

struct Run<'r> {
    script: &'r Script,
    target: &'r mut dyn Target,
    env: Env,
    random: Random,
    stop: &'r Stop,
    observe: &'r mut dyn FnMut(&Step),
    /// The counters of the `repeat` blocks around the current statement, with their lines.
    loops: Vec<(usize, u64)>,
    blocked: BTreeMap<ThreadId, Outstanding>,
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
                self.bind(statement, place, Bound::Number(value))
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
        let (thread, output) = (ThreadId::FIRST, Some(output));
        (self.observe)(&Step { line, thread, verb: "print", result, cycles: 0, output });
        Ok(())
    }

    fn perform(&mut self, statement: &Stmt, what: &Do) -> Result<(), Over> {
        if let Some(outstanding) = self.blocked.get(&what.thread) {
            let thread = what.thread;
            let message = format!("{thread} is still blocked by line {}", outstanding.span.line);
            let found = format!("{thread} waits for \"{}\"", outstanding.waits_for);
            let error = Diagnostic::new(statement.span, message, format!("`join {thread}` first"), found);
            return Err(Box::new(Ending::Script(Box::new(error))));
        }
        let mut values = Vec::with_capacity(what.args.len());
        for arg in &what.args {
            values.push(match arg {
                Arg::Map(map) => Value::Map(*map),
                Arg::Number(expr) => Value::Number(self.eval(statement, expr)?),
                Arg::Flags(flags) => Value::Flags(*flags),
                Arg::Zero => Value::Zero,
            });
        }
        let op = what.verb.build.and_then(|build| build(&values)).ok_or_else(|| {
            let error = TargetError::Broken(format!("`{}` makes no operation", what.verb.name));
            self.lost(statement, Some(call(what, &values)), error)
        })?;
        let reply = self
            .target
            .execute(what.thread, op)
            .map_err(|error| self.lost(statement, Some(call(what, &values)), error))?;
        let (result, cycles) = match &reply {
            Reply::Completed { outcome, cycles } => (StepResult::Given(*outcome), *cycles),
            Reply::Blocked { waits_for } => (StepResult::Blocked(waits_for.clone()), 0),
            Reply::Panicked(panic) => (StepResult::Panicked(panic.message.clone()), 0),
        };
        let line = statement.span.line;
        let (thread, verb) = (what.thread, what.verb.name);
        let step = Step { line, thread, verb, result, cycles, output: None };
        (self.observe)(&step);
        if let (Op::Vtop { addr }, Reply::Completed { outcome, .. }) = (op, &reply) {
            self.witness(addr, *outcome).map_err(|error| self.lost(statement, Some(call(what, &values)), error))?;
        }
        match reply {
            Reply::Completed { outcome, .. } => {
                self.judge(statement, what, outcome, &step.result, &values)?;
                what.bind.as_ref().map_or(Ok(()), |place| self.bind(statement, place, outcome.into()))
            }
            Reply::Blocked { waits_for } => {
                if !matches!(&what.expect, Some(expect) if matches!(expect.what, Expected::Blocked)) {
                    let expected = self.wanted(statement, what)?;
                    return Err(self.failed(statement, expected, step.result.to_string(), Some(call(what, &values))));
                }
                self.blocked.insert(what.thread, Outstanding { span: statement.span, waits_for });
                Ok(())
            }
            Reply::Panicked(panic) => Err(self.panicked(statement, what, panic, &values)),
        }
    }

    /// The host's own walk of the page tables must agree with the guest's.
    fn witness(&mut self, addr: GuestVirt, outcome: Outcome) -> Result<(), TargetError> {
        let seen = self.target.vtop(addr)?.map(|phys| phys.get());
        let said = match outcome {
            Outcome::Value(phys) => Some(phys),
            _ => None,
        };
        if seen == said {
            return Ok(());
        }
        let show = |phys: Option<u64>| phys.map_or("nothing".to_owned(), |phys| format!("{phys:#x}"));
        let (seen, said) = (show(seen), show(said));
        Err(TargetError::Broken(format!(
            "the guest finds {said} behind {addr}, the host's walk of its page tables {seen}"
        )))
    }

    fn judge(
        &mut self,
        statement: &Stmt,
        what: &Do,
        outcome: Outcome,
        result: &StepResult,
        values: &[Value],
    ) -> Result<(), Over> {
        let held = match what.expect.as_ref().map(|expect| &expect.what) {
            None | Some(Expected::Ok) => matches!(outcome, Outcome::Ok | Outcome::Value(_)),
            Some(Expected::Null) => outcome == Outcome::Null,
            Some(Expected::Blocked | Expected::Panic(_)) => false,
            Some(Expected::Error(error)) => outcome == Outcome::Error(*error),
            Some(Expected::Number(expr)) => {
                let wanted = self.eval(statement, expr)?;
                if Bound::from(outcome) == Bound::Number(wanted) {
                    return Ok(());
                }
                let got = result.to_string();
                return Err(self.failed(statement, format!("{wanted:#x}"), got, Some(call(what, values))));
            }
        };
        if held {
            return Ok(());
        }
        let expected = match outcome {
            Outcome::Mismatch { addr, want, .. } => format!("{want:#x} at {addr}"),
            _ => self.wanted(statement, what)?,
        };
        Err(self.failed(statement, expected, result.to_string(), Some(call(what, values))))
    }

    /// What a statement must give, in words.
    fn wanted(&mut self, statement: &Stmt, what: &Do) -> Result<String, Over> {
        Ok(match what.expect.as_ref().map(|expect| &expect.what) {
            None | Some(Expected::Ok) => "ok".to_owned(),
            Some(Expected::Null) => "null".to_owned(),
            Some(Expected::Blocked) => "blocked".to_owned(),
            Some(Expected::Error(error)) => format!("error {error}"),
            Some(Expected::Panic(text)) => format!("panic {text:?}"),
            Some(Expected::Number(expr)) => format!("{:#x}", self.eval(statement, expr)?),
        })
    }

    fn panicked(&mut self, statement: &Stmt, what: &Do, panic: Box<Panic>, values: &[Value]) -> Over {
        if let Some(Expected::Panic(text)) = what.expect.as_ref().map(|expect| &expect.what)
            && panic.message.contains(text.as_str())
        {
            return Box::new(Ending::ExpectedPanic(panic));
        }
        let expected = match self.wanted(statement, what) {
            Ok(expected) => expected,
            Err(over) => return over,
        };
        let got = format!("panic {:?}", panic.message);
        let failure = self.failure(statement, expected, got, Some(call(what, values)));
        Box::new(Ending::Panicked(panic, Box::new(failure)))
    }

    /// The end of the script.
    fn end(&mut self) -> Result<(), Over> {
        let Some((thread, outstanding)) = self.blocked.pop_first() else { return Ok(()) };
        let expected = format!("{thread} joined or abandoned before the end");
        let got = format!("{thread} still waits for \"{}\"", outstanding.waits_for);
        let (span, called, values) = (outstanding.span, None, Vec::new());
        let failure = Failure { span, statement: span, expected, got, called, values };
        Err(Box::new(Ending::Failed(Box::new(failure))))
    }

    fn bind(&mut self, statement: &Stmt, place: &Place, value: Bound) -> Result<(), Over> {
        let index = place.index.as_ref().map(|index| self.eval(statement, index)).transpose()?;
        self.env.bind(place.name, index, value);
        Ok(())
    }

    fn eval(&mut self, statement: &Stmt, expr: &Expr) -> Result<u64, Over> {
        let mut value = self.term(statement, &expr.first)?;
        let mut span = expr.first.span;
        for (operator, term) in &expr.rest {
            let right = self.term(statement, term)?;
            span = span.to(term.span);
            value = operator.apply(value, right).ok_or_else(|| {
                let found = format!("{value} {} {right}", operator.sign());
                let message = format!("{found} is no unsigned 64-bit number");
                wrong(Diagnostic::new(span, message, "a result from 0 to 2^64-1", found))
            })?;
        }
        Ok(value)
    }

    fn term(&mut self, statement: &Stmt, term: &Term) -> Result<u64, Over> {
        let target =
            |run: &mut Self, result: Result<u64, TargetError>| result.map_err(|error| run.lost(statement, None, error));
        match &term.kind {
            TermKind::Number(value) => Ok(*value),
            TermKind::PageSize => Ok(PAGE_SIZE),
            TermKind::LoopIndex => Ok(self.loops.last().map_or(0, |&(_, i)| i)),
            TermKind::Group(inner) => self.eval(statement, inner),
            TermKind::Counter(name) => {
                let value = self.target.counter(name);
                target(self, value)
            }
            TermKind::MapField(map, field) => {
                let value = self.target.map_field(*map, *field);
                target(self, value)
            }
            TermKind::Rand(low, high) => {
                let (low, high) = (self.eval(statement, low)?, self.eval(statement, high)?);
                if low > high {
                    let found = format!("rand({low},{high})");
                    let message = format!("{found} has nothing to draw from");
                    return Err(wrong(Diagnostic::new(term.span, message, "LO not above HI", found)));
                }
                Ok(self.random.between(low, high))
            }
            TermKind::Value(name) => self.bound(term, self.env.get(*name, None), None),
            TermKind::Element(name, index) => {
                let index = self.eval(statement, index)?;
                self.bound(term, self.env.get(*name, Some(index)), Some(index))
            }
        }
    }

    fn bound(&self, term: &Term, value: Option<Bound>, index: Option<u64>) -> Result<u64, Over> {
        let shown = self.script.source.text(term.span);
        let index = index.map_or(String::new(), |index| format!(" (index {index})"));
        let message = match value {
            Some(Bound::Number(value)) => return Ok(value),
            None => format!("`{shown}`{index} has not been bound"),
            Some(Bound::Other(outcome)) => {
                format!("`{shown}`{index} is no number: its statement gave {}", StepResult::Given(outcome))
            }
        };
        Err(wrong(Diagnostic::new(term.span, message, "a bound number", format!("`{shown}`"))))
    }

    fn failed(&mut self, statement: &Stmt, expected: String, got: String, called: Option<String>) -> Over {
        Box::new(Ending::Failed(Box::new(self.failure(statement, expected, got, called))))
    }

    fn lost(&mut self, statement: &Stmt, called: Option<String>, error: TargetError) -> Over {
        let failure = |expected: String, got: String| {
            let (span, values) = (statement.span, Vec::new());
            Box::new(Failure { span, statement: span, expected, got, called, values })
        };
        Box::new(match error {
            TargetError::Interrupted => Ending::Interrupted,
            TargetError::Timeout { limit, at } => {
                let got = at.map_or("none".to_owned(), |at| format!("none; the guest was stopped at {at}"));
                Ending::Timeout(failure(format!("an end within {limit:?}"), got))
            }
            TargetError::Broken(got) => {
                Ending::Broken(failure("a VMM and a guest that keep their contract".to_owned(), got))
            }
        })
    }

    fn failure(&mut self, statement: &Stmt, expected: String, got: String, called: Option<String>) -> Failure {
        let mut terms = Vec::new();
        match &statement.kind {
            StmtKind::Do(what) => {
                for arg in &what.args {
                    if let Arg::Number(expr) = arg {
                        names(expr, &mut terms);
                    }
                }
                if let Some(Expected::Number(expr)) = what.expect.as_ref().map(|expect| &expect.what) {
                    names(expr, &mut terms);
                }
            }
            StmtKind::Assert { left, right, .. } => {
                names(left, &mut terms);
                names(right, &mut terms);
            }
            StmtKind::Let { .. } | StmtKind::Repeat { .. } | StmtKind::Print(_) => {}
        }
        let mut values: Vec<(String, String)> = Vec::new();
        for term in terms {
            let name = self.script.source.text(term.span).to_owned();
            if !values.iter().any(|(known, _)| *known == name)
                && let Ok(value) = self.term(statement, term)
            {
                values.push((name, number(value)));
            }
        }
        let loops = self.loops.iter().map(|(line, i)| (format!("$i of the repeat on line {line}"), i.to_string()));
        values.extend(loops);
        let span = match &statement.kind {
            StmtKind::Do(what) => what.expect.as_ref().map_or(statement.span, |expect| expect.span),
            _ => statement.span,
        };
        Failure { span, statement: statement.span, expected, got, called, values }
    }
}

fn wrong(error: Diagnostic) -> Over {
    Box::new(Ending::Script(Box::new(error)))
}
