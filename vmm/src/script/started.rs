//! Threads whose statements are not over: blocked, or started and not joined.

use std::sync::Arc;

use vmkern_abi::control::{Context, Op, Outcome, WaitMessage};

use super::ast::{Do, Expect, Expected, NameId, Runner};
use super::diagnostic::Diagnostic;
use super::env::Bound;
use super::eval::{Over, Run, wrong};
use super::fail::Missed;
use super::judge::{BoundPlace, Given, Judging, Unjudged};
use super::outcome::{Ending, Failure, Step, StepResult};
use super::perform::Called;
use super::source::Span;
use super::target::{Panic, Reply, TargetError};
use crate::guest::ThreadId;

/// What the script intends for a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It will be joined.
    Join,
    /// It may stay as it is.
    Abandoned,
}

/// The state of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its statement was started, and not joined since.
    Started,
    /// It sleeps, and waits for this.
    Blocked(WaitMessage),
}

/// A statement that is not over.
pub(super) struct Outstanding {
    pub what: Arc<Do>,
    /// The `expect` below it.
    pub expect: Option<Arc<Expect>>,
    pub state: State,
    pub fate: Fate,
    /// Where its result goes, by itself and by joins that found it blocked still.
    pub places: Vec<(NameId, Option<u64>)>,
    /// The call with its values.
    pub called: Called,
    /// Its place in the order of starting.
    pub order: u64,
}

