//! Statements that the guest does: sent, judged, bound; and the threads that such a statement may leave blocked.

use std::path::Path;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::{Context, Op, Outcome, WaitMessage};

use super::ast::{Do, Expected, NameId, Runner, Stmt, ThreadId};
use super::diagnostic::Diagnostic;
use super::env::Bound;
use super::eval::{Over, Run, wrong};
use super::look::Look;
use super::outcome::{Ending, Failure, Step, StepResult};
use super::show;
use super::source::Span;
use super::target::{Panic, Reply, TargetError};
use super::verbs::{Action, Gives, Value};
use crate::Report;

/// What the script has in mind for a blocked thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It will be joined.
    Join,
    /// It is meant to stay blocked.
    Abandoned,
}

/// A statement whose thread sleeps.
pub(super) struct Outstanding {
    pub span: Span,
    pub waits_for: WaitMessage,
    fate: Fate,
    /// Where its result goes, by itself and by joins that found it blocked still.
    places: Vec<(NameId, Option<u64>)>,
    gives: Gives,
}

/// The reply to what takes no time in the guest.
const DONE: Reply = Reply::Completed { outcome: Outcome::Ok, cycles: 0 };

/// What a statement asks of the target.
enum Request {
    /// An operation.
    Execute(Context, Op),
    /// The answer of a thread that was blocked.
    Join(ThreadId),
    /// Nothing, and it gives ok.
    Nothing,
    /// A memory image in this file.
    Dump(String),
    /// A check of all memory.
    Check,
    /// What there is to see.
    Inspect(Look),
}

