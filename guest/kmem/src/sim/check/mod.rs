//! An independent check of everything in the simulated machine's memory, with the rules that hold
//! whenever no operation is in progress. It shares the layouts and the window with the code that it
//! checks, but none of its functions.

mod maps;
mod physical;

use std::collections::BTreeMap;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::kva::{KERNBASE, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{
    EntryFlags, ObjectType, Thread, ThreadState, VmObject, ZoneItem, index_above,
};
use vmkern_abi::pte::{Level, Pte, PteFlags};

pub use self::physical::check_zeros;
use super::{Sim, SimAccess};
use crate::kern::sched::PRI_MAX_IDLE;
use crate::kern::thread::{PAGEDAEMON_TID, PAGEZERO_TID};
use crate::num::to_usize;
use crate::window::PageTable;

/// Checks every rule of an idle system. Panics with the broken rule.
pub fn check(sim: &Sim) {
    check_holding(sim, 0);
}

/// Checks every rule of an idle system in which the test itself has `held` wired pages.
pub fn check_holding(sim: &Sim, held: u64) {
    let state = sim.vm().state();
    assert_eq!(sim.vm().held_locks().bits(), 0, "locks are held");
    check_stalls(sim);
    let translations = translations(sim);
    let objects = Objects::find(sim);
    maps::check(sim, &objects, &translations);
    check_translations(sim, &objects, &translations);
    for (&at, object) in &objects.0 {
        let o = sim.vm().get(at_object(at));
        assert_eq!(
            o.resident_page_count.get(),
            object.pages.len() as u64,
            "resident_page_count of {at:#x}"
        );
        assert_eq!(
            u64::from(o.ref_count.get()),
            u64::from(object.kernels) + object.entries,
            "ref_count of {at:#x}"
        );
        let last = object.pages.last_key_value().map_or(0, |(&pindex, _)| pindex + 1);
        assert!(last <= o.size.get(), "pages past the end of object {at:#x}");
    }
    let anonymous = objects.0.values().filter(|object| !object.kernels).count() as u64;
    let zone = &state.zones[VmObject::ZONE.index()];
    assert_eq!(zone.used.get(), anonymous, "anonymous objects that no entry knows");
    let wired = physical::check(sim, &objects);
    let kentered =
        translations.values().filter(|pte| pte.flags().contains(PteFlags::KENTER)).count() as u64;
    let slabs: u64 = state.zones.iter().map(|zone| zone.slabs.get()).sum();
    let tables = state.kernel_pmap.table_count.get();
    let wired_in = |object: &Object| {
        object
            .pages
            .values()
            .filter(|&&pfn| sim.vm().page_by_number(pfn).wire_count.get() > 0)
            .count() as u64
    };
    let known = state.map_pages.get()
        + slabs
        + tables
        + kentered
        + objects.0.values().map(wired_in).sum::<u64>();
    assert_eq!(wired, known + held, "pages that nobody accounts for");
    SimAccess::new(sim.vm()).assert_tlb_matches_tables();
}

/// Checks the counts of stalled and of working threads, and that each stalled thread has a
/// beginning.
fn check_stalls(sim: &Sim) {
    let (vm, pressure) = (sim.vm(), &sim.vm().state().sched.pressure);
    let threads = || vm.threads().map(|thread| vm.get(thread));
    let stalled = threads().filter(|t| t.stall().is_some()).count();
    let works = |t: &&Thread| {
        matches!(t.state(), Some(ThreadState::Running | ThreadState::Runnable))
            && t.base_priority.get() != PRI_MAX_IDLE
            && ![PAGEDAEMON_TID, PAGEZERO_TID].contains(&t.tid.get())
    };
    let counts = (to_usize(pressure.stalled.get().into()), to_usize(pressure.working.get().into()));
    assert_eq!(counts, (stalled, threads().filter(works).count()), "stalled and working threads");
    for t in threads().filter(|t| t.stall().is_none()) {
        assert_eq!(t.stall_since.get(), 0, "thread {} is not stalled", t.tid.get());
    }
}

/// An object, as the entries of all maps and its own index describe it.
struct Object {
    /// Whether it is kernel_object or kmem_object.
    kernels: bool,
    /// Entries on it.
    entries: u64,
    /// Its pages by index.
    pages: BTreeMap<u64, u32>,
}

/// All objects, by address.
struct Objects(BTreeMap<GuestVirt, Object>);

impl Objects {
    fn find(sim: &Sim) -> Self {
        let vm = sim.vm();
        let mut objects = BTreeMap::new();
        for object in [vm.kernel_object(), vm.kmem_object()] {
            let pages = resident(sim, vm.get(object));
            objects.insert(object.addr(), Object { kernels: true, entries: 0, pages });
        }
        let all = vm.vm_maps().flat_map(|map| vm.vm_map_entries(map)).map(|entry| vm.get(entry));
        for e in all.filter(|e| {
            !e.eflags.get().contains(EntryFlags::IS_SUB_MAP) && !e.object.get().is_null()
        }) {
            let pointer = e.object.get();
            let object = objects.entry(pointer.addr()).or_insert_with(|| {
                assert_eq!(
                    vm.get(pointer).kind.known(),
                    Some(ObjectType::Default),
                    "an object from nowhere"
                );
                Object { kernels: false, entries: 0, pages: resident(sim, vm.get(pointer)) }
            });
            object.entries += 1;
        }
        Self(objects)
    }
}

const fn at_object(at: GuestVirt) -> KPtr<VmObject> {
    KPtr::new(at)
}

/// The pages of an object by index, read from its tree, whose links are checked on the way.
pub fn resident(sim: &Sim, object: &VmObject) -> BTreeMap<u64, u32> {
    let vm = sim.vm();
    let mut pages = BTreeMap::new();
    let mut below = vec![(object.root.get(), 0, 0..u64::MAX)];
    while let Some((pfn, parent, room)) = below.pop().filter(|(pfn, ..)| *pfn != 0) {
        let page = vm.page_by_number(pfn);
        let pindex = page.pindex.get();
        assert_eq!(page.parent.get(), parent, "parent of page {pfn:#x}");
        assert!(room.contains(&pindex), "page {pfn:#x} at {pindex:#x}, where {room:x?} belongs");
        assert!(
            parent == 0 || index_above(vm.page_by_number(parent).pindex.get(), pindex),
            "page {pfn:#x} at {pindex:#x} is below page {parent:#x}"
        );
        assert_eq!(pages.insert(pindex, pfn), None, "two pages at {pindex:#x}");
        let sides =
            [(page.left.get(), room.start..pindex), (page.right.get(), pindex + 1..room.end)];
        below.extend(
            sides.into_iter().filter(|(pfn, _)| *pfn != 0).map(|(below, room)| (below, pfn, room)),
        );
    }
    check_last_search(sim, object, &pages);
    pages
}

/// Checks that the pages between which the last search ended are neighbours.
fn check_last_search(sim: &Sim, object: &VmObject, pages: &BTreeMap<u64, u32>) {
    let (before, after) = (object.before.get(), object.after.get());
    let next = match before {
        0 => pages.first_key_value(),
        pfn => {
            let pindex = sim.vm().page_by_number(pfn).pindex.get();
            assert_eq!(pages.get(&pindex), Some(&pfn), "the page before the last search");
            pages.range(pindex + 1..).next()
        }
    };
    assert!(
        before | after == 0 || next.map_or(0, |(_, &pfn)| pfn) == after,
        "the page after the last search"
    );
}

/// All valid 4 KiB translations of the kernel's maps, without the image's own, by address.
fn translations(sim: &Sim) -> BTreeMap<u64, Pte> {
    let mut found = BTreeMap::new();
    let root = sim.vm().state().kernel_pmap.pml4.get();
    let slot = Level::Pml4.index(VM_MIN_KERNEL_ADDRESS);
    let top = sim.vm().at::<PageTable>(root)[slot].get();
    walk_table(sim, top.frame(), Level::Pdpt, VM_MIN_KERNEL_ADDRESS.get(), &mut found);
    let image_end = sim.vm().state().virtual_avail.get().get();
    found.retain(|&va, _| !(KERNBASE.get()..image_end).contains(&va));
    found
}

fn walk_table(
    sim: &Sim,
    table: GuestPhys,
    level: Level,
    base: u64,
    found: &mut BTreeMap<u64, Pte>,
) {
    let below = match level {
        Level::Pdpt => Some(Level::Pd),
        Level::Pd => Some(Level::Pt),
        _ => None,
    };
    let mut valid = 0;
    for (index, entry) in (0u64..).zip(sim.vm().at::<PageTable>(table)) {
        let (pte, va) = (entry.get(), base + index * level.span());
        if !pte.is_valid() {
            assert_eq!(pte.bits(), 0, "an invalid entry at {va:#x} is not empty");
            continue;
        }
        valid += 1;
        assert!(!pte.is_large(), "a large page at {va:#x}");
        match below {
            Some(below) => walk_table(sim, pte.frame(), below, va, found),
            None => drop(found.insert(va, pte)),
        }
    }
    if below.is_none() {
        let counted = count_of_table(sim, table).unwrap_or(valid);
        assert_eq!(counted, valid, "valid entries of the page table for {base:#x}");
    }
}

/// The count of valid entries of the page table at `table`; `None` for the image's tables.
fn count_of_table(sim: &Sim, table: GuestPhys) -> Option<u32> {
    let boots = &sim.vm().state().boot_tables;
    let first = boots.kptphys.get().pfn();
    match table.pfn().checked_sub(first).filter(|&number| number < boots.nkpt.get()) {
        Some(number) => Some(boots.valid[to_usize(number)].get()),
        None => sim.vm().phys_to_vm_page(table).map(|m| sim.vm().get(m).private.get()),
    }
}

/// Flags and counts of the translations themselves.
fn check_translations(sim: &Sim, objects: &Objects, translations: &BTreeMap<u64, Pte>) {
    let pmap = &sim.vm().state().kernel_pmap;
    let (mut resident, mut wired) = (0, 0);
    let mut frames = BTreeMap::new();
    for (&va, pte) in translations {
        let flags = pte.flags();
        let always = PteFlags::V | PteFlags::G | PteFlags::NX | PteFlags::U;
        assert!(flags.contains(always), "flags at {va:#x}: {flags:?}");
        if !flags.contains(PteFlags::KENTER) {
            resident += 1;
            wired += u64::from(flags.contains(PteFlags::W));
            let m = sim.vm().phys_to_vm_page(pte.frame()).expect("a managed page");
            let is_kernels = objects
                .0
                .get(&sim.vm().get(m).object.get().addr())
                .is_some_and(|object| object.kernels);
            let is_wired = sim.vm().get(m).wire_count.get() > 0;
            assert_eq!(flags.contains(PteFlags::W), is_wired, "flags at {va:#x}: {flags:?}");
            assert!(flags.contains(PteFlags::A), "flags at {va:#x}: {flags:?}");
            assert!(
                !is_kernels
                    || flags.contains(PteFlags::W)
                        && flags.contains(PteFlags::M) == flags.contains(PteFlags::RW),
                "flags at {va:#x}: {flags:?}"
            );
        }
        let other = frames.insert(pte.frame(), va);
        assert_eq!(other, None, "{va:#x} and another address share the page {}", pte.frame());
    }
    assert_eq!(pmap.resident_count.get(), resident, "resident_count");
    assert_eq!(pmap.wired_count.get(), wired, "wired_count");
}

/// Addresses of the pages of `[start, end)`.
fn pages(start: GuestVirt, end: GuestVirt) -> impl Iterator<Item = GuestVirt> {
    (start.get()..end.get()).step_by(to_usize(PAGE_SIZE)).map(GuestVirt::new)
}
