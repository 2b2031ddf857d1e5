//! Inspection of a guest of this process. While requests are in flight, a thread is blocked, or the
//! clock advances by itself, the vCPUs are held during a look; otherwise the kernel is idle anyway.

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::control::MapId;
use vmkern_abi::layout::VmMeter;
use vmkern_abi::walk::Walk;

use super::handle::Guest;
use super::live::{Hold, Live};
use super::pause::PAUSE_LIMIT;
use crate::check::Report;
use crate::check::Rule;
use crate::inspect::{
    Anchors, EntryView, InspectError, Inspection, MapStats, PageRun, Registers, StallTimes,
    Symbols, ThreadView, Unstoppable, View, What,
};
use crate::kvm::boot::CONTROL;

/// The most bytes of an x86 instruction.
const INSTRUCTION_MAX: usize = 15;

impl Guest {
    /// The kernel's current counters; for a dead guest, those at its death. The ticks are the
    /// clock's, including those at which the kernel had no work.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn meter(&self) -> Result<VmMeter, InspectError> {
        self.look(|view| view.meter())
    }

    /// Microseconds of the guest's clock since its boot, in virtual or real time; for a dead guest,
    /// until its end.
    ///
    /// # Errors
    /// [`InspectError::NotReady`] while the kernel has no clock; see [`InspectError`].
    pub fn now_micros(&self) -> Result<u64, InspectError> {
        self.look(|view| view.now_micros())
    }

    /// For how long threads have been stalled on memory, up to now; in a dead guest, until its end.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn stall_times(&self) -> Result<StallTimes, InspectError> {
        self.look(|view| view.stall_times())
    }

    /// Size and use of a map.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn map_stats(&self, map: MapId) -> Result<MapStats, InspectError> {
        self.look(|view| view.map_stats(map))
    }

    /// The entries of a map in the order of addresses.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn map_entries(&self, map: MapId) -> Result<Vec<EntryView>, InspectError> {
        self.look(|view| view.map_entries(map))
    }

    /// All threads of the kernel, in the order in which they were made.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn threads(&self) -> Result<Vec<ThreadView>, InspectError> {
        self.look(|view| view.threads())
    }

    /// What the page tables map in `[start, end)`, both page aligned: neighbouring pages of one
    /// size with equal flags make one run. Unmapped addresses are left out.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn page_runs(
        &self,
        start: GuestVirt,
        end: GuestVirt,
    ) -> Result<Vec<PageRun>, InspectError> {
        self.look(|view| view.page_runs(start, end))
    }

    /// The host's own walk of the guest's page tables to `va`.
    ///
    /// # Errors
    /// See [`InspectError`]. An unmapped address is not an error.
    pub fn vtop(&self, va: GuestVirt) -> Result<Walk, InspectError> {
        self.look(|view| view.walk(va))
    }

    /// Copies guest memory out, from virtual address `start` on.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn read_memory(&self, start: GuestVirt, buffer: &mut [u8]) -> Result<(), InspectError> {
        self.look(|view| view.read("memory", start, buffer))
    }

    /// Reports on `what`; the report calls the guest `name`. Also works on a dead guest.
    ///
    /// # Errors
    /// [`InspectError::NotThere`] when the map or the page that `what` names does not exist; see
    /// [`InspectError`] for errors that concern the whole guest. Damage is not an error: the report
    /// lists it.
    pub fn inspect(&self, name: &str, what: &What) -> Result<Inspection, InspectError> {
        let none = Symbols::none();
        let symbols = if what.has_backtraces() { self.symbols() } else { &none };
        self.look(|view| Ok(Inspection::of(name, view, what, symbols)?))
    }

    /// The bytes at RIP: as many as an instruction can have, as far as they can be read.
    pub(crate) fn code_at(&self, registers: &Registers) -> Vec<u8> {
        let mut code = [0; INSTRUCTION_MAX];
        let read = |start: GuestVirt, buffer: &mut [u8]| {
            if registers.paging() {
                let source = self.live(Hold::No);
                source.is_ok_and(|source| {
                    let view = View::through(&source, GuestPhys::new(registers.cr3).page());
                    view.read("code", start, buffer).is_ok()
                })
            } else {
                self.hypervisor.ram.read(GuestPhys::new(start.get()), buffer).is_ok()
            }
        };
        let readable =
            (1..=INSTRUCTION_MAX).rev().find(|&len| read(registers.rip, &mut code[..len]));
        code[..readable.unwrap_or(0)].to_vec()
    }

    /// This guest's memory and CPUs.
    pub(crate) fn live(&self, hold: Hold) -> Result<Live<'_>, Unstoppable> {
        let anchors = || Anchors::of(CONTROL, self.link.region());
        Live::new(&self.hypervisor, hold, anchors)
    }

    /// Calls `f` with a view of the guest, which is held during the call if it could change.
    ///
    /// # Errors
    /// When the vCPU cannot be held or the kernel has no page tables yet, and the errors of `f`.
    pub fn look<T>(
        &self,
        f: impl FnOnce(&View<'_>) -> Result<T, InspectError>,
    ) -> Result<T, InspectError> {
        let source = self.live(if self.may_change() { Hold::Yes } else { Hold::No })?;
        f(&View::new(&source)?)
    }

    /// Checks every invariant of the kernel's memory from the outside; for a dead guest, as it was
    /// at its death. A running guest is held during the check, as by [`Guest::pause`].
    ///
    /// # Errors
    /// When the kernel's roots cannot be read; see [`InspectError`]. Everything else that is wrong
    /// is in the report.
    pub fn check(&self) -> Result<Report, InspectError> {
        let _pause = self.hypervisor.pause(PAUSE_LIMIT)?;
        self.look(Report::through)
    }

    /// As [`Guest::check`], for these rules only; see [`Report::only`].
    ///
    /// # Errors
    /// As there.
    pub fn check_only(&self, rules: &[&'static Rule]) -> Result<Report, InspectError> {
        let _pause = self.hypervisor.pause(PAUSE_LIMIT)?;
        self.look(|view| Report::only(view, rules))
    }
}
