//! For how long threads have been stalled on memory, up to the time of the look.
//!
//! The kernel accounts a stall when it ends, and the pressure when its state changes. The time
//! since then is added here.

use vmkern_abi::layout::{KernelRoots, Thread};
use vmkern_abi::pressure::{STALL_CAUSES, StallCause, StallLine, Stalls};

use super::clock;
use crate::InspectError;
use crate::view::View;

/// More threads than any kernel creates.
const COUNT_MAX: u64 = 1 << 16;

/// Time stalled on memory since the boot, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StallTimes {
    /// At least one thread was stalled.
    pub some: u64,
    /// At least one thread was stalled, and no thread worked.
    pub full: u64,
    /// All threads together, by [`StallCause::index`].
    pub causes: [u64; STALL_CAUSES],
}

impl StallTimes {
    /// Names of the times, as expressions know them.
    pub const NAMES: [&'static str; 9] = [
        "stall_some",
        "stall_full",
        "stall_vmwait",
        "stall_pfault",
        "stall_nokva",
        "stall_vmmaps",
        "stall_vmpfw",
        "stall_zonelimit",
        "stall_total",
    ];

    /// All threads and causes together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.causes.iter().fold(0, |sum, &micros| sum.saturating_add(micros))
    }

    /// The time with this name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<u64> {
        match name.strip_prefix("stall_")? {
            "some" => Some(self.some),
            "full" => Some(self.full),
            "total" => Some(self.total()),
            cause => {
                let cause = StallCause::ALL.into_iter().find(|known| known.name() == cause)?;
                Some(self.causes[cause.index()])
            }
        }
    }
}

/// The lines `some` and `full` at the time of the look, with the state and that time.
pub(crate) fn lines(view: &View<'_>, roots: &KernelRoots) -> (Stalls, u64, [StallLine; 2]) {
    let pressure = &roots.sched.pressure;
    let since = pressure.since.get();
    let now = clock::now(view.source()).map_or(since, |now| now.micros);
    (pressure.stalls(), now, pressure.lines(pressure.stalls(), now))
}

/// Microseconds of the stall of `thread` that goes on at `now`, with its cause.
pub(crate) fn going_on(thread: &Thread, now: u64) -> Option<(StallCause, u64)> {
    Some((thread.stall()?, now.saturating_sub(thread.stall_since.get())))
}

pub(super) fn times(view: &View<'_>) -> Result<StallTimes, InspectError> {
    let (_, roots) = super::roots(view)?;
    let (_, now, [some, full]) = lines(view, &roots);
    let mut causes = [0; STALL_CAUSES];
    for (cause, all) in causes.iter_mut().zip(&roots.sched.pressure.micros) {
        *cause = all.get();
    }
    let first = roots.sched.all.head.get();
    for item in
        view.list("thread", first, |thread: &Thread| thread.all_next.get()).at_most(COUNT_MAX)
    {
        if let Some((cause, micros)) = going_on(&item?.1, now) {
            causes[cause.index()] = causes[cause.index()].saturating_add(micros);
        }
    }
    Ok(StallTimes { some: some.total, full: full.total, causes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_a_name_in_expressions_and_the_total_is_their_sum() {
        let times = StallTimes { some: 100, full: 50, causes: [1, 2, 4, 8, 16, 32] };
        let values: Vec<_> =
            StallTimes::NAMES.iter().map(|name| times.by_name(name).expect("it is one")).collect();
        assert_eq!(values, [100, 50, 1, 2, 4, 8, 16, 32, 63]);
        assert_eq!((times.by_name("stall_vmopar"), times.by_name("vmwait")), (None, None));
    }
}
