//! `fail SITE SPEC`: arms a fail point. The host writes into the guest's memory; the guest is not
//! asked, so statements that were started do not begin with it.

use super::row::{Action, Gives, Param, Value, Verb};
use super::{Answer, HostVerb};
use crate::guest::{FailSite, FailSpec};
use crate::script::eval::Run;
use crate::script::fail_point::{FailRequest, fail_sites};
use crate::script::target::TargetError;

pub(super) const VERB: Verb = Verb {
    name: "fail",
    params: &[Param::Fail],
    does: "makes SPEC the programme of a [fail point](fail.md); `off` disarms all, `list` lists \
           them",
    result: "`ok`",
    gives: Gives::Number,
    action: Action::Host(&Fail),
};

#[derive(Debug)]
struct Fail;

impl HostVerb for Fail {
    fn needs_guest(&self) -> bool {
        true
    }

    fn ask(&self, run: &mut Run<'_>, values: &[Value]) -> Result<Answer, TargetError> {
        let [Value::Fail(request)] = values else {
            return Err(TargetError::Broken("`fail` without its site".to_owned()));
        };
        match request {
            FailRequest::Arm(site, spec) => run.target.arm(*site, spec),
            FailRequest::Off => {
                FailSite::ALL.into_iter().for_each(|site| run.target.arm(site, &FailSpec::OFF));
            }
            FailRequest::List => return Ok(Answer { output: Some(fail_sites()), ..Answer::DONE }),
        }
        Ok(Answer::DONE)
    }
}
