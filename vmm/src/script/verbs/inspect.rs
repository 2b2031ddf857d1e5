//! `inspect WHAT`: shows what the guest's memory holds.

use super::row::{Action, Gives, Param, Value, Verb};
use super::{Answer, HostVerb};
use crate::script::eval::Run;
use crate::script::target::TargetError;

pub(super) const VERB: Verb = Verb {
    name: "inspect",
    params: &[Param::Look],
    does: "prints what the guest's memory holds, as [`vmkern inspect`](inspect.md) does",
    result: "`ok`",
    gives: Gives::Number,
    action: Action::Host(&Inspect),
};

#[derive(Debug)]
struct Inspect;

impl HostVerb for Inspect {
    fn ask(&self, run: &mut Run<'_>, values: &[Value]) -> Result<Answer, TargetError> {
        let [Value::Look(look)] = values else {
            return Err(TargetError::Broken("`inspect` without what to look at".to_owned()));
        };
        if let Some(panicked) = run.let_begin()? {
            return Ok(panicked.into());
        }
        let output = run.target.inspect(run.source.name(), look)?;
        Ok(Answer { output: Some(output), ..Answer::DONE })
    }
}
