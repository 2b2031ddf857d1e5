//! `seize` and `release`: the host takes free pages of the guest, and gives them back. The guest is
//! not asked, and may be dead.

use super::row::{Action, Gives, Param, Value, Verb};
use super::{Answer, HostVerb};
use crate::guest::PressureReport;
use crate::script::eval::Run;
use crate::script::target::TargetError;

pub(super) const SEIZE: Verb = Verb {
    name: "seize",
    params: &[Param::Amount],
    does: "the host takes that much more of the guest's [free memory](seize.md), or all free \
           pages but PAGES, without an instruction of the guest",
    result: "bytes that are seized now",
    gives: Gives::Number,
    action: Action::Host(&Seize),
};

pub(super) const RELEASE: Verb = Verb {
    name: "release",
    params: &[],
    does: "gives all seized memory back, and wakes the threads that wait for pages",
    result: "bytes that are seized now: 0",
    gives: Gives::Number,
    action: Action::Host(&Release),
};

#[derive(Debug)]
struct Seize;

impl HostVerb for Seize {
    fn ask(&self, run: &mut Run<'_>, values: &[Value]) -> Result<Answer, TargetError> {
        let [Value::Amount(target)] = values else {
            return Err(TargetError::Broken("`seize` without an amount".to_owned()));
        };
        if let Some(panicked) = run.let_begin()? {
            return Ok(panicked.into());
        }
        let report = run.target.seize(*target)?;
        Ok(Answer { output: shortfall(&report), ..Answer::number(report.held.bytes()) })
    }
}

/// Why less was taken than was asked for, if so.
fn shortfall(report: &PressureReport) -> Option<String> {
    let PressureReport { asked, taken, refused, .. } = report;
    refused.as_ref().map(|why| format!("seized {} of {asked}: {why}\n", taken.0))
}

#[derive(Debug)]
struct Release;

impl HostVerb for Release {
    fn ask(&self, run: &mut Run<'_>, _: &[Value]) -> Result<Answer, TargetError> {
        if let Some(panicked) = run.let_begin()? {
            return Ok(panicked.into());
        }
        run.target.release().map(|held| Answer::number(held.bytes()))
    }
}
