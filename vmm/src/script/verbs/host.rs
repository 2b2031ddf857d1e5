//! Verbs that the script does itself.
//!
//! A statement of such a verb goes through these steps, in this order: [`HostVerb::subject`],
//! [`HostVerb::ask`], the report of the step, [`HostVerb::judged_by`] and [`HostVerb::miss`], and,
//! if the result is the required one, [`HostVerb::conclude`].

use std::fmt;
use std::sync::Arc;

use vmkern_abi::control::Outcome;

use super::row::Value;
use crate::script::ast::{Do, Expect, Runner};
use crate::script::env::Bound;
use crate::script::eval::{Over, Run};
use crate::script::judge::Unjudged;
use crate::script::source::Span;
use crate::script::target::{Reply, TargetError};

/// The result of a verb, and its output.
#[derive(Debug)]
pub(in crate::script) struct Answer {
    pub reply: Reply,
    pub output: Option<String>,
}

impl Answer {
    /// It is done, and takes no time in the guest.
    pub const DONE: Self =
        Self { reply: Reply::Completed { outcome: Outcome::Ok, cycles: 0 }, output: None };

    /// It is done, with a number for a result.
    pub fn number(value: u64) -> Self {
        Reply::Completed { outcome: Outcome::Value(value), cycles: 0 }.into()
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply, output: None }
    }
}

/// The required and the actual result of a statement, in the verb's own words.
pub(in crate::script) struct Miss {
    pub expected: String,
    pub got: String,
}

/// The statement that judges a result.
pub(in crate::script) struct Judge {
    pub what: Arc<Do>,
    pub expect: Option<Arc<Expect>>,
    /// The values that its terms had.
    pub seen: Vec<(Span, u64)>,
}

/// A verb that the script does itself, with or without the guest.
pub(in crate::script) trait HostVerb: fmt::Debug + Sync {
    /// The thread that the statement at `at` is about, if it is not the one in front of its colon.
    ///
    /// # Errors
    /// When the script is wrong.
    fn subject(
        &self,
        _run: &mut Run<'_>,
        _at: Span,
        _values: &[Value],
    ) -> Result<Option<Runner>, Over> {
        Ok(None)
    }

    /// Whether the guest must run for it. A dead guest cannot do it.
    fn needs_guest(&self) -> bool {
        false
    }

    /// Does it.
    ///
    /// # Errors
    /// When there will be no result.
    fn ask(&self, run: &mut Run<'_>, values: &[Value]) -> Result<Answer, TargetError>;

    /// The statement and the `expect` that judge the result, where those are not its own.
    fn judged_by(
        &self,
        _run: &Run<'_>,
        _values: &[Value],
        _expect: Option<&Arc<Expect>>,
    ) -> Option<Judge> {
        None
    }

    /// Why `outcome` is not ok, where the verb has a rule of its own for that.
    fn miss(&self, _outcome: Outcome) -> Option<Miss> {
        None
    }

    /// Binds a result that held.
    ///
    /// # Errors
    /// When the result cannot be bound.
    fn conclude(&self, run: &mut Run<'_>, done: Unjudged, outcome: Outcome) -> Result<(), Over> {
        if matches!(outcome, Outcome::Blocked { .. }) {
            return Err(run.blocked_nowhere(&done));
        }
        let gives = done.what.call.verb.gives;
        run.bind_all(done.what.span, done.place, Bound::new(outcome, gives))
    }
}
