//! Checks of maps: their own rules, and that pages and translations are exactly those of their
//! entries.

use std::collections::{BTreeMap, BTreeSet};

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::kva::{KERNBASE, VM_MIN_KERNEL_ADDRESS};
use vmkern_abi::layout::{
    EntryFlags, PQ_ACTIVE, PageFlags, PageOflags, Protection, VM_PAGE_BITS_ALL, VmMap, VmMapEntry,
    VmObject,
};
use vmkern_abi::pte::{Pte, PteFlags};

use super::{Objects, pages};
use crate::sim::Sim;

/// Checks all maps.
pub fn check(sim: &Sim, objects: &Objects, translations: &BTreeMap<u64, Pte>) {
    let vm = sim.vm();
    let mut all = Vec::new();
    for map in vm.vm_maps() {
        vm.vm_map_check(map).unwrap_or_else(|damage| panic!("{damage:?}"));
        all.extend(list(sim, map));
    }
    let mut owned = 0;
    let (mut mappable, mut objectless) = (BTreeSet::new(), BTreeSet::new());
    for e in all {
        if !e.eflags.get().contains(EntryFlags::IS_SUB_MAP) {
            check_allowed(e, translations);
        }
        if e.eflags.get().contains(EntryFlags::IS_SUB_MAP) {
            let submap = vm.get::<VmMap>(KPtr::new(e.object.get().addr()));
            assert_eq!(
                (submap.min_offset(), submap.max_offset()),
                (e.start.get(), e.end.get()),
                "submap's ends"
            );
        } else if e.object.get().is_null() {
            objectless.extend(pages(e.start.get(), e.end.get()));
        } else {
            let object = &objects.0[&e.object.get().addr()];
            if object.kernels {
                check_pages(sim, e, &object.pages, translations);
                owned += pages(e.start.get(), e.end.get()).count();
            } else {
                owned += check_anonymous(sim, e, &object.pages, translations);
            }
            mappable.extend(pages(e.start.get(), e.end.get()));
        }
    }
    let resident: usize = objects.0.values().map(|object| object.pages.len()).sum();
    assert_eq!(owned, resident, "pages outside of any entry");
    for (&va, pte) in translations {
        let va = GuestVirt::new(va);
        let is_kentered = pte.flags().contains(PteFlags::KENTER);
        let home = if is_kentered { &objectless } else { &mappable };
        assert!(home.contains(&va), "a translation at {va}, where nothing is allocated: {pte:?}");
    }
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
        assert!(
            e.start.get() >= below && e.start.get() < e.end.get(),
            "entry {} out of order",
            e.start.get()
        );
        assert!(
            e.start.get().is_page_aligned() && e.end.get().is_page_aligned(),
            "entry {}",
            e.start.get()
        );
        assert_eq!(vm.get(e.next.get()).prev.get(), at, "links of entry {}", e.start.get());
        assert!(
            !e.eflags.get().intersects(EntryFlags::PASSING),
            "entry {} is in transition",
            e.start.get()
        );
        size += e.end.get().since(e.start.get());
        below = e.end.get();
        entries.push(e);
        at = e.next.get();
    }
    assert!(below <= m.max_offset(), "entries past the map's end");
    assert_eq!(m.nentries.get(), entries.len() as u64, "nentries");
    assert_eq!(m.size.get(), size, "size");
    assert_eq!(m.sx.owner.get(), 0, "the map is locked");
    let low = entries.iter().filter(|e| e.end.get() <= KERNBASE).map(|e| e.end.get()).max();
    if map == vm.kernel_map() {
        assert!(
            low.is_none_or(|end| vm.state().kernel_vm_end.get() >= end),
            "kernel_vm_end is too low"
        );
    }
    entries
}

/// Translations in the range of an entry allow no access that it forbids, except those of
/// `pmap_kenter`, which asks no entry; and no fewer if it was never protected.
fn check_allowed(e: &VmMapEntry, translations: &BTreeMap<u64, Pte>) {
    let allowed = e.protection.get();
    for (va, pte) in translations.range(e.start.get().get()..e.end.get().get()) {
        let flags = pte.flags();
        let kentered = flags.contains(PteFlags::KENTER);
        assert!(
            kentered || allowed.contains(Protection::READ),
            "{va:#x} is mapped, but allows {allowed:?}"
        );
        assert!(
            kentered || allowed.contains(Protection::WRITE) || !flags.contains(PteFlags::RW),
            "{va:#x} is writable, but allows {allowed:?}"
        );
        assert!(
            allowed != Protection::ALL || flags.contains(PteFlags::RW),
            "{va:#x} is read-only, but was never protected"
        );
    }
}

