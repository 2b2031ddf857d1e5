//! Failure reports.

use super::ast::{Arg, Call, Do, Expect, Expected, Expr, Term};
use super::eval::{Over, Run};
use super::outcome::{Ending, Failure, shown};
use super::perform::Called;
use super::show::names;
use super::source::Span;
use super::started::State;
use super::target::TargetError;

/// A statement whose result is not the required one: its place, the line that requires the result,
/// and the terms whose values a reader would want to know.
pub(super) struct Missed<'s> {
    statement: Span,
    /// The `expect` below it, or the statement itself.
    span: Span,
    terms: Vec<&'s Term>,
    /// The call with its values.
    called: Option<&'s Called>,
}

impl<'s> Missed<'s> {
    /// An assertion that does not hold.
    pub fn assertion(span: Span, left: &'s Expr, right: &'s Expr) -> Self {
        let mut terms = Vec::new();
        names(left, &mut terms);
        names(right, &mut terms);
        Self { statement: span, span, terms, called: None }
    }

    /// A verb, judged by its `expect` if there is one.
    pub fn call(what: &'s Do, expect: Option<&'s Expect>, called: &'s Called) -> Self {
        let mut terms = Vec::new();
        numbers(&what.call, &mut terms);
        if let Some(Expect { what: Expected::Number(expr), .. }) = expect {
            names(expr, &mut terms);
        }
        let span = expect.map_or(what.span, |expect| expect.span);
        Self { statement: what.span, span, terms, called: Some(called) }
    }
}

impl Run<'_> {
    /// The required result of a statement, in words.
    pub(super) fn wanted(&mut self, at: Span, expect: Option<&Expect>) -> Result<String, Over> {
        Ok(match expect.map(|expect| &expect.what) {
            None | Some(Expected::Ok) => "ok".to_owned(),
            Some(Expected::Null) => "null".to_owned(),
            Some(Expected::Blocked) => "blocked".to_owned(),
            Some(Expected::Error(error)) => format!("error {error}"),
            Some(Expected::Panic(text)) => format!("panic {text:?}"),
            Some(Expected::Number(expr)) => shown(self.eval(at, expr)?, self.radix(expr)),
        })
    }

    pub(super) fn failed(&self, missed: Missed<'_>, expected: String, got: String) -> Over {
        Box::new(Ending::Failed(Box::new(self.failure(missed, expected, got))))
    }

    /// The end of a run whose statement at `span` has no answer.
    pub(super) fn lost(&mut self, span: Span, called: Option<String>, error: TargetError) -> Over {
        let (expected, got) = match &error {
            TargetError::Interrupted => return Box::new(Ending::Interrupted),
            TargetError::Timeout { limit, at } => {
                let got = at
                    .as_ref()
                    .map_or("none".to_owned(), |at| format!("none; the guest was stopped at {at}"));
                (format!("an end within {limit:?}"), got)
            }
            TargetError::Unable(got) => ("ok".to_owned(), got.clone()),
            TargetError::Host(got) => ("a host that can run guests".to_owned(), got.clone()),
            TargetError::Broken(got) => {
                ("a VMM and a guest that keep their contract".to_owned(), got.clone())
            }
        };
        let mut values = self.sleepers();
        values.extend(self.target.threads());
        let failure = Box::new(Failure { span, statement: span, expected, got, called, values });
        Box::new(match error {
            TargetError::Timeout { .. } => Ending::Timeout(failure),
            TargetError::Unable(_) => Ending::Failed(failure),
            TargetError::Host(_) => Ending::Host(failure),
            TargetError::Interrupted | TargetError::Broken(_) => Ending::Broken(failure),
        })
    }

    /// The blocked threads, with what they were blocked by and wait for.
    pub(super) fn sleepers(&self) -> Vec<(String, String)> {
        let sleepers = self.outstanding.iter().map(|(thread, sleeper)| {
            let line = sleeper.what.span.line;
            let text = match &sleeper.state {
                State::Started => format!("started by line {line}, and not joined"),
                State::Blocked(waits_for) => {
                    format!("blocked by line {line}, waits for \"{waits_for}\"")
                }
            };
            (thread.to_string(), text)
        });
        sleepers.collect()
    }

    /// The report on a statement whose result is not the required one, with the values that its
    /// terms had when they were evaluated.
    pub(super) fn failure(&self, missed: Missed<'_>, expected: String, got: String) -> Failure {
        let Missed { statement, span, terms, called } = missed;
        // 1. The values. A name that had two has a line for each.
        let of_call = called.map_or(&[][..], |called| &called.seen);
        let seen = |term: &Term| {
            let mut seen = self.seen.iter().chain(of_call);
            seen.find(|(span, _)| *span == term.span).map(|&(_, value)| value)
        };
        let mut values: Vec<(String, String)> = Vec::new();
        for term in terms {
            let Some(value) = seen(term) else { continue };
            let radix = self.radix(&Expr::from(term.clone()));
            let row = (self.source.text(term.span).to_owned(), shown(value, radix));
            if !values.contains(&row) {
                values.push(row);
            }
        }
        // 2. Where it stands: in which round of each loop, beside which threads that sleep.
        let loops = self
            .loops
            .iter()
            .map(|(line, i)| (format!("$i of the repeat on line {line}"), i.to_string()));
        values.extend(loops);
        values.extend(self.sleepers());
        let called = called.map(Called::text);
        Failure { span, statement, expected, got, called, values }
    }
}

/// The terms of a call's numbers.
fn numbers<'c>(call: &'c Call, into: &mut Vec<&'c Term>) {
    for arg in &call.args {
        match arg {
            Arg::Number(expr)
            | Arg::Seed(expr)
            | Arg::Bytes(expr)
            | Arg::Leave(expr)
            | Arg::Chunk(Some(expr)) => names(expr, into),
            Arg::Call(inner) => numbers(inner, into),
            Arg::What(what) => what.numbers().for_each(|expr| names(expr, into)),
            Arg::Map(_)
            | Arg::Chunk(None)
            | Arg::Flags(_)
            | Arg::Zero
            | Arg::Kind(_)
            | Arg::Allows(_)
            | Arg::Thread(_)
            | Arg::File(_)
            | Arg::Fail(_) => {}
        }
    }
}
