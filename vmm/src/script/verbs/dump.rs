//! `dump FILE`: writes the guest's memory to a file.

use std::path::Path;

use super::row::{Action, Gives, Param, Value, Verb};
use super::{Answer, HostVerb};
use crate::script::eval::Run;
use crate::script::target::TargetError;

pub(super) const VERB: Verb = Verb {
    name: "dump",
    params: &[Param::File],
    does: "writes a [dump](dump.md) of the guest's memory to a file",
    result: "`ok`",
    gives: Gives::Number,
    action: Action::Host(&Dump),
};

#[derive(Debug)]
struct Dump;

impl HostVerb for Dump {
    fn ask(&self, run: &mut Run<'_>, values: &[Value]) -> Result<Answer, TargetError> {
        let [Value::File(file)] = values else {
            return Err(TargetError::Broken("`dump` without its file".to_owned()));
        };
        if let Some(panicked) = run.let_begin()? {
            return Ok(panicked.into());
        }
        run.target.dump(Path::new(file), run.source.name(), run.stop)?;
        Ok(Answer::DONE)
    }
}
