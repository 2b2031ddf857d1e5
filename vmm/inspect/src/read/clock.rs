//! The time in a guest, computed by the host: the guest need not keep count of it.
//!
//! The kernel publishes its clock's base ([`ClockBase`]) in the control region; the base and the
//! TSC of the guest's CPUs give the time of a look. The TSC is read when a CPU is held or ends. So
//! the time of a dead guest is the time of its death, and the time of a dump is the time at which
//! it was made.

use std::mem::offset_of;

use vmkern_abi::clock::ClockBase;
use vmkern_abi::control::ControlRegion;
use vmkern_abi::layout::VmMeter;
use zerocopy::{FromZeros as _, IntoBytes as _};

use crate::View;
use crate::source::Source;

/// The time since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// In microseconds.
    pub micros: u64,
    /// In clock ticks.
    pub ticks: u64,
}

/// The time; `None` while the kernel has no clock or its CPUs cannot be read.
pub(crate) fn now(source: &dyn Source) -> Option<Now> {
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

/// Sets `meter`'s ticks to the current number. The kernel itself writes it only at ticks at which
/// it has work.
pub(crate) fn set_ticks(view: &View<'_>, meter: &VmMeter) {
    if let Some(now) = now(view.source()) {
        meter.ticks.update_locked(|ticks| ticks.max(now.ticks));
    }
}
