//! `squeeze SIZE`: the guest's balloon holds that much memory, no more and no less. The guest is
//! asked, and takes the pages by its own rules.

use super::row::{Action, Gives, Param, Value, Verb};
use super::{Answer, HostVerb};
use crate::guest::{Pages, PressureReport};
use crate::script::eval::Run;
use crate::script::target::TargetError;

/// The name of the verb: a script that has it boots a guest with a balloon.
pub(in crate::script) const NAME: &str = "squeeze";

pub(super) const SQUEEZE: Verb = Verb {
    name: NAME,
    params: &[Param::Number("SIZE")],
    does: "asks the guest to have that much memory in its [balloon](balloon.md), 0 for none; ends \
           when that is so, or the driver cannot go on",
    result: "bytes in the balloon",
    gives: Gives::Number,
    action: Action::Host(&Squeeze),
};

#[derive(Debug)]
struct Squeeze;

impl HostVerb for Squeeze {
    fn ask(&self, run: &mut Run<'_>, values: &[Value]) -> Result<Answer, TargetError> {
        let [Value::Number(bytes)] = values else {
            return Err(TargetError::Broken("`squeeze` without a size".to_owned()));
        };
        if let Some(panicked) = run.let_begin()? {
            return Ok(panicked.into());
        }
        let report = run.target.squeeze(Pages::holding(*bytes))?;
        Ok(Answer { output: shortfall(&report), ..Answer::number(report.held.bytes()) })
    }
}

/// Why the target was not reached, if so.
fn shortfall(PressureReport { asked, held, refused, .. }: &PressureReport) -> Option<String> {
    refused.as_ref().map(|why| format!("the balloon holds {} of {asked}: {why}\n", held.0))
}
