//! An independent look at everything in the simulated machine's memory: what must hold whenever no operation is going
//! on. It shares the layouts and the window with the code it checks, but none of its functions.

mod maps;
mod physical;

use std::collections::BTreeMap;

use vmkern_abi::addr::{GuestPhys, GuestVirt, PAGE_SIZE};
use vmkern_abi::kva::{KERNBASE, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{INDEX_LEVELS, INDEX_SHIFT, IndexNode, VmObject};
use vmkern_abi::pte::{Level, Pte, PteFlags};

pub use self::physical::check_zeros;
use super::{Sim, SimAccess};
use crate::num::to_usize;
use crate::window::PageTable;

/// Everything that a quiet system promises. Panics with what is broken.
pub fn check(sim: &Sim) {
    let state = sim.vm().state();
    assert_eq!(state.held_locks.get(), 0, "locks are held");
    let translations = translations(sim);
    let kernel = resident(sim, &state.kernel_object);
    let kmem = resident(sim, &state.kmem_object);
    let entries = maps::check(sim, &kernel, &kmem, &translations);
    check_translations(sim, &translations);
    for (object, pages, name) in [(&state.kernel_object, &kernel, 0), (&state.kmem_object, &kmem, 1)] {
        assert_eq!(object.resident_page_count.get(), pages.len() as u64, "resident_page_count");
        assert_eq!(u64::from(object.ref_count.get()), 1 + entries[name], "ref_count");
    }
    let wired = physical::check(sim);
    let kentered = translations.values().filter(|pte| pte.flags().contains(PteFlags::KENTER)).count() as u64;
    let nodes = u64::from(state.kernel_object.index_pages.get() + state.kmem_object.index_pages.get());
    let tables = state.kernel_pmap.table_count.get();
    let known = state.map_pages.get() + nodes + tables + kentered + (kernel.len() + kmem.len()) as u64;
    assert_eq!(wired, known, "pages that nobody accounts for");
    SimAccess::new(sim.vm()).assert_tlb_matches_tables();
}

/// The pages of an object by index, read off its index; the counts in the nodes' pages are checked on the way.
fn resident(sim: &Sim, object: &VmObject) -> BTreeMap<u64, u32> {
    let mut pages = BTreeMap::new();
    let mut nodes = 0;
    if object.root.get() != 0 {
        visit(sim, object.root.get(), INDEX_LEVELS - 1, 0, &mut pages, &mut nodes);
    }
    assert_eq!(object.index_pages.get(), nodes, "index_pages");
    pages
}

fn visit(sim: &Sim, pfn: u32, level: u32, base: u64, pages: &mut BTreeMap<u64, u32>, nodes: &mut u32) {
    *nodes += 1;
    let vm = sim.vm();
    let node: &IndexNode = vm.at(GuestPhys::from_pfn(pfn.into()));
    let mut used = 0;
    for (slot, below) in (0u64..).zip(&node.slots).filter(|(_, below)| below.get() != 0) {
        used += 1;
        let pindex = base | slot << (INDEX_SHIFT * level);
        if level == 0 {
            pages.insert(pindex, below.get());
        } else {
            visit(sim, below.get(), level - 1, pindex, pages, nodes);
        }
    }
    let counted = vm.page_by_number(pfn).private.get();
    // kmem_map's index is pinned once for ever.
    let pins = counted.checked_sub(used);
    assert!(pins == Some(0) || (level == 0 && pins == Some(1)), "index node {pfn:#x} counts {counted}, uses {used}");
    assert!(counted > 0, "index node {pfn:#x} is of no use");
}

/// All valid 4 KiB translations of the kernel's maps, the image's own left out, by address.
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

fn walk_table(sim: &Sim, table: GuestPhys, level: Level, base: u64, found: &mut BTreeMap<u64, Pte>) {
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
    if let (None, Some(m)) = (below, sim.vm().phys_to_vm_page(table)) {
        assert_eq!(sim.vm().get(m).private.get(), valid, "valid entries of the page table for {base:#x}");
    }
}

/// Flags and counts of the translations themselves.
fn check_translations(sim: &Sim, translations: &BTreeMap<u64, Pte>) {
    let pmap = &sim.vm().state().kernel_pmap;
    let (mut resident, mut wired) = (0, 0);
    let mut frames = BTreeMap::new();
    for (&va, pte) in translations {
        let flags = pte.flags();
        let always = PteFlags::V | PteFlags::RW | PteFlags::G | PteFlags::NX | PteFlags::U;
        assert!(flags.contains(always), "flags at {va:#x}: {flags:?}");
        if !flags.contains(PteFlags::KENTER) {
            resident += 1;
            wired += u64::from(flags.contains(PteFlags::W));
            assert!(flags.contains(PteFlags::A | PteFlags::M | PteFlags::W), "flags at {va:#x}: {flags:?}");
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
