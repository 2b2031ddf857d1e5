//! Maps: their own rules, and that pages and translations are exactly those of their entries.

use std::collections::{BTreeMap, BTreeSet};

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::kva::{KERNBASE, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{EntryFlags, PageFlags, PageOflags, VM_PAGE_BITS_ALL, VmMap, VmMapEntry, VmObject};
use vmkern_abi::pte::{Pte, PteFlags};

use super::pages;
use crate::sim::Sim;

/// Checks both maps; gives the entries on kernel_object and on kmem_object.
pub fn check(
    sim: &Sim,
    kernel: &BTreeMap<u64, u32>,
    kmem: &BTreeMap<u64, u32>,
    translations: &BTreeMap<u64, Pte>,
) -> [u64; 2] {
    let vm = sim.vm();
    let mut all = Vec::new();
    for map in [vm.kernel_map(), vm.kmem_map()] {
        vm.vm_map_check(map).unwrap_or_else(|damage| panic!("{damage:?}"));
        all.extend(list(sim, map));
    }
    let mut counts = [0; 2];
    let mut owned = BTreeSet::new();
    let mut objectless = BTreeSet::new();
    for e in all {
        if e.eflags.get().contains(EntryFlags::IS_SUB_MAP) {
            let submap = vm.get::<VmMap>(KPtr::new(e.object.get().addr()));
            assert_eq!((submap.min_offset(), submap.max_offset()), (e.start.get(), e.end.get()), "submap's ends");
        } else if e.object.get().is_null() {
            objectless.extend(pages(e.start.get(), e.end.get()));
        } else {
            let which = usize::from(e.object.get() == vm.kmem_object());
            assert!(which == 1 || e.object.get() == vm.kernel_object(), "an object from nowhere");
            counts[which] += 1;
            check_pages(sim, e, [kernel, kmem][which], translations);
            owned.extend(pages(e.start.get(), e.end.get()));
        }
    }
    assert_eq!(owned.len(), kernel.len() + kmem.len(), "pages outside of any entry");
    for (&va, pte) in translations {
        let va = GuestVirt::new(va);
        let is_kentered = pte.flags().contains(PteFlags::KENTER);
        let home = if is_kentered { &objectless } else { &owned };
        assert!(home.contains(&va), "a translation at {va}, where nothing is allocated: {pte:?}");
    }
    counts
}

/// The entries of a map in order, with the list's rules checked.
fn list(sim: &Sim, map: KPtr<VmMap>) -> Vec<&VmMapEntry> {
    let vm = sim.vm();
    let m = vm.get(map);
    let head: KPtr<VmMapEntry> = KPtr::new(map.addr());
    let (mut entries, mut size, mut below) = (Vec::new(), 0, m.min_offset());
    let mut at = m.header.next.get();
    while at != head {
        let e = vm.get(at);
        assert!(e.start.get() >= below && e.start.get() < e.end.get(), "entry {} out of order", e.start.get());
        assert!(e.start.get().is_page_aligned() && e.end.get().is_page_aligned(), "entry {}", e.start.get());
        assert_eq!(vm.get(e.next.get()).prev.get(), at, "links of entry {}", e.start.get());
        let passing = EntryFlags::IN_TRANSITION | EntryFlags::NEEDS_WAKEUP;
        assert!(!e.eflags.get().intersects(passing), "entry {} is in transition", e.start.get());
        size += e.end.get().since(e.start.get());
        below = e.end.get();
        entries.push(e);
        at = e.next.get();
    }
    assert!(below <= m.max_offset(), "entries past the map's end");
    assert_eq!(m.nentries.get(), entries.len() as u64, "nentries");
    assert_eq!(m.size.get(), size, "size");
    assert_eq!(m.needs_wakeup.get(), 0, "needs_wakeup");
    let low = entries.iter().filter(|e| e.end.get() <= KERNBASE).map(|e| e.end.get()).max();
    if map == vm.kernel_map() {
        assert!(low.is_none_or(|end| vm.state().kernel_vm_end.get() >= end), "kernel_vm_end is too low");
    }
    entries
}

/// An entry on an object has all its pages, wired once and mapped.
fn check_pages(sim: &Sim, e: &VmMapEntry, resident: &BTreeMap<u64, u32>, translations: &BTreeMap<u64, Pte>) {
    assert_eq!(e.offset.get(), e.start.get().since(VM_MIN_KERNEL_ADDRESS), "offset of entry {}", e.start.get());
    assert_eq!(e.wired_count.get(), 1, "wired_count of entry {}", e.start.get());
    for va in pages(e.start.get(), e.end.get()) {
        let pindex = va.since(VM_MIN_KERNEL_ADDRESS) / PAGE_SIZE;
        let pfn = *resident.get(&pindex).unwrap_or_else(|| panic!("no page behind {va}"));
        let pte = translations.get(&va.get()).unwrap_or_else(|| panic!("no translation for {va}"));
        assert_eq!(pte.frame(), GuestPhys::from_pfn(pfn.into()), "the page behind {va}");
        let page = sim.vm().page_by_number(pfn);
        let object: KPtr<VmObject> = e.object.get();
        assert_eq!((page.object.get(), page.pindex.get()), (object, pindex), "the owner of the page behind {va}");
        assert_eq!(page.wire_count.get(), 1, "wire_count of the page behind {va}");
        assert_eq!(page.valid.get(), VM_PAGE_BITS_ALL, "valid of the page behind {va}");
        assert_eq!(page.oflags.get(), PageOflags::empty(), "oflags of the page behind {va}");
        assert!(page.flags.get().contains(PageFlags::ALLOCATED | PageFlags::UNMANAGED), "flags of {va}");
        assert_eq!((page.queue.get(), page.hold_count.get(), page.busy.get()), (0, 0, 0), "the page behind {va}");
    }
}
