//! Allocations of the simulated machine that fail on purpose.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Sim;
use crate::machine::Supply;

/// Which allocation must fail.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Only allocations for this count; all do when it is `None`.
    what: Option<Supply>,
    /// The number of allocations that still succeed before one is refused.
    granted: u64,
    refused: bool,
}

/// The plan, if there is one.
#[derive(Debug, Default)]
pub struct Refusal(Mutex<Option<Plan>>);

impl Refusal {
    fn plan(&self) -> MutexGuard<'_, Option<Plan>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this allocation is refused: one per plan.
    pub fn refuses(&self, what: Supply) -> bool {
        let mut plan = self.plan();
        let Some(plan) = plan.as_mut() else { return false };
        // The check for the page's purpose comes first, and then the one for the page itself.
        let counts = plan.what.map_or(matches!(what, Supply::Page(_)), |wanted| wanted == what);
        if !counts || plan.refused {
            return false;
        }
        plan.refused = plan.granted == 0;
        plan.granted = plan.granted.saturating_sub(1);
        plan.refused
    }
}

impl Sim {
    /// Makes the allocation number `nth`, counted from 1, fail once, of those for `what` or of all.
    pub fn refuse(&self, what: Option<Supply>, nth: u64) {
        assert!(nth > 0, "allocations are counted from 1 on");
        *self.machine().refusal.plan() = Some(Plan { what, granted: nth - 1, refused: false });
    }

    /// Ends the plan. Returns whether the allocation was refused.
    #[must_use]
    pub fn has_refused(&self) -> bool {
        self.machine().refusal.plan().take().is_some_and(|plan| plan.refused)
    }
}
