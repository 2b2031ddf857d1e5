//! What must hold in a guest between operations: the word of the host's own check, which does not
//! depend on the kernel, and the sums that the kernel's counters must add up to.

use crate::guest::Guest;

/// Checks everything that the host can see. What sleeping threads have half made is allowed.
///
/// # Errors
/// What does not hold, in words.
pub(super) fn whole(guest: &Guest) -> Result<(), String> {
    // 1. The check.
    let report = guest.check().map_err(|error| format!("the guest cannot be checked: {error}"))?;
    if !report.is_clean() || !report.updating.is_empty() {
        return Err(format!("the check found:\n{report}"));
    }
    // 2. Pages. A thread that sleeps may have some that are not wired yet and on no queue.
    if guest.blocked().next().is_some() {
        return Ok(());
    }
    let meter = guest.meter().map_err(|error| format!("the counters cannot be read: {error}"))?;
    let queued =
        meter.v_active_count.get() + meter.v_inactive_count.get() + meter.v_cache_count.get();
    let (free, wired, all) =
        (meter.v_free_count.get(), meter.v_wire_count.get(), meter.v_page_count.get());
    if free + wired + queued == all {
        return Ok(());
    }
    Err(format!("{free} free pages, {wired} wired and {queued} queued ones are not {all}"))
}