/// An entry on an object has all its pages, wired once and mapped.
fn check_pages(
    sim: &Sim,
    e: &VmMapEntry,
    resident: &BTreeMap<u64, u32>,
    translations: &BTreeMap<u64, Pte>,
) {
    assert_eq!(
        e.offset.get(),
        e.start.get().since(VM_MIN_KERNEL_ADDRESS),
        "offset of entry {}",
        e.start.get()
    );
    assert_eq!(e.wired_count.get(), 1, "wired_count of entry {}", e.start.get());
    for va in pages(e.start.get(), e.end.get()) {
        let pindex = va.since(VM_MIN_KERNEL_ADDRESS) / PAGE_SIZE;
        let pfn = *resident.get(&pindex).unwrap_or_else(|| panic!("no page behind {va}"));
        match translations.get(&va.get()) {
            Some(pte) => {
                assert_eq!(pte.frame(), GuestPhys::from_pfn(pfn.into()), "the page behind {va}");
            }
            // `vm_map_protect` may have removed it.
            None => assert_ne!(e.protection.get(), Protection::ALL, "no translation for {va}"),
        }
        let page = sim.vm().page_by_number(pfn);
        let object: KPtr<VmObject> = e.object.get();
        assert_eq!(
            (page.object.get(), page.pindex.get()),
            (object, pindex),
            "the owner of the page behind {va}"
        );
        assert_eq!(page.wire_count.get(), 1, "wire_count of the page behind {va}");
        assert_eq!(page.valid.get(), VM_PAGE_BITS_ALL, "valid of the page behind {va}");
        assert_eq!(page.oflags.get(), PageOflags::empty(), "oflags of the page behind {va}");
        assert!(
            page.flags.get().contains(PageFlags::ALLOCATED | PageFlags::UNMANAGED),
            "flags of {va}"
        );
        assert_eq!(
            (page.queue.get(), page.hold_count.get(), page.busy.get()),
            (0, 0, 0),
            "the page behind {va}"
        );
    }
}

/// An entry on an anonymous object has some pages, each mapped where it belongs or not at all.
/// Returns their number.
fn check_anonymous(
    sim: &Sim,
    e: &VmMapEntry,
    resident: &BTreeMap<u64, u32>,
    translations: &BTreeMap<u64, Pte>,
) -> usize {
    let mut count = 0;
    for va in pages(e.start.get(), e.end.get()) {
        let pindex = (e.offset.get() + va.since(e.start.get())) / PAGE_SIZE;
        let pte = translations.get(&va.get());
        let Some(&pfn) = resident.get(&pindex) else {
            assert_eq!(pte, None, "a translation at {va} without a page");
            continue;
        };
        count += 1;
        assert!(
            pte.is_none_or(|pte| pte.frame() == GuestPhys::from_pfn(pfn.into())),
            "the page behind {va}"
        );
        let page = sim.vm().page_by_number(pfn);
        assert_eq!(
            (page.object.get(), page.pindex.get()),
            (e.object.get(), pindex),
            "the owner of the page behind {va}"
        );
        assert_eq!(
            page.wire_count.get(),
            e.wired_count.get(),
            "wire_count of the page behind {va}"
        );
        assert_eq!(page.valid.get(), VM_PAGE_BITS_ALL, "valid of the page behind {va}");
        assert_eq!(page.oflags.get(), PageOflags::empty(), "oflags of the page behind {va}");
        assert!(!page.flags.get().contains(PageFlags::UNMANAGED), "flags of {va}");
        let queue = if page.wire_count.get() == 0 { PQ_ACTIVE } else { 0 };
        assert_eq!(
            (page.queue.get(), page.hold_count.get(), page.busy.get()),
            (queue, 0, 0),
            "the page behind {va}"
        );
    }
    count
}
