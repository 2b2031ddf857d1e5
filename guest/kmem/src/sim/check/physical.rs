//! Checks of physical memory: every page is in one place, and the counters are right.

use std::collections::BTreeSet;

use vmkern_abi::addr::{GuestPhys, PAGE_SIZE};
use vmkern_abi::layout::{PQ_ACTIVE, PageFlags, VmFreeList};

use super::Objects;
use crate::machine::{Mark, PhysMem};
use crate::sim::Sim;
use crate::window::PageTable;

/// Checks the free lists and every page below the fresh parts; returns the number of wired pages.
pub fn check(sim: &Sim, objects: &Objects) -> u64 {
    let vm = sim.vm();
    let (state, cnt) = (vm.state(), vm.cnt());
    let (in_blocks, in_caches, seized) = (blocks(sim), caches(sim), seized(sim));
    let ballooned = balloon(sim);
    let (mut wired, mut managed, mut fresh, mut zero, mut taken) = (0, 0, 0, 0, 0);
    for seg in vm.vm_phys_segments() {
        managed += u64::from(seg.limit.get() - seg.start.get());
        taken += u64::from(seg.limit.get() - seg.end.get());
        fresh += u64::from(seg.end.get() - seg.fresh.get());
        for pfn in seg.start.get()..seg.fresh.get() {
            let page = vm.page_by_number(pfn);
            let places = [&in_blocks, &in_caches, &seized];
            let places = places.iter().filter(|pages| pages.contains(&pfn)).count();
            assert!(places < 2, "page {pfn:#x} is free or seized twice");
            let is_free = places == 1;
            assert_eq!(
                is_free,
                !page.flags.get().contains(PageFlags::ALLOCATED),
                "page {pfn:#x} is lost"
            );
            assert_eq!(
                ballooned.contains(&pfn),
                page.flags.get().contains(PageFlags::BALLOON),
                "page {pfn:#x} and the balloon"
            );
            wired += u64::from(page.wire_count.get() > 0);
            if is_free {
                assert!(
                    page.object.get().is_null() && page.wire_count.get() == 0,
                    "free page {pfn:#x} is in use"
                );
                let links = page.left.get() | page.right.get() | page.parent.get();
                assert_eq!(links, 0, "free page {pfn:#x} is linked in an index");
                let known = page.flags.get();
                assert_eq!(
                    in_caches.contains(&pfn),
                    known.contains(PageFlags::PCPU_CACHE),
                    "flags of page {pfn:#x}"
                );
                let untouched = !known.contains(PageFlags::TOUCHED) && state.boot_zeroed.is_set();
                let zeros = known.contains(PageFlags::ZERO) || untouched;
                zero += u64::from(zeros && !seized.contains(&pfn));
            }
        }
    }
    if state.boot_zeroed.is_set() {
        zero += fresh;
    }
    assert_eq!(cnt.v_page_count.get(), managed, "v_page_count");
    assert_eq!(
        cnt.v_free_count.get(),
        fresh + (in_blocks.len() + in_caches.len()) as u64,
        "v_free_count"
    );
    assert_eq!(cnt.v_wire_count.get(), wired, "v_wire_count");
    let queued = queue(sim);
    let pages = objects
        .0
        .values()
        .filter(|object| !object.kernels)
        .flat_map(|object| object.pages.values());
    let unwired: BTreeSet<u32> =
        pages.copied().filter(|&pfn| vm.page_by_number(pfn).wire_count.get() == 0).collect();
    assert_eq!(queued, unwired, "the active queue has all pages that could be paged out");
    assert_eq!(cnt.v_active_count.get(), queued.len() as u64, "v_active_count");
    let sum =
        cnt.v_free_count.get() + wired + cnt.v_active_count.get() + cnt.v_inactive_count.get();
    taken += (seized.len() + ballooned.len()) as u64;
    assert_eq!(sum + taken, managed, "free, wired, queued and taken pages are all pages");
    assert_eq!(state.balloon.pages.get(), ballooned.len() as u64, "pages of the balloon");
    assert_eq!(state.vm_page_zero_count.get(), zero, "vm_page_zero_count");
    wired
}

/// The pages of the active queue, with the rules of its list checked.
fn queue(sim: &Sim) -> BTreeSet<u32> {
    let pages = list(sim, &sim.vm().state().vm_page_queues[1]);
    let active = |&pfn: &u32| sim.vm().page_by_number(pfn).queue.get() == PQ_ACTIVE;
    assert!(pages.iter().all(active), "pages of the active queue say that they are there");
    pages
}

/// The pages of all CPUs' caches.
fn caches(sim: &Sim) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for cpu in sim.vm().cpus() {
        let pages = list(sim, &cpu.page_cache.pages);
        assert!(
            pages.len() as u64 <= sim.vm().state().page_cache_max.get(),
            "CPU {} keeps too many",
            cpu.cpuid.get()
        );
        assert!(
            pages.iter().all(|&pfn| sim.vm().page_by_number(pfn).block.get() == 0),
            "a block in a cache"
        );
        assert!(pages.into_iter().all(|pfn| all.insert(pfn)), "a page is in two caches");
    }
    all
}

