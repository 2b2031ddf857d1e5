//! `join THREAD`: waits for the statement of a thread that was blocked or started.

use std::sync::Arc;

use vmkern_abi::control::Outcome;

use super::row::{Action, Gives, Param, Value, Verb};
use super::{Answer, HostVerb, Judge};
use crate::script::ast::{Expect, Runner};
use crate::script::env::Bound;
use crate::script::eval::{Over, Run};
use crate::script::judge::Unjudged;
use crate::script::source::Span;
use crate::script::started::{Fate, State};
use crate::script::target::TargetError;

pub(super) const VERB: Verb = Verb {
    name: "join",
    params: &[Param::Thread],
    does: "waits for the operation of a blocked or started thread",
    result: "that operation's result, `blocked` included",
    gives: Gives::Either,
    action: Action::Host(&Join),
};

#[derive(Debug)]
struct Join;

impl HostVerb for Join {
    fn subject(
        &self,
        run: &mut Run<'_>,
        at: Span,
        values: &[Value],
    ) -> Result<Option<Runner>, Over> {
        let &[Value::Thread(thread)] = values else { return Ok(None) };
        run.outstanding_of(at, thread)?;
        Ok(Some(Runner::Thread(thread)))
    }

    fn needs_guest(&self) -> bool {
        true
    }

    fn ask(&self, run: &mut Run<'_>, values: &[Value]) -> Result<Answer, TargetError> {
        match *values {
            [Value::Thread(thread)] => run.join(thread).map(Answer::from),
            _ => Err(TargetError::Broken("`join` without its thread".to_owned())),
        }
    }

    /// Its own `expect`, or that of the statement that was started.
    fn judged_by(
        &self,
        run: &Run<'_>,
        values: &[Value],
        expect: Option<&Arc<Expect>>,
    ) -> Option<Judge> {
        let &[Value::Thread(thread)] = values else { return None };
        let started = run.outstanding.get(&thread)?;
        let judges =
            started.state == State::Started && expect.is_none() && started.expect.is_some();
        judges.then(|| Judge {
            what: Arc::clone(&started.what),
            expect: started.expect.clone(),
            seen: started.called.seen.clone(),
        })
    }

    fn conclude(&self, run: &mut Run<'_>, done: Unjudged, outcome: Outcome) -> Result<(), Over> {
        let (at, &[Value::Thread(thread)]) = (done.what.span, &*done.values) else {
            return Ok(());
        };
        let gives = done.what.call.verb.gives;
        if let Outcome::Blocked { waits_for } = outcome {
            if let Some(outstanding) = run.outstanding.get_mut(&thread) {
                outstanding.state = State::Blocked(waits_for);
                outstanding.fate = Fate::Join;
                outstanding.places.extend(done.place);
            }
            return run.bind_all(at, done.place, Bound::new(outcome, gives));
        }
        let Some(outstanding) = run.outstanding.remove(&thread) else { return Ok(()) };
        let gives = outstanding.what.call.verb.gives;
        let places = outstanding.places.into_iter().chain(done.place);
        run.bind_all(at, places, Bound::new(outcome, gives))
    }
}
