//! Statements that do something: evaluated, sent, and shown. Their results are judged later
//! ([`super::judge`]).

use std::sync::Arc;

use vmkern_abi::addr::GuestVirt;
use vmkern_abi::control::{Context, Op, Outcome};

use super::ast::{Do, Pace, Runner, RunnerRef};
use super::diagnostic::Diagnostic;
use super::env::Bound;
use super::eval::{Over, Run, wrong};
use super::judge::{BoundPlace, Given, Judging, Unjudged};
use super::observe::Detail;
use super::outcome::Step;
use super::source::Span;
use super::started::{Fate, Outstanding, State};
use super::target::{Reply, TargetError};
use super::verbs::{Action, Answer};
use crate::guest::ThreadId;

/// A call with its values, for reports.
#[derive(Clone, Debug)]
pub(super) struct Called {
    pub verb: &'static str,
    pub arguments: Vec<String>,
    /// The terms of the arguments with their values.
    pub seen: Vec<(Span, u64)>,
}

impl Called {
    /// As C would write it.
    pub fn text(&self) -> String {
        format!("{}({})", self.verb, self.arguments.join(", "))
    }
}

impl Run<'_> {
    /// Does `what`, and leaves its result to be judged.
    pub(super) fn perform(&mut self, what: &Arc<Do>) -> Result<(), Over> {
        let (at, call) = (what.span, &what.call);
        // 1. The thread. A verb of the script itself has one only where it names one.
        let named = what.runner.as_ref().map(|runner| self.runner(at, runner)).transpose()?;
        let by_guest = call.verb.is_operation();
        if self.is_buried && call.verb.needs_guest() {
            return Err(self.needs_another_guest(at));
        }
        if let Some(Runner::Thread(thread)) = named.or(by_guest.then_some(Runner::DEFAULT)) {
            self.check_free(at, thread)?;
        }
        // 2. The values, from left to right.
        let place = what.bind.as_ref().map(|place| self.place(at, place)).transpose()?;
        let values = self.values(at, call)?;
        let arguments = self.arguments(call, &values);
        let seen = std::mem::take(&mut self.seen);
        let called = Called { verb: call.verb.name, arguments, seen };
        // 3. The guest does it, or the host.
        let mut runner = named.unwrap_or(Runner::DEFAULT);
        let mut op = None;
        let asked = if let Action::Host(verb) = call.verb.action {
            runner = verb.subject(self, at, &values)?.unwrap_or(runner);
            verb.ask(self, &values)
        } else {
            let asked_for = self.operation(at, call, &values)?;
            self.admit(at, &asked_for)?;
            if let (Pace::Start, Runner::Thread(thread)) = (what.pace, runner) {
                return self.start(what, (thread, asked_for), place, called);
            }
            op = Some(asked_for);
            self.execute(runner.context(), asked_for).map(Answer::from)
        };
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) => return Err(self.unanswered(what, runner, place, called, error)),
        };
        // 4. The report, and the host's own look at a translation.
        self.report(at, runner, &called, &answer)?;
        let reply = answer.reply;
        if let (Some(Op::Vtop { addr }), Reply::Completed { outcome, .. }) = (op, &reply) {
            self.witness(addr, *outcome)
                .map_err(|error| self.lost(at, Some(called.text()), error))?;
        }
        let (what, given) = (Arc::clone(what), Given::Reply(reply));
        self.unjudged = Some(Unjudged { what, runner, values, place, called, given });
        Ok(())
    }

    /// Shows a statement that was done.
    fn report(
        &mut self,
        at: Span,
        runner: Runner,
        called: &Called,
        answer: &Answer,
    ) -> Result<(), Over> {
        let (result, cycles) = answer.reply.parts();
        let arguments = match self.observer.detail() {
            Detail::Full => called.arguments.clone(),
            Detail::Brief => Vec::new(),
        };
        let output = answer.output.clone();
        let plain = Step::plain(at.line, called.verb, result);
        self.show(at, Step { runner, cycles, output, arguments, ..plain })
    }

    /// Lets the guest do `op`. Started statements begin with that.
    pub(super) fn execute(&mut self, context: Context, op: Op) -> Result<Reply, TargetError> {
        self.unbegun = false;
        self.target.execute(context, op)
    }

    /// A dead guest does nothing.
    fn needs_another_guest(&self, at: Span) -> Over {
        let message = "the guest is dead: `guest` starts another";
        let expected = "`guest`, or what looks at a dead guest: `inspect`, `check`, `dump`";
        wrong(Diagnostic::new(at, message, expected, self.source.text(at)))
    }

    /// Where a statement runs.
    fn runner(&mut self, at: Span, runner: &RunnerRef) -> Result<Runner, Over> {
        match runner {
            RunnerRef::Interrupt => Ok(Runner::Interrupt),
            RunnerRef::Thread(thread) => self.thread(at, thread).map(Runner::Thread),
        }
    }

    /// `what` has no answer. If a user at a terminal has interrupted the wait, the operation
    /// continues in the guest, and counts as started.
    fn unanswered(
        &mut self,
        what: &Arc<Do>,
        runner: Runner,
        place: Option<BoundPlace>,
        called: Called,
        error: TargetError,
    ) -> Over {
        let stays = error == TargetError::Interrupted && self.judging == Judging::Lenient;
        let over = self.lost(what.span, Some(called.text()), error);
        if let Runner::Thread(thread) = runner
            && stays
            && what.call.verb.is_operation()
        {
            if let Some(place) = place {
                // An element that the series have no room for is missed at the join.
                let _ = self.env.bind(place.0, place.1, Bound::Started);
            }
            self.note_started(thread, what, place, called);
        }
        over
    }

    /// Notes that `thread` does `what`, and that the script does not wait for it.
    pub(super) fn note_started(
        &mut self,
        thread: ThreadId,
        what: &Arc<Do>,
        place: Option<BoundPlace>,
        called: Called,
    ) {
        self.starts += 1;
        let outstanding = Outstanding {
            what: Arc::clone(what),
            expect: None,
            state: State::Started,
            fate: Fate::Join,
            places: Vec::from_iter(place),
            called,
            order: self.starts,
        };
        self.outstanding.insert(thread, outstanding);
    }

    /// The host's own walk of the page tables must agree with the guest's, if the guest has walked
    /// them: a statement whose thread could not be made, for lack of pages, has not. Another thread
    /// with work may change the tables between the two walks, so nothing is compared then.
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
            "the guest translates {addr} to {said}, but the host's walk of its page tables gives \
             {seen}"
        )))
    }

    /// Binds each of `places` to `value`. After a fire of a sweep, null is not a value.
    pub(super) fn bind_all(
        &mut self,
        at: Span,
        places: impl IntoIterator<Item = BoundPlace>,
        value: Bound,
    ) -> Result<(), Over> {
        let value = self.or_missing(value);
        places.into_iter().try_for_each(|place| self.bind(at, place, value.clone()))
    }
}
