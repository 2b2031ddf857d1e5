//! `abandon THREAD`: allows a thread to stay as it is.

use super::row::{Action, Gives, Param, Value, Verb};
use super::{Answer, HostVerb};
use crate::script::ast::Runner;
use crate::script::eval::{Over, Run};
use crate::script::source::Span;
use crate::script::started::Fate;
use crate::script::target::TargetError;

pub(super) const VERB: Verb = Verb {
    name: "abandon",
    params: &[Param::Thread],
    does: "says that a blocked or started thread is intended to stay so",
    result: "`ok`",
    gives: Gives::Number,
    action: Action::Host(&Abandon),
};

#[derive(Debug)]
struct Abandon;

impl HostVerb for Abandon {
    fn subject(
        &self,
        run: &mut Run<'_>,
        at: Span,
        values: &[Value],
    ) -> Result<Option<Runner>, Over> {
        let &[Value::Thread(thread)] = values else { return Ok(None) };
        run.outstanding_of(at, thread)?.fate = Fate::Abandoned;
        Ok(Some(Runner::Thread(thread)))
    }

    fn ask(&self, _: &mut Run<'_>, _: &[Value]) -> Result<Answer, TargetError> {
        Ok(Answer::DONE)
    }
}
