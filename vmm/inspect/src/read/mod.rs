//! Readers for single facts about a kernel: its counters, clock, maps, threads and page tables.
//!
//! Any contradiction is an [`InspectError`]; nothing is left out silently.

pub(crate) mod clock;
pub(crate) mod leaves;
mod maps;
mod pages;
pub(crate) mod stalls;
mod threads;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::MapId;
use vmkern_abi::layout::{KernelRoots, VmMeter};

pub use self::leaves::{Leaf, Leaves};
pub use self::maps::{EntryView, MapStats, ObjectView};
pub use self::pages::PageRun;
pub use self::stalls::StallTimes;
pub use self::threads::ThreadView;
use crate::error::InspectError;
use crate::view::View;

/// The kernel's table of roots, with its address.
pub(crate) fn roots(view: &View<'_>) -> Result<(KPtr<KernelRoots>, KernelRoots), InspectError> {
    const WHAT: &str = "kernel roots";
    let at = view.roots().non_null().ok_or(InspectError::NotReady("roots"))?;
    let roots = view.copy(WHAT, at)?;
    match roots.abi_version.get() {
        vmkern_abi::ABI_VERSION => Ok((at, roots)),
        version => Err(InspectError::damaged(
            WHAT,
            at.addr(),
            format!("ABI version {version}, expected {}", vmkern_abi::ABI_VERSION),
        )),
    }
}

impl View<'_> {
    /// The kernel's table of roots, with its address.
    ///
    /// # Errors
    /// [`InspectError::NotReady`] while the kernel has none; [`InspectError::Damaged`] when it has
    /// another ABI version; and those of [`View::copy`].
    pub fn kernel_roots(&self) -> Result<(KPtr<KernelRoots>, KernelRoots), InspectError> {
        roots(self)
    }

    /// The kernel's counters. The ticks are the clock's, including those at which the kernel had no
    /// work.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn meter(&self) -> Result<VmMeter, InspectError> {
        let meter = roots(self)?.1.meter;
        clock::set_ticks(self, &meter);
        Ok(meter)
    }

    /// Microseconds of the guest's clock since its boot.
    ///
    /// # Errors
    /// [`InspectError::NotReady`] while the kernel has no clock.
    pub fn now_micros(&self) -> Result<u64, InspectError> {
        clock::now(self.source()).map(|now| now.micros).ok_or(InspectError::NotReady("clock"))
    }

    /// For how long threads have been stalled on memory.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn stall_times(&self) -> Result<StallTimes, InspectError> {
        stalls::times(self)
    }

    /// Size and use of a map.
    ///
    /// # Errors
    /// [`InspectError::NoSuchMap`]; see [`InspectError`].
    pub fn map_stats(&self, map: MapId) -> Result<MapStats, InspectError> {
        maps::stats(self, map)
    }

    /// The entries of a map in the order of addresses.
    ///
    /// # Errors
    /// [`InspectError::NoSuchMap`]; see [`InspectError`].
    pub fn map_entries(&self, map: MapId) -> Result<Vec<EntryView>, InspectError> {
        maps::entries(self, map)
    }

    /// All threads that have not exited, in the order in which they were made.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn threads(&self) -> Result<Vec<ThreadView>, InspectError> {
        threads::threads(self, &roots(self)?.1.sched)
    }

    /// What the page tables map in `[start, end)`, both page aligned: neighbouring pages of one
    /// size with equal flags make one run. Unmapped addresses are left out.
    ///
    /// # Errors
    /// [`InspectError::BadRange`]; see [`InspectError`].
    pub fn page_runs(
        &self,
        start: GuestVirt,
        end: GuestVirt,
    ) -> Result<Vec<PageRun>, InspectError> {
        pages::runs(self, start, end)
    }
}
