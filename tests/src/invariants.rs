//! Invariants of a guest between operations: the host's own checker, which is independent of the
//! kernel, finds nothing, and the counters add up.

use std::fmt;

use vmkern::Guest;
use vmkern::check::Report;
use vmkern::inspect::InspectError;

/// A description of the invariants that do not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<InspectError> for Broken {
    fn from(error: InspectError) -> Self {
        Self(error.to_string())
    }
}

fn ensure(holds: bool, words: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken(words())) }
}

/// Checks everything that the host can see. Half-made work of sleeping threads is allowed.
///
/// # Errors
/// What does not hold.
pub fn check(guest: &Guest) -> Result<(), Broken> {
    let report: Report = guest.check()?;
    ensure(report.is_clean() && report.updating.is_empty(), || report.to_string())?;
    // Pages that kmem_alloc has allocated but not wired yet are on no queue.
    if guest.blocked().next().is_some() {
        return Ok(());
    }
    let meter = guest.meter()?;
    let queued =
        meter.v_active_count.get() + meter.v_inactive_count.get() + meter.v_cache_count.get();
    let (free, wired, all) =
        (meter.v_free_count.get(), meter.v_wire_count.get(), meter.v_page_count.get());
    ensure(free + wired + queued == all, || {
        format!("{free} free pages, {wired} wired and {queued} queued ones are not {all}")
    })
}
