//! The map operations, rule by rule, on the simulated machine.

mod clip;
mod delete;
mod deleting;
mod history;
mod insert;
mod kmem;
mod protect;
mod reserve;
mod space;
mod submap;
mod transition;
mod unwire;
mod wire;

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::KernReturn;
use vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS;
use vmkern_abi::layout::{VmMap, VmMapEntry};

use super::{EntrySpec, Lookup, NoRange};
use crate::sim::{Sim, SimMachine};
use crate::vm::Vm;
use crate::vm::page::{AllocClass, AllocFlags};

/// A machine of 64 MiB with a system map of 256 pages, a submap of kernel_map. Pages are counted
/// from the map's start.
struct Fixture {
    sim: Sim,
    map: KPtr<VmMap>,
    min: GuestVirt,
}

/// Pages of the fixture's map.
const PAGES: u64 = 256;

impl Fixture {
    fn new() -> Self {
        let sim = Sim::boot(64 << 20, Tunables::default());
        let map = sim.vm().kmem_suballoc(sim.vm().kernel_map(), PAGES * PAGE_SIZE);
        sim.vm().get(map).system_map.raise();
        let min = sim.vm().get(map).min_offset();
        Self { sim, map, min }
    }

    fn vm(&self) -> &Vm<SimMachine> {
        self.sim.vm()
    }

    fn map(&self) -> &VmMap {
        self.vm().get(self.map)
    }

    /// The address of page `page`.
    fn at(&self, page: u64) -> GuestVirt {
        self.min.add(page * PAGE_SIZE)
    }

    fn page(&self, va: GuestVirt) -> u64 {
        va.since(self.min) / PAGE_SIZE
    }

    /// Runs `f` with the map locked.
    fn locked<T>(&self, f: impl FnOnce() -> T) -> T {
        self.vm().vm_map_lock(self.map);
        let result = f();
        self.vm().vm_map_unlock(self.map);
        result
    }

    fn insert(&self, spec: &EntrySpec, start: u64, end: u64) -> Result<(), KernReturn> {
        self.locked(|| self.vm().vm_map_insert(self.map, spec, self.at(start), self.at(end)))
    }

    fn findspace(&self, start: u64, pages: u64) -> Result<u64, KernReturn> {
        let found =
            self.locked(|| self.vm().vm_map_findspace(self.map, self.at(start), pages * PAGE_SIZE));
        found.map(|va| self.page(va)).map_err(NoRange::code)
    }

    fn remove(&self, start: u64, end: u64) {
        self.vm().vm_map_remove(self.map, self.at(start), self.at(end));
    }

    fn entry(&self, page: u64) -> &VmMapEntry {
        match self.vm().vm_map_lookup_entry(self.map, self.at(page)) {
            Lookup::Inside(entry) => self.vm().get(entry),
            Lookup::After(_) => panic!("page {page} is in no entry"),
        }
    }

    fn entry_ptr(&self, page: u64) -> KPtr<VmMapEntry> {
        let (Lookup::Inside(entry) | Lookup::After(entry)) =
            self.vm().vm_map_lookup_entry(self.map, self.at(page));
        entry
    }

    fn simplify(&self, page: u64) -> KPtr<VmMapEntry> {
        self.locked(|| self.vm().vm_map_simplify_entry(self.map, self.entry_ptr(page)))
    }

    /// Runs `f` on the entry at `page` with the map locked, and with enough in reserve for two
    /// cuts.
    fn cutting(&self, page: u64, f: impl FnOnce(KPtr<VmMapEntry>)) {
        self.locked(|| {
            self.vm().map_reserve(self.map(), 2).expect("there are pages");
            f(self.entry_ptr(page));
        });
    }

    /// Allocates all pages of the machine except `left`.
    fn drain(&self, left: u64) {
        while self.vm().cnt().v_free_count.get() > left {
            let page = self.vm().vm_page_alloc_noobj(AllocClass::Interrupt, AllocFlags::WIRED);
            assert!(page.is_some(), "a free page is there");
        }
    }

    /// A range of kmem_object with the reference that its entry needs.
    fn kmem_spec(&self, page: u64) -> EntrySpec {
        self.vm().vm_object_reference(self.vm().kmem_object());
        EntrySpec::object(self.vm().kmem_object(), self.at(page).since(VM_MIN_KERNEL_ADDRESS))
    }

    /// References to kmem_object.
    fn kmem_refs(&self) -> u32 {
        self.vm().get(self.vm().kmem_object()).ref_count.get()
    }

    /// All entries, first and last page, after a check of the whole map.
    fn ranges(&self) -> Vec<(u64, u64)> {
        self.vm().vm_map_check(self.map).expect("the map is sound");
        let entries = self.vm().vm_map_entries(self.map).map(|entry| self.vm().get(entry));
        entries.map(|e| (self.page(e.start.get()), self.page(e.end.get()))).collect()
    }
}