/// The pages of seized blocks, with the rules of their lists checked.
fn seized(sim: &Sim) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for (order, queue) in sim.vm().state().vm_seized_queues.iter().enumerate() {
        for pfn in list(sim, queue) {
            let head = sim.vm().page_by_number(pfn);
            assert!(head.flags.get().contains(PageFlags::SEIZED), "seized block at {pfn:#x}");
            assert_eq!((head.private.get() as usize, head.block.get()), (order + 1, 0));
            assert!((pfn..pfn + (1 << order)).all(|page| all.insert(page)), "seized twice");
        }
    }
    all
}

/// The pages of all blocks in the balloon, with the rules of its lists checked.
fn balloon(sim: &Sim) -> BTreeSet<u32> {
    let (mut all, balloon) = (BTreeSet::new(), &sim.vm().state().balloon);
    for pfn in list(sim, &balloon.held).into_iter().chain(list(sim, &balloon.leaving)) {
        let order = sim.vm().page_by_number(pfn).private.get();
        assert!(order <= 9 && pfn.trailing_zeros() >= order, "block {pfn:#x} of order {order}");
        assert!((pfn..pfn + (1 << order)).all(|page| all.insert(page)), "in two blocks");
    }
    all
}

/// The pages of `list`, with its rules checked.
fn list(sim: &Sim, list: &VmFreeList) -> BTreeSet<u32> {
    let (mut pages, mut before, mut pfn) = (BTreeSet::new(), 0, list.head.get());
    while pfn != 0 {
        let page = sim.vm().page_by_number(pfn);
        assert!(pages.insert(pfn), "a list of pages has a cycle");
        assert_eq!(page.prev.get(), before, "links of {pfn:#x} in its list");
        (before, pfn) = (pfn, page.next.get());
    }
    assert_eq!(
        (list.tail.get(), list.count.get()),
        (before, pages.len() as u64),
        "a list of pages"
    );
    pages
}

/// Stops the test when a free page that is marked as zero is not zero. Slow.
pub fn check_zeros(sim: &Sim) {
    for pfn in blocks(sim).into_iter().chain(caches(sim)) {
        let flags = sim.vm().page_by_number(pfn).flags.get();
        let untouched =
            !flags.contains(PageFlags::TOUCHED) && sim.vm().state().boot_zeroed.is_set();
        if flags.contains(PageFlags::ZERO) || untouched {
            let pa = GuestPhys::from_pfn(pfn.into());
            let words: &PageTable = sim.vm().at(pa);
            sim.machine().mark(pa, PAGE_SIZE, Mark::Used);
            assert!(
                words.iter().all(|word| word.get().bits() == 0),
                "page {pfn:#x} should hold zeros"
            );
            sim.machine().mark(pa, PAGE_SIZE, Mark::Free);
        }
    }
}

/// All pages of free blocks, with the rules of the buddy lists checked.
fn blocks(sim: &Sim) -> BTreeSet<u32> {
    let vm = sim.vm();
    let mut pages = BTreeSet::new();
    for (flind, queues) in vm.state().vm_phys_free_queues.iter().enumerate() {
        for (order, list) in queues.iter().enumerate() {
            let (mut pfn, mut before, mut count) = (list.head.get(), 0, 0);
            while pfn != 0 {
                let head = vm.page_by_number(pfn);
                assert_eq!(head.prev.get(), before, "links of the block at {pfn:#x}");
                assert_eq!(
                    usize::from(head.block.get()),
                    order + 1,
                    "order of the block at {pfn:#x}"
                );
                assert!(
                    pfn.trailing_zeros() as usize >= order,
                    "alignment of the block at {pfn:#x}"
                );
                let seg = vm.vm_phys_segments().nth(head.segind.get().into()).expect("a segment");
                let end = pfn + (1 << order);
                assert!(
                    pfn >= seg.start.get() && end <= seg.fresh.get(),
                    "block at {pfn:#x} leaves its segment"
                );
                assert_eq!(
                    seg.freelist.get() as usize,
                    flind,
                    "free list of the block at {pfn:#x}"
                );
                let buddy = pfn ^ (1 << order);
                let is_pair = order < queues.len() - 1
                    && buddy >= seg.start.get()
                    && buddy + (1 << order) <= seg.fresh.get()
                    && usize::from(vm.page_by_number(buddy).block.get()) == order + 1;
                assert!(!is_pair, "blocks at {pfn:#x} and {buddy:#x} are not coalesced");
                for inner in pfn..end {
                    assert!(pages.insert(inner), "page {inner:#x} is in two blocks");
                    assert!(
                        inner == pfn || vm.page_by_number(inner).block.get() == 0,
                        "a block within a block"
                    );
                }
                (before, pfn, count) = (pfn, head.next.get(), count + 1);
            }
            assert_eq!(list.tail.get(), before, "tail of list {flind}, order {order}");
            assert_eq!(list.count.get(), count, "blocks of list {flind}, order {order}");
        }
    }
    pages
}