impl Run<'_> {
    pub(super) fn perform(&mut self, statement: &Stmt, what: &Do) -> Result<(), Over> {
        // What the script itself does takes a thread only where it names one.
        let ours = !matches!(what.call.verb.action, Action::Operation(_));
        let runner = what.runner.or((!ours).then_some(Runner::DEFAULT));
        if let Some(Runner::Thread(thread)) = runner {
            self.check_free(statement, thread)?;
        }
        let place = what.bind.as_ref().map(|place| self.place(statement, place)).transpose()?;
        let values = self.values(statement, &what.call)?;
        let called = show::call(&what.call, &values, &self.script.source);
        let (runner, request) = self.request(statement, what, &values)?;
        let mut output = None;
        let reply = match request {
            Request::Execute(context, op) => self.target.execute(context, op),
            Request::Join(thread) => {
                let op = Op::Join { thread: thread.number() };
                self.target.execute(Context::Thread(thread.number()), op)
            }
            Request::Nothing => Ok(DONE),
            Request::Dump(ref file) => {
                self.target.dump(Path::new(file), self.script.source.name(), self.stop).map(|()| DONE)
            }
            Request::Check => self.target.check().map(|report| {
                output = told(&report);
                Reply::Completed { outcome: counted(&report), cycles: 0 }
            }),
            Request::Inspect(ref look) => self.target.inspect(self.script.source.name(), look).map(|text| {
                output = Some(text);
                DONE
            }),
        };
        let reply = reply.map_err(|error| self.lost(statement, Some(called.clone()), error))?;
        let (result, cycles) = match &reply {
            Reply::Completed { outcome, cycles } => (StepResult::Given(*outcome), *cycles),
            Reply::Panicked(panic) => (StepResult::Panicked(panic.message.clone()), 0),
        };
        let (line, verb) = (statement.span.line, what.call.verb.name);
        let step = Step { line, runner, verb, result, cycles, output };
        (self.observe)(&step);
        let outcome = match reply {
            Reply::Completed { outcome, .. } => outcome,
            Reply::Panicked(panic) => return Err(self.panicked(statement, what, panic, called)),
        };
        if let Request::Execute(_, Op::Vtop { addr }) = request {
            self.witness(addr, outcome).map_err(|error| self.lost(statement, Some(called.clone()), error))?;
        }
        self.judge(statement, what, outcome, &step.result, called.clone())?;
        let gives = what.call.verb.gives;
        match (outcome, request) {
            (Outcome::Blocked { waits_for }, Request::Join(thread)) => {
                if let Some(outstanding) = self.blocked.get_mut(&thread) {
                    outstanding.waits_for = waits_for;
                    outstanding.fate = Fate::Join;
                    outstanding.places.extend(place);
                }
            }
            (Outcome::Blocked { waits_for }, Request::Execute(Context::Thread(number), _)) => {
                let (span, fate, places) = (statement.span, Fate::Join, Vec::from_iter(place));
                let outstanding = Outstanding { span, waits_for, fate, places, gives };
                self.blocked.insert(ThreadId(number), outstanding);
            }
            (
                Outcome::Blocked { .. },
                Request::Execute(..) | Request::Nothing | Request::Dump(_) | Request::Check | Request::Inspect(_),
            ) => {
                let error = TargetError::Broken("what runs on no thread is said to be blocked".to_owned());
                return Err(self.lost(statement, Some(called), error));
            }
            (_, Request::Join(thread)) => {
                if let Some(outstanding) = self.blocked.remove(&thread) {
                    for (name, index) in outstanding.places.into_iter().chain(place) {
                        self.env.bind(name, index, Bound::new(outcome, outstanding.gives));
                    }
                }
                return Ok(());
            }
            (_, Request::Execute(..) | Request::Nothing | Request::Dump(_) | Request::Inspect(_)) => {}
            // As a number, no findings are 0.
            (Outcome::Ok, Request::Check) => {
                if let Some((name, index)) = place {
                    self.env.bind(name, index, Bound::Number(0));
                }
                return Ok(());
            }
            (_, Request::Check) => {}
        }
        // A blocked statement's name has no value until the join.
        if let Some((name, index)) = place {
            self.env.bind(name, index, Bound::new(outcome, gives));
        }
        Ok(())
    }

    /// What `what` asks of the target, and on whose behalf.
    fn request(&mut self, statement: &Stmt, what: &Do, values: &[Value]) -> Result<(Runner, Request), Over> {
        let runner = what.runner.unwrap_or(Runner::DEFAULT);
        match (what.call.verb.action, values) {
            (Action::OnLowmem, [Value::Op(op, _)]) => Ok((runner, Request::Execute(Context::Lowmem, *op))),
            (Action::Join, &[Value::Thread(thread)]) => {
                self.outstanding(statement, thread)?;
                Ok((Runner::Thread(thread), Request::Join(thread)))
            }
            (Action::Abandon, &[Value::Thread(thread)]) => {
                self.outstanding(statement, thread)?.fate = Fate::Abandoned;
                Ok((Runner::Thread(thread), Request::Nothing))
            }
            (Action::Check, []) => Ok((runner, Request::Check)),
            (Action::Dump, [Value::File(file)]) => Ok((runner, Request::Dump(file.clone()))),
            (Action::Inspect, [Value::Look(look)]) => Ok((runner, Request::Inspect(look.clone()))),
            _ => {
                let op = self.operation(statement, &what.call, values)?;
                Ok((runner, Request::Execute(runner.context(), op)))
            }
        }
    }

    /// A blocked thread takes no statement.
    fn check_free(&self, statement: &Stmt, thread: ThreadId) -> Result<(), Over> {
        let Some(Outstanding { span, waits_for, .. }) = self.blocked.get(&thread) else { return Ok(()) };
        let message = format!("{thread} is still blocked by line {}: it waits for \"{waits_for}\"", span.line);
        let found = format!("{thread} waits for \"{waits_for}\"");
        Err(wrong(Diagnostic::new(statement.span, message, format!("`join {thread}` first"), found)))
    }

    /// The statement that `thread` is blocked in.
    fn outstanding(&mut self, statement: &Stmt, thread: ThreadId) -> Result<&mut Outstanding, Over> {
        let error = || {
            let found = format!("{thread} is not blocked");
            let message = format!("{found}: each statement of it has given its result");
            wrong(Diagnostic::new(statement.span, message, "a thread whose statement was blocked", found))
        };
        self.blocked.get_mut(&thread).ok_or_else(error)
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
        called: String,
    ) -> Result<(), Over> {
        let held = match what.expect.as_ref().map(|expect| &expect.what) {
            None | Some(Expected::Ok) if matches!(what.call.verb.action, Action::Check) => outcome == Outcome::Ok,
            None | Some(Expected::Ok) => matches!(outcome, Outcome::Ok | Outcome::Value(_)),
            Some(Expected::Null) => outcome == Outcome::Null,
            Some(Expected::Blocked) => matches!(outcome, Outcome::Blocked { .. }),
            Some(Expected::Panic(_)) => false,
            Some(Expected::Error(error)) => outcome == Outcome::Error(*error),
            Some(Expected::Number(expr)) => {
                let wanted = self.eval(statement, expr)?;
                if Bound::new(outcome, Gives::Number) == Bound::Number(wanted) {
                    return Ok(());
                }
                return Err(self.failed(statement, format!("{wanted:#x}"), result.to_string(), Some(called)));
            }
        };
        if held {
            return Ok(());
        }
        let expected = match outcome {
            Outcome::Mismatch { addr, want, .. } => format!("{want:#x} at {addr}"),
            Outcome::Value(count) if matches!(what.call.verb.action, Action::Check) => {
                let got = if count == 1 { "1 finding".to_owned() } else { format!("{count} findings") };
                return Err(self.failed(statement, "no findings".to_owned(), got, Some(called)));
            }
            _ => self.wanted(statement, what)?,
        };
        Err(self.failed(statement, expected, result.to_string(), Some(called)))
    }

    fn panicked(&mut self, statement: &Stmt, what: &Do, panic: Box<Panic>, called: String) -> Over {
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
        let failure = self.failure(statement, expected, got, Some(called));
        Box::new(Ending::Panicked(panic, Box::new(failure)))
    }

    /// The end of the script: nobody may be blocked who is not meant to be. Whoever has been woken may finish first.
    pub(super) fn end(&mut self) -> Result<(), Over> {
        let mut sleepers: Vec<(ThreadId, Span, WaitMessage)> = Vec::new();
        let awaited: Vec<_> = self.blocked.iter().filter(|(_, sleeper)| sleeper.fate == Fate::Join).collect();
        let awaited: Vec<_> = awaited.into_iter().map(|(&thread, sleeper)| (thread, sleeper.span)).collect();
        for (thread, span) in awaited {
            let op = Op::Join { thread: thread.number() };
            match self.target.execute(Context::Thread(thread.number()), op) {
                Ok(Reply::Completed { outcome: Outcome::Blocked { waits_for }, .. }) => {
                    sleepers.push((thread, span, waits_for));
                }
                Ok(Reply::Completed { .. }) => {
                    self.blocked.remove(&thread);
                }
                Ok(Reply::Panicked(panic)) => {
                    let got = format!("panic {:?}", panic.message);
                    let failure = still(span, format!("{thread} joined or abandoned before the end"), got);
                    return Err(Box::new(Ending::Panicked(panic, Box::new(failure))));
                }
                Err(error) => return Err(self.lost_at(span, None, error)),
            }
        }
        let Some(&(first, span, _)) = sleepers.first() else { return Ok(()) };
        let expected = match sleepers.len() {
            1 => format!("{first} joined or abandoned before the end"),
            count => format!("{count} threads joined or abandoned before the end"),
        };
        let texts = sleepers.iter().map(|(thread, span, waits_for)| {
            let line = if sleepers.len() > 1 { format!(" (line {})", span.line) } else { String::new() };
            format!("{thread}{line} still waits for \"{waits_for}\"")
        });
        let failure = still(span, expected, texts.collect::<Vec<_>>().join(", "));
        Err(Box::new(Ending::Failed(Box::new(failure))))
    }
}

/// The result of a check: ok, or the number of findings.
fn counted(report: &Report) -> Outcome {
    match report.count() {
        0 => Outcome::Ok,
        count => Outcome::Value(count),
    }
}

/// The findings, and what was left out, one a line.
fn told(report: &Report) -> Option<String> {
    let text = report.to_string();
    (!text.is_empty()).then(|| text.trim_end().to_owned())
}

fn still(span: Span, expected: String, got: String) -> Failure {
    Failure { span, statement: span, expected, got, called: None, values: Vec::new() }
}
