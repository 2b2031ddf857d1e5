//! Looking into a guest of this process. While requests are in flight, a thread is blocked or the
//! clock moves by itself, the vCPUs are held for the time of a look; else the kernel is idle.

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
    Anchors, EntryView, InspectError, Inspection, MapStats, PageRun, Registers, Symbols,
    ThreadView, Unstoppable, View, What,
};
use crate::kvm::boot::CONTROL;

/// Bytes that an x86 instruction can have.
const INSTRUCTION_MAX: usize = 15;

impl Guest {
    /// The kernel's counters, as they are now; of a dead guest, as they were at its death. The
    /// ticks are those of the clock, whether the kernel has had something to do at them or not.
    ///
    /// # Errors
    /// See [`InspectError`].
    pub fn meter(&self) -> Result<VmMeter, InspectError> {
        self.look(|view| view.meter())
    }

    /// Microseconds of the guest's clock since its boot: virtual ones, or real ones; of a dead
    /// guest, those until its end.
    ///
    /// # Errors
    /// [`InspectError::NotReady`] while the kernel has no clock; see [`InspectError`].
    pub fn now_micros(&self) -> Result<u64, InspectError> {
        self.look(|view| view.now_micros())
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
    /// size with equal flags make one run. What is not mapped is left out.
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
    /// See [`InspectError`]. That nothing is mapped there is no error.
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

    /// Looks at `what`; the report calls the guest `name`. Works on a dead guest too.
    ///
    /// # Errors
    /// [`InspectError::NotThere`] when the map or the page that `what` names does not
    /// exist; see [`InspectError`] for those that concern the whole guest. Damage is no error: the
    /// report tells it.
    pub fn inspect(&self, name: &str, what: &What) -> Result<Inspection, InspectError> {
        let none = Symbols::none();
        let symbols = if what.has_backtraces() { self.symbols() } else { &none };
        self.look(|view| Ok(Inspection::of(name, view, what, symbols)?))
    }

    /// The bytes at RIP: as many as an instruction can have, or as can be read.
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

    /// Has `f` look at the guest, which is held meanwhile if it could change.
    ///
    /// # Errors
    /// When the vCPU cannot be held or the kernel has no page tables yet, and what `f` says.
    pub fn look<T>(
        &self,
        f: impl FnOnce(&View<'_>) -> Result<T, InspectError>,
    ) -> Result<T, InspectError> {
        let source = self.live(if self.may_change() { Hold::Yes } else { Hold::No })?;
        f(&View::new(&source)?)
    }

    /// Checks every invariant of the kernel's memory from the outside; of a dead guest, as it was
    /// at its death. One that runs is held meanwhile, as [`Guest::pause`] does.
    ///
    /// # Errors
    /// When there is nothing to begin with; see [`InspectError`]. What is wrong beyond
    /// that is in the report.
    pub fn check(&self) -> Result<Report, InspectError> {
        let _pause = self.hypervisor.pause(PAUSE_LIMIT)?;
        self.look(Report::through)
    }

    /// As [`Guest::check`], for these rules alone; see [`Report::only`].
    ///
    /// # Errors
    /// As there.
    pub fn check_only(&self, rules: &[&'static Rule]) -> Result<Report, InspectError> {
        let _pause = self.hypervisor.pause(PAUSE_LIMIT)?;
        self.look(|view| Report::only(view, rules))
    }
}
