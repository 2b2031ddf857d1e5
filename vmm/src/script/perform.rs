//! Statements that the guest does: sent, judged, bound.

use std::path::Path;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::{Context, Op, Outcome};

use super::ast::{Do, Expected, NameId, Pace, Runner, RunnerRef, Stmt, ThreadId};
use super::env::Bound;
use super::eval::{Over, Run};
use super::look::Look;
use super::observe::Detail;
use super::outcome::{Step, StepResult, shown};
use super::started::{Fate, Outstanding, State};
use super::target::{Reply, TargetError};
use super::verbs::{Action, Gives, Value};
use crate::Report;

/// A call with its values, for reports.
#[derive(Clone, Debug)]
pub(super) struct Called {
    pub verb: &'static str,
    pub arguments: Vec<String>,
}

impl Called {
    /// As C would write it.
    pub fn text(&self) -> String {
        format!("{}({})", self.verb, self.arguments.join(", "))
    }
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

impl<'r> Run<'r> {
    pub(super) fn perform(&mut self, statement: &'r Stmt, what: &'r Do) -> Result<(), Over> {
        let named =
            what.runner.as_ref().map(|runner| self.runner(statement, runner)).transpose()?;
        // What the script itself does takes a thread only where it names one.
        let ours = !matches!(what.call.verb.action, Action::Operation(_));
        if let Some(Runner::Thread(thread)) = named.or((!ours).then_some(Runner::DEFAULT)) {
            self.check_free(statement, thread)?;
        }
        let place = what.bind.as_ref().map(|place| self.place(statement, place)).transpose()?;
        let values = self.values(statement, &what.call)?;
        let called =
            Called { verb: what.call.verb.name, arguments: self.arguments(&what.call, &values) };
        let (runner, request) =
            self.request(statement, what, named.unwrap_or(Runner::DEFAULT), &values)?;
        if let (Pace::Start, Runner::Thread(thread), Request::Execute(_, op)) =
            (what.pace, runner, &request)
        {
            return self.start((statement, what), (thread, *op), place, called);
        }
        let asked = self.ask(&request);
        let (reply, output) =
            asked.map_err(|error| self.lost(statement, Some(called.text()), error))?;
        let (result, cycles) = reply.parts();
        let arguments = match self.observer.detail() {
            Detail::Full => called.arguments.clone(),
            Detail::Brief => Vec::new(),
        };
        let step = Step {
            runner,
            cycles,
            output,
            arguments,
            ..Step::plain(statement.span.line, called.verb, result)
        };
        self.show(statement.span, step.clone())?;
        let outcome = match reply {
            Reply::Completed { outcome, .. } => outcome,
            Reply::Panicked(panic) => {
                return Err(self.panicked((statement, what), panic, called.text()));
            }
        };
        if let Request::Execute(Context::Thread(_) | Context::Interrupt, Op::Vtop { addr }) =
            request
        {
            self.witness(addr, outcome)
                .map_err(|error| self.lost(statement, Some(called.text()), error))?;
        }
        let judges = match request {
            Request::Join(thread) => self.judges((statement, what), thread),
            _ => (statement, what),
        };
        self.judge(judges, outcome, &step.result, called.text())?;
        self.cycles = cycles;
        self.conclude((statement, what), outcome, request, (place, called))
    }

    /// Where a statement runs.
    fn runner(&mut self, statement: &Stmt, runner: &RunnerRef) -> Result<Runner, Over> {
        match runner {
            RunnerRef::Interrupt => Ok(Runner::Interrupt),
            RunnerRef::Thread(thread) => self.thread(statement, thread).map(Runner::Thread),
        }
    }

    /// Asks the target, and returns what it says with what is to be printed.
    fn ask(&mut self, request: &Request) -> Result<(Reply, Option<String>), TargetError> {
        if let Request::Dump(_) | Request::Check | Request::Inspect(_) = request
            && let Some(panicked) = self.let_begin()?
        {
            return Ok((panicked, None));
        }
        let name = self.script.source.name();
        Ok(match request {
            Request::Execute(context, op) => {
                self.unbegun = false;
                (self.target.execute(*context, *op)?, None)
            }
            Request::Join(thread) => (self.join(*thread)?, None),
            Request::Nothing => (DONE, None),
            Request::Dump(file) => {
                (self.target.dump(Path::new(file), name, self.stop).map(|()| DONE)?, None)
            }
            Request::Check => {
                let report = self.target.check()?;
                (Reply::Completed { outcome: counted(&report), cycles: 0 }, told(&report))
            }
            Request::Inspect(look) => (DONE, Some(self.target.inspect(name, look)?)),
        })
    }

