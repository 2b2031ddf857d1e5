//! Judges and binds the result of a statement, once it is known whether an `expect` follows.

use std::sync::Arc;

use vmkern_abi::control::Outcome;

use super::ast::{Do, Expect, Expected, NameId, Runner};
use super::env::Bound;
use super::eval::{Over, Run};
use super::fail::Missed;
use super::outcome::{StepResult, shown};
use super::perform::Called;
use super::started::{Fate, Outstanding, State};
use super::target::{Reply, TargetError};
use super::verbs::{Action, Gives, Judge, Miss, Value};
use crate::guest::ThreadId;

/// What a statement without an `expect` must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judging {
    /// Its result must be ok: a script.
    Strict,
    /// Nothing: the user sees the result, and continues.
    Lenient,
}

/// A place that a value is bound to.
pub(super) type BoundPlace = (NameId, Option<u64>);

/// A statement that was done, and its result.
pub(super) struct Unjudged {
    pub what: Arc<Do>,
    pub runner: Runner,
    pub values: Vec<Value>,
    pub place: Option<BoundPlace>,
    /// The call with its values.
    pub called: Called,
    pub given: Given,
}

/// The result of a statement.
pub(super) enum Given {
    /// An answer, or a panic of the guest.
    Reply(Reply),
    /// It was started: a join will bring the result.
    Started(ThreadId),
}

/// Whether `outcome` is of the kind that `expect` asks for, or ok. Numbers are not compared.
pub(super) fn is_of_kind(expect: Option<&Expect>, outcome: Outcome) -> bool {
    let is_value = matches!(outcome, Outcome::Ok | Outcome::Value(_));
    match expect.map(|expect| &expect.what) {
        None | Some(Expected::Ok) => is_value,
        Some(Expected::Number(_)) => is_value || outcome == Outcome::Null,
        Some(Expected::Null) => outcome == Outcome::Null,
        Some(Expected::Blocked) => matches!(outcome, Outcome::Blocked { .. }),
        Some(Expected::Error(error)) => outcome == Outcome::Error(*error),
        Some(Expected::Panic(_)) => false,
    }
}

impl Run<'_> {
    /// Judges the last statement, by the `expect` below it if there is one.
    pub(super) fn settle(&mut self, expect: Option<&Arc<Expect>>) -> Result<(), Over> {
        // 1. The result. A statement that was only started is judged when it is joined.
        let Some(mut done) = self.unjudged.take() else { return Ok(()) };
        let (outcome, cycles) = match &done.given {
            Given::Started(thread) => {
                if let (Some(started), Some(expect)) = (self.outstanding.get_mut(thread), expect) {
                    started.expect = Some(Arc::clone(expect));
                }
                return Ok(());
            }
            Given::Reply(Reply::Completed { outcome, cycles }) => (*outcome, *cycles),
            // In a loop the user could not react, and no further round could run.
            Given::Reply(Reply::Panicked(_))
                if self.is_forgiven(expect) && self.loops.is_empty() =>
            {
                return Ok(());
            }
            Given::Reply(Reply::Panicked(panic)) => {
                let at = (&*done.what, expect.map(|expect| &**expect));
                return Err(self.panicked(at, panic.clone(), &done.called));
            }
        };
        // 2. A `join` judges the statement that was started, by its own `expect` or that one's.
        let other = match done.what.call.verb.action {
            Action::Host(verb) => verb.judged_by(self, &done.values, expect),
            _ => None,
        };
        let (judge, by) = match &other {
            Some(Judge { what, expect, seen }) => {
                done.called.seen.clone_from(seen);
                (what, expect.as_ref())
            }
            None => (&done.what, expect),
        };
        let judged = if self.is_forgiven(by) {
            Ok(())
        } else {
            self.judge_or_leave(judge, by.map(|expect| &**expect), outcome, &done.called)
        };
        // 3. At a terminal the name is bound all the same.
        if self.judging == Judging::Strict {
            judged?;
            self.cycles = cycles;
            return self.conclude(done, expect, outcome);
        }
        self.cycles = cycles;
        self.conclude(done, expect, outcome).and(judged)
    }

    fn is_forgiven(&self, expect: Option<&Arc<Expect>>) -> bool {
        expect.is_none() && self.judging == Judging::Lenient
    }

    /// Binds the result of a statement that held, or notes that the statement is not over.
    fn conclude(
        &mut self,
        done: Unjudged,
        expect: Option<&Arc<Expect>>,
        outcome: Outcome,
    ) -> Result<(), Over> {
        if let Action::Host(verb) = done.what.call.verb.action {
            return verb.conclude(self, done, outcome);
        }
        let (at, gives) = (done.what.span, done.what.call.verb.gives);
        // A blocked statement's name has no value until the join.
        let place = done.place;
        if let Outcome::Blocked { waits_for } = outcome {
            let Runner::Thread(thread) = done.runner else {
                return Err(self.blocked_nowhere(&done));
            };
            let outstanding = Outstanding {
                what: done.what,
                expect: expect.cloned(),
                state: State::Blocked(waits_for),
                fate: Fate::Join,
                places: Vec::from_iter(place),
                called: done.called,
                order: 0,
            };
            self.outstanding.insert(thread, outstanding);
        }
        self.bind_all(at, place, Bound::new(outcome, gives))
    }

    /// The end of a run in which something is blocked that runs on no thread.
    pub(super) fn blocked_nowhere(&mut self, done: &Unjudged) -> Over {
        let error = TargetError::Broken(
            "an operation that runs on no thread is said to be blocked".to_owned(),
        );
        self.lost(done.what.span, Some(done.called.text()), error)
    }

    /// Whether the result of `what` is the required one: that of `expect`, or ok.
    pub(super) fn judge(
        &mut self,
        what: &Do,
        expect: Option<&Expect>,
        outcome: Outcome,
        called: &Called,
    ) -> Result<(), Over> {
        self.seen.clear();
        // 1. Whether it is what was expected.
        let miss = match what.call.verb.action {
            Action::Host(verb) => verb.miss(outcome),
            _ => None,
        };
        let held = match expect.map(|expect| &expect.what) {
            None | Some(Expected::Ok) if miss.is_some() => false,
            Some(Expected::Number(expr)) => {
                let wanted = self.eval(what.span, expr)?;
                if let Bound::Number(value, _) = Bound::new(outcome, Gives::Number)
                    && value == wanted
                {
                    return Ok(());
                }
                // 2. A number is shown as it was asked for.
                let radix = self.radix(expr);
                let got = match outcome {
                    Outcome::Value(value) => shown(value, radix),
                    _ => StepResult::Given(outcome).to_string(),
                };
                let missed = Missed::call(what, expect, called);
                return Err(self.failed(missed, shown(wanted, radix), got));
            }
            _ => is_of_kind(expect, outcome),
        };
        if held {
            return Ok(());
        }
        // 3. In words, what was expected instead.
        let got = StepResult::Given(outcome).to_string();
        let Miss { expected, got } = match (outcome, miss) {
            (Outcome::Mismatch { addr, want, .. }, _) => {
                Miss { expected: format!("{want:#x} at {addr}"), got }
            }
            (_, Some(miss)) => miss,
            _ => Miss { expected: self.wanted(what.span, expect)?, got },
        };
        Err(self.failed(Missed::call(what, expect, called), expected, got))
    }
}
