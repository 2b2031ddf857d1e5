//! What time it is in a guest, of which nobody in the guest need keep count.
//!
//! The kernel publishes its clock's base ([`ClockBase`]) in the control region; together with the
//! TSC of the guest's CPUs it says what time it is at any look. The TSC is that of the moment at
//! which a CPU was held or ended, so that the time of a dead guest is that of its end, and an
//! image's that of its making.

use std::mem::offset_of;

use vmkern_abi::clock::ClockBase;
use vmkern_abi::control::ControlRegion;
use vmkern_abi::layout::VmMeter;
use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::View;

/// The time since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// In microseconds.
    pub micros: u64,
    /// In clock ticks.
    pub ticks: u64,
}

/// What time it is; nothing while the kernel has no clock, or its CPUs cannot be asked.
pub(crate) fn now(view: &View<'_>) -> Option<Now> {
    let source = view.source();
    let at = source.anchors().control.checked_add(offset_of!(ControlRegion, clock) as u64)?;
    let mut base = ClockBase::new_zeroed();
    source.read(at, base.as_mut_bytes()).ok()?;
    let tsc = if base.is_real.is_set() {
        source.cpus().ok()?.iter().map(|cpu| cpu.tsc).max()?
    } else {
        0
    };
    Some(Now { micros: base.micros_at(tsc)?, ticks: base.ticks_at(tsc)? })
}

/// Sets `meter`'s ticks, of which the kernel itself writes only those at which it had something to
/// do, to what they are now.
pub(crate) fn set_ticks(view: &View<'_>, meter: &VmMeter) {
    if let Some(now) = now(view) {
        meter.ticks.update_locked(|ticks| ticks.max(now.ticks));
    }
}
