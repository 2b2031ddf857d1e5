//! `on_lowmem STATEMENT`: registers an operation for the next vm_lowmem event.

use vmkern_abi::control::Context;

use super::row::{Action, Gives, Param, Value, Verb};
use super::{Answer, HostVerb};
use crate::script::eval::Run;
use crate::script::target::TargetError;

pub(super) const VERB: Verb = Verb {
    name: "on_lowmem",
    params: &[Param::Op],
    does: "does that statement once, the next time the vm_lowmem event fires",
    result: "`ok`",
    gives: Gives::Number,
    action: Action::Host(&OnLowmem),
};

#[derive(Debug)]
struct OnLowmem;

impl HostVerb for OnLowmem {
    fn needs_guest(&self) -> bool {
        true
    }

    fn ask(&self, run: &mut Run<'_>, values: &[Value]) -> Result<Answer, TargetError> {
        match values {
            [Value::Op(op, _)] => run.execute(Context::Lowmem, *op).map(Answer::from),
            _ => Err(TargetError::Broken("`on_lowmem` without its operation".to_owned())),
        }
    }
}