impl Run<'_> {
    /// Sends a statement, and does not wait for it.
    pub(super) fn start(
        &mut self,
        what: &Arc<Do>,
        (thread, op): (ThreadId, Op),
        place: Option<BoundPlace>,
        called: Called,
    ) -> Result<(), Over> {
        // 1. The operation, sent to the thread. A panic may come before it starts.
        let (at, runner) = (what.span, Runner::Thread(thread));
        let sent = self.target.execute(Context::Start(thread.number()), op);
        let done = |given, called| Unjudged {
            what: Arc::clone(what),
            runner,
            values: Vec::new(),
            place,
            called,
            given,
        };
        match sent.map_err(|error| self.lost(at, Some(called.text()), error))? {
            Reply::Completed { outcome: Outcome::Ok, .. } => {}
            reply @ Reply::Panicked(_) => {
                self.unjudged = Some(done(Given::Reply(reply), called));
                return Ok(());
            }
            Reply::Completed { outcome, .. } => {
                let error = TargetError::Broken(format!(
                    "starting a statement gave {}",
                    StepResult::Given(outcome)
                ));
                return Err(self.lost(at, Some(called.text()), error));
            }
        }
        // 2. Its value comes when it is joined.
        self.unbegun = true;
        if let Some(place) = place {
            self.bind(at, place, Bound::Started)?;
        }
        // 3. It is shown as a step, and judged when an `expect` can no longer follow.
        let result = StepResult::Given(Outcome::Ok);
        let step = Step { arguments: vec![called.text()], ..Step::plain(at.line, "start", result) };
        self.show(at, Step { runner, ..step })?;
        self.note_started(thread, what, place, called.clone());
        self.unjudged = Some(done(Given::Started(thread), called));
        Ok(())
    }

    /// Lets started statements begin, where no operation of the guest does. Returns how the guest
    /// died of that, if it did.
    pub(super) fn let_begin(&mut self) -> Result<Option<Reply>, TargetError> {
        if !std::mem::take(&mut self.unbegun) {
            return Ok(None);
        }
        let reply = self.target.execute(Context::Rest, Op::Nop)?;
        Ok(matches!(reply, Reply::Panicked(_)).then_some(reply))
    }

    /// Asks for the result of `thread`.
    pub(super) fn join(&mut self, thread: ThreadId) -> Result<Reply, TargetError> {
        self.unbegun = false;
        self.target.execute(thread.into(), Op::Join { thread: thread.number() })
    }

    /// A thread whose statement is not over accepts no other.
    pub(super) fn check_free(&self, at: Span, thread: ThreadId) -> Result<(), Over> {
        let Some(Outstanding { what: earlier, state, .. }) = self.outstanding.get(&thread) else {
            return Ok(());
        };
        let line = earlier.span.line;
        let (message, found) = match state {
            State::Started => {
                let message =
                    format!("{thread} was started by line {line}, and has not been joined");
                (message, format!("{thread} was started"))
            }
            State::Blocked(waits_for) => {
                let message = format!(
                    "{thread} is still blocked by line {line}: it waits for \"{waits_for}\""
                );
                (message, format!("{thread} waits for \"{waits_for}\""))
            }
        };
        Err(wrong(Diagnostic::new(at, message, format!("`join {thread}` first"), found)))
    }

    /// The statement of `thread` that is not over.
    pub(super) fn outstanding_of(
        &mut self,
        at: Span,
        thread: ThreadId,
    ) -> Result<&mut Outstanding, Over> {
        let error = || {
            let found = format!("{thread} is not blocked");
            let message = format!("{found}: each statement of it has given its result");
            let expected = "a thread whose statement was blocked or started";
            wrong(Diagnostic::new(at, message, expected, found))
        };
        self.outstanding.get_mut(&thread).ok_or_else(error)
    }

    /// The started statement whose thread the guest died on.
    pub(super) fn culprit(&self, panic: &Panic) -> Option<&Outstanding> {
        let name = panic.thread.as_deref()?;
        let (_, culprit) =
            self.outstanding.iter().find(|(thread, _)| thread.to_string() == name)?;
        (culprit.state == State::Started).then_some(culprit)
    }

    /// The end of the script: started threads are joined and judged in the order of starting. Then
    /// no thread may be blocked that was not abandoned; one that has been woken may finish first.
    pub(super) fn end(&mut self) -> Result<(), Over> {
        for thread in self.unjoined() {
            self.join_at_end(thread)?;
        }
        self.begin_abandoned()?;
        if self.has_fired() {
            // The sweep frees what the script holds, and then no thread may sleep.
            return Ok(());
        }
        self.end_of_sleepers()
    }

    /// The threads that are started, and will be joined at the end, in the order of starting.
    pub(super) fn unjoined(&self) -> Vec<ThreadId> {
        let mut started: Vec<_> = self
            .outstanding
            .iter()
            .filter(|(_, outstanding)| {
                outstanding.state == State::Started && outstanding.fate == Fate::Join
            })
            .map(|(&thread, outstanding)| (outstanding.order, thread))
            .collect();
        started.sort_unstable();
        started.into_iter().map(|(_, thread)| thread).collect()
    }

    /// A statement that was started and abandoned begins, too.
    fn begin_abandoned(&mut self) -> Result<(), Over> {
        let Some(first) = self.outstanding.values().next() else { return Ok(()) };
        let (what, expect) = (Arc::clone(&first.what), first.expect.clone());
        let called = first.called.clone();
        match self.let_begin() {
            Ok(Some(Reply::Panicked(panic))) => {
                Err(self.panicked((&what, expect.as_deref()), panic, &called))
            }
            Ok(_) => Ok(()),
            Err(error) => Err(self.lost(what.span, None, error)),
        }
    }

    fn join_at_end(&mut self, thread: ThreadId) -> Result<(), Over> {
        // 1. The thread, if it is still to be joined.
        let Some(Outstanding { what, expect, called, .. }) = self.outstanding.get(&thread) else {
            return Ok(());
        };
        let (what, expect, called) = (Arc::clone(what), expect.clone(), called.clone());
        let (at, expect) = (what.span, expect.as_deref());
        // 2. The join, shown as a step.
        let reply = self.join(thread).map_err(|error| self.lost(at, Some(called.text()), error))?;
        let (result, cycles) = reply.parts();
        let step = Step {
            runner: Runner::Thread(thread),
            cycles,
            arguments: called.arguments.clone(),
            ..Step::plain(at.line, what.call.verb.name, result)
        };
        self.show(at, step)?;
        // 3. The verdict by the `expect` that followed the statement.
        let outcome = match reply {
            Reply::Completed { outcome, .. } => outcome,
            Reply::Panicked(panic) => {
                return Err(self.panicked((&what, expect), panic, &called));
            }
        };
        if expect.is_some() || self.judging == Judging::Strict {
            self.judge_or_leave(&what, expect, outcome, &called)?;
        }
        // 4. A thread that sleeps stays, for the last verdict of all.
        match outcome {
            Outcome::Blocked { waits_for } => {
                if let Some(outstanding) = self.outstanding.get_mut(&thread) {
                    outstanding.state = State::Blocked(waits_for);
                }
            }
            _ => {
                self.outstanding.remove(&thread);
            }
        }
        Ok(())
    }

    fn end_of_sleepers(&mut self) -> Result<(), Over> {
        // 1. Threads that were expected to sleep may have been woken since.
        let mut sleepers: Vec<(ThreadId, Span, WaitMessage)> = Vec::new();
        let is_awaited =
            |one: &Outstanding| matches!(one.state, State::Blocked(_)) && one.fate == Fate::Join;
        let awaited: Vec<_> = self.outstanding.iter().filter(|(_, one)| is_awaited(one)).collect();
        let awaited: Vec<_> =
            awaited.into_iter().map(|(&thread, one)| (thread, one.what.span)).collect();
        for (thread, span) in awaited {
            match self.join(thread) {
                Ok(Reply::Completed { outcome: Outcome::Blocked { waits_for }, .. }) => {
                    sleepers.push((thread, span, waits_for));
                }
                Ok(Reply::Completed { .. }) => {
                    self.outstanding.remove(&thread);
                }
                Ok(Reply::Panicked(panic)) => {
                    let got = format!("panic {:?}", panic.message);
                    let failure =
                        still(span, format!("{thread} joined or abandoned before the end"), got);
                    return Err(Box::new(Ending::Panicked(panic, Box::new(failure))));
                }
                Err(error) => return Err(self.lost(span, None, error)),
            }
        }
        // 2. Those that sleep still, in one failure.
        let Some(&(first, span, _)) = sleepers.first() else { return Ok(()) };
        let expected = match sleepers.len() {
            1 => format!("{first} joined or abandoned before the end"),
            count => format!("{count} threads joined or abandoned before the end"),
        };
        let texts = sleepers.iter().map(|(thread, span, waits_for)| {
            let line =
                if sleepers.len() > 1 { format!(" (line {})", span.line) } else { String::new() };
            format!("{thread}{line} still waits for \"{waits_for}\"")
        });
        let failure = still(span, expected, texts.collect::<Vec<_>>().join(", "));
        Err(Box::new(Ending::Failed(Box::new(failure))))
    }

    /// How the guest died, against what the script expects of the statement that it died in, or of
    /// one that was started.
    pub(super) fn panicked(
        &mut self,
        at: (&Do, Option<&Expect>),
        panic: Box<Panic>,
        called: &Called,
    ) -> Over {
        // 1. The statement that the guest died of, and whether it, or this one, expects that.
        self.seen.clear();
        let culprit = self.culprit(&panic);
        let culprit =
            culprit.map(|one| (Arc::clone(&one.what), one.expect.clone(), one.called.clone()));
        let expects = |expect: Option<&Expect>| match expect.map(|expect| &expect.what) {
            Some(Expected::Panic(text)) => panic.message.contains(text.as_str()),
            _ => false,
        };
        let culprit_expects =
            culprit.as_ref().is_some_and(|(_, expect, _)| expects(expect.as_deref()));
        if expects(at.1) || culprit_expects {
            return Box::new(Ending::ExpectedPanic(panic));
        }
        // 2. The report, on the statement that the guest died of.
        let ((what, expect), called) = match &culprit {
            Some((what, expect, called)) => ((&**what, expect.as_deref()), called),
            None => (at, called),
        };
        let expected = match self.wanted(what.span, expect) {
            Ok(expected) => expected,
            Err(over) => return over,
        };
        let got = format!("panic {:?}", panic.message);
        let failure = self.failure(Missed::call(what, expect, called), expected, got);
        Box::new(Ending::Panicked(panic, Box::new(failure)))
    }
}

fn still(span: Span, expected: String, got: String) -> Failure {
    Failure { span, statement: span, expected, got, called: None, values: Vec::new() }
}