    /// Binds what a statement gave that held, or notes that it is not over.
    fn conclude(
        &mut self,
        (statement, what): (&'r Stmt, &'r Do),
        outcome: Outcome,
        request: Request,
        (place, called): (Option<(NameId, Option<u64>)>, Called),
    ) -> Result<(), Over> {
        let gives = what.call.verb.gives;
        match (outcome, request) {
            (Outcome::Blocked { waits_for }, Request::Join(thread)) => {
                if let Some(outstanding) = self.outstanding.get_mut(&thread) {
                    outstanding.state = State::Blocked(waits_for);
                    outstanding.fate = Fate::Join;
                    outstanding.places.extend(place);
                }
            }
            (Outcome::Blocked { waits_for }, Request::Execute(Context::Thread(number), _)) => {
                let (state, fate, places) =
                    (State::Blocked(waits_for), Fate::Join, Vec::from_iter(place));
                let outstanding =
                    Outstanding { statement, what, state, fate, places, called, order: 0 };
                self.outstanding.insert(ThreadId(number), outstanding);
            }
            (
                Outcome::Blocked { .. },
                Request::Execute(..)
                | Request::Nothing
                | Request::Dump(_)
                | Request::Check
                | Request::Inspect(_),
            ) => {
                let error = TargetError::Broken(
                    "an operation that runs on no thread is said to be blocked".to_owned(),
                );
                return Err(self.lost(statement, Some(called.text()), error));
            }
            (_, Request::Join(thread)) => {
                if let Some(outstanding) = self.outstanding.remove(&thread) {
                    let gives = outstanding.what.call.verb.gives;
                    for place in outstanding.places.into_iter().chain(place) {
                        self.bind(statement.span, place, Bound::new(outcome, gives))?;
                    }
                }
                return Ok(());
            }
            (
                _,
                Request::Execute(..) | Request::Nothing | Request::Dump(_) | Request::Inspect(_),
            ) => {}
            // As a number, no findings are 0.
            (Outcome::Ok, Request::Check) => {
                if let Some(place) = place {
                    self.bind(statement.span, place, Bound::new(Outcome::Null, gives))?;
                }
                return Ok(());
            }
            (_, Request::Check) => {}
        }
        // A blocked statement's name has no value until the join.
        match place {
            Some(place) => self.bind(statement.span, place, Bound::new(outcome, gives)),
            None => Ok(()),
        }
    }

    /// What `what` asks of the target, and on whose behalf.
    fn request(
        &mut self,
        statement: &Stmt,
        what: &Do,
        runner: Runner,
        values: &[Value],
    ) -> Result<(Runner, Request), Over> {
        match (what.call.verb.action, values) {
            (Action::OnLowmem, [Value::Op(op, _)]) => {
                Ok((runner, Request::Execute(Context::Lowmem, *op)))
            }
            (Action::Join, &[Value::Thread(thread)]) => {
                self.outstanding_of(statement, thread)?;
                Ok((Runner::Thread(thread), Request::Join(thread)))
            }
            (Action::Abandon, &[Value::Thread(thread)]) => {
                self.outstanding_of(statement, thread)?.fate = Fate::Abandoned;
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

    /// The host's own walk of the page tables must agree with the guest's, if the guest has walked
    /// them: a statement whose thread cannot be made for want of pages has not. While another
    /// thread has something to do it may change them between the two walks.
    fn witness(&mut self, addr: GuestVirt, outcome: Outcome) -> Result<(), TargetError> {
        let said = match outcome {
            Outcome::Value(phys) => Some(phys),
            Outcome::Null => None,
            _ => return Ok(()),
        };
        if !self.outstanding.is_empty() {
            return Ok(());
        }
        let seen = self.target.vtop(addr)?.map(|phys| phys.get());
        if seen == said {
            return Ok(());
        }
        let show =
            |phys: Option<u64>| phys.map_or("nothing".to_owned(), |phys| format!("{phys:#x}"));
        let (seen, said) = (show(seen), show(said));
        Err(TargetError::Broken(format!(
            "the guest translates {addr} to {said}, but the host's walk of its page tables gives {seen}"
        )))
    }

    pub(super) fn judge(
        &mut self,
        (statement, what): (&Stmt, &Do),
        outcome: Outcome,
        result: &StepResult,
        called: String,
    ) -> Result<(), Over> {
        let held = match what.expect.as_ref().map(|expect| &expect.what) {
            None | Some(Expected::Ok) if matches!(what.call.verb.action, Action::Check) => {
                outcome == Outcome::Ok
            }
            None | Some(Expected::Ok) => matches!(outcome, Outcome::Ok | Outcome::Value(_)),
            Some(Expected::Null) => outcome == Outcome::Null,
            Some(Expected::Blocked) => matches!(outcome, Outcome::Blocked { .. }),
            Some(Expected::Panic(_)) => false,
            Some(Expected::Error(error)) => outcome == Outcome::Error(*error),
            Some(Expected::Number(expr)) => {
                let wanted = self.eval(statement, expr)?;
                if matches!(Bound::new(outcome, Gives::Number), Bound::Number(value, _) if value == wanted)
                {
                    return Ok(());
                }
                let radix = self.radix(expr);
                let got = match outcome {
                    Outcome::Value(value) => shown(value, radix),
                    _ => result.to_string(),
                };
                return Err(self.failed(statement, shown(wanted, radix), got, Some(called)));
            }
        };
        if held {
            return Ok(());
        }
        let expected = match outcome {
            Outcome::Mismatch { addr, want, .. } => format!("{want:#x} at {addr}"),
            Outcome::Value(count) if matches!(what.call.verb.action, Action::Check) => {
                let got =
                    if count == 1 { "1 finding".to_owned() } else { format!("{count} findings") };
                return Err(self.failed(statement, "no findings".to_owned(), got, Some(called)));
            }
            _ => self.wanted(statement, what)?,
        };
        Err(self.failed(statement, expected, result.to_string(), Some(called)))
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
