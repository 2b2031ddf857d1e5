//! `check`: lets the host check every structure in the guest's memory.

use vmkern_abi::control::Outcome;

use super::row::{Action, Gives, Value, Verb};
use super::{Answer, HostVerb, Miss};
use crate::check::Report;
use crate::script::env::Bound;
use crate::script::eval::{Over, Run};
use crate::script::judge::Unjudged;
use crate::script::target::{Reply, TargetError};

pub(super) const VERB: Verb = Verb {
    name: "check",
    params: &[],
    does: "stops the guest, and has the host [check](check.md) every structure in its memory",
    result: "`ok`, or the number of findings, which are printed",
    gives: Gives::Number,
    action: Action::Host(&Check),
};

#[derive(Debug)]
struct Check;

impl HostVerb for Check {
    fn ask(&self, run: &mut Run<'_>, _: &[Value]) -> Result<Answer, TargetError> {
        if let Some(panicked) = run.let_begin()? {
            return Ok(panicked.into());
        }
        let report = run.target.check()?;
        let reply = Reply::Completed { outcome: counted(&report), cycles: 0 };
        Ok(Answer { reply, output: findings(&report) })
    }

    /// A number of findings is a failure.
    fn miss(&self, outcome: Outcome) -> Option<Miss> {
        let Outcome::Value(count) = outcome else { return None };
        let got = if count == 1 { "1 finding".to_owned() } else { format!("{count} findings") };
        Some(Miss { expected: "no findings".to_owned(), got })
    }

    /// As a number, no findings are 0.
    fn conclude(&self, run: &mut Run<'_>, done: Unjudged, outcome: Outcome) -> Result<(), Over> {
        let outcome = if outcome == Outcome::Ok { Outcome::Null } else { outcome };
        let gives = done.what.call.verb.gives;
        run.bind_all(done.what.span, done.place, Bound::new(outcome, gives))
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
fn findings(report: &Report) -> Option<String> {
    let text = report.to_string();
    (!text.is_empty()).then(|| text.trim_end().to_owned())
}
