//! A script after a fail point of a sweep has fired.
//!
//! Until then everything is judged as always: it is the fault-free run. From the fire on the script
//! is a driver only. Its `expect`s and `assert`s are not judged, and its statements go on. A null
//! is not bound as 0 but as a missing value, and a statement that cannot be done is skipped: it
//! needs a missing value, memory that the script does not hold, a thread that is still blocked, or
//! one that was never started. A skipped statement's name has no value either, so a value of an
//! earlier round of a loop is not used twice. The results are left to the sweep.

use vmkern_abi::control::{Op, Outcome};

use super::ast::{Do, Expect, Expected, Stmt, StmtKind};
use super::diagnostic::Diagnostic;
use super::env::Bound;
use super::eval::{Over, Run, wrong};
use super::judge::is_of_kind;
use super::lexer::Radix;
use super::outcome::Ending;
use super::perform::Called;
use super::source::Span;
use super::target::Wanted;

impl Run<'_> {
    /// Whether a fail point of a sweep has fired.
    pub(super) fn has_fired(&mut self) -> bool {
        self.target.swept().is_some_and(|swept| swept.has_fired())
    }

    /// The end of a statement: after a fire, one that cannot be done is skipped.
    pub(super) fn or_skip(&mut self, statement: &Stmt, done: Result<(), Over>) -> Result<(), Over> {
        match done {
            Err(over)
                if matches!(*over, Ending::Script(_) | Ending::Failed(_)) && self.has_fired() =>
            {
                self.forget_value(statement);
                Ok(())
            }
            done => done,
        }
    }

    /// The name that `statement` binds has no value any more.
    fn forget_value(&mut self, statement: &Stmt) {
        let place = match &statement.kind {
            StmtKind::Do(what) => what.bind.as_ref(),
            StmtKind::Let { place, .. } => Some(place),
            _ => None,
        };
        let Some(place) = place else { return };
        if let Ok((name, index)) = self.place(statement.span, place) {
            // Without room in the series there is no earlier value.
            let _ = self.env.bind(name, index, missing());
        }
    }

    /// `value`, or after a fire, in place of a null, a missing value.
    pub(super) fn or_missing(&mut self, value: Bound) -> Bound {
        let is_null = matches!(value, Bound::Number(0, Radix::Decimal));
        if is_null && self.has_fired() { missing() } else { value }
    }

    /// After a fire, refuses `op` if it uses memory that the script does not hold. A statement that
    /// the guest is expected to die of uses what it likes.
    pub(super) fn admit(&mut self, at: Span, op: &Op) -> Result<(), Over> {
        let dies =
            self.below.as_ref().is_some_and(|below| matches!(below.what, Expected::Panic(_)));
        let is_admitted = match self.target.swept() {
            Some(swept) if swept.has_fired() && !dies => swept.admits(op),
            _ => true,
        };
        if is_admitted {
            return Ok(());
        }
        let text = self.source.text(at);
        let message = "after the fire the script does not hold this memory";
        Err(wrong(Diagnostic::new(at, message, "memory that the script holds", text)))
    }

    /// Judges the result of `what`. After a fire the sweep does that: it is told which statement
    /// had the last result, and whether `expect` asks for it.
    pub(super) fn judge_or_leave(
        &mut self,
        what: &Do,
        expect: Option<&Expect>,
        outcome: Outcome,
        called: &Called,
    ) -> Result<(), Over> {
        match self.target.swept() {
            Some(swept) if swept.has_fired() => {
                let is_wanted = is_of_kind(expect, outcome);
                swept.settled(what.span.line, if is_wanted { Wanted::Yes } else { Wanted::No });
                Ok(())
            }
            _ => self.judge(what, expect, outcome, called),
        }
    }
}

fn missing() -> Bound {
    Bound::Other(Box::new(Outcome::Null))
}
