//! Free lists, paging queues, states and counters of pages.

use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::control::{MallocFlags, MapId, Op};
use vmkern_abi::layout::{
    KernelRoots, PageCache, PageFlags, PageOflags, Pcpu, VM_NFREEORDER, VmFreeList, VmPage,
    VmPhysSeg,
};

use super::lab::{Damage, Lab, expect_finding};
use crate::guest::Guest;

/// A free block: its first page, its order and its list.
struct Block {
    pfn: u64,
    order: usize,
    list: usize,
}

/// A free block of more than one page.
fn free_block(lab: &Lab) -> Block {
    let (_, roots) = lab.roots();
    let queues = roots.vm_phys_free_queues.iter().enumerate();
    let lists = queues.flat_map(|(list, orders)| {
        orders.iter().enumerate().map(move |(order, l)| (list, order, l))
    });
    let mut blocks = lists.map(|(list, order, l)| Block { pfn: l.head.get().into(), order, list });
    blocks.find(|block| block.order > 0 && block.pfn != 0).expect("there is free memory")
}

#[test]
fn words_of_free_blocks_are_held_against_their_lists() {
    let lab = Lab::new();
    // 1. The head of a block, and a page inside.
    let Block { pfn, order, list } = free_block(&lab);
    let head = lab.vm_page(pfn);
    lab.each::<VmPage>(
        head,
        "vm_page",
        &[
            ("free-block-order", |page| page.block.dec()),
            ("free-list-link", |page| page.prev.set(77)),
            ("free-block-segment", |page| page.segind.set(9)),
            ("page-free", |page| page.flags.set(PageFlags::ALLOCATED)),
            ("page-free-state", |page| page.wire_count.set(1)),
            ("page-free-state", |page| page.object.set(KPtr::new(GuestVirt::new(64)))),
            ("page-free-state", |page| page.pindex.set(1)),
            ("page-free-state", |page| page.valid.set(1)),
            ("page-free-state", |page| page.dirty.set(1)),
            ("page-free-state", |page| page.busy.set(1)),
            ("page-free-state", |page| page.hold_count.set(1)),
            ("page-free-state", |page| page.private.set(1)),
            ("page-free-state", |page| page.oflags.set(PageOflags::BUSY)),
            ("page-free-state", |page| {
                page.flags.update_locked(|flags| flags | PageFlags::UNMANAGED)
            }),
            ("page-queue", |page| page.queue.set(2)),
        ],
    );
    let inner = lab.vm_page(pfn + 1);
    lab.each::<VmPage>(inner, "vm_page", &[("free-block-inner", |page| page.block.set(1))]);
    // 2. A list that never ends.
    let report = lab.damaged(head, |page| page.next.set(u32::try_from(pfn).expect("it is small")));
    expect_finding(&report, "free-list-link", "vm_page", head.addr());
    // 3. The list's own fields.
    let at = lab.root_field(|roots| &roots.vm_phys_free_queues);
    let at = at.add(((list * VM_NFREEORDER + order) * size_of::<VmFreeList>()) as u64);
    let list: KPtr<VmFreeList> = KPtr::new(at);
    let blocks = lab.get(list).count.get();
    let damages: &[(&str, Damage<VmFreeList>)] = &[
        ("free-list-count", |list| list.count.inc()),
        ("free-list-link", |list| list.tail.set(3)),
        ("free-list-link", |list| list.head.set(3)),
    ];
    lab.each(list, "free list", damages);
    // 4. Every page of a lost list is counted.
    let report = lab.damaged::<VmFreeList>(list, |list| list.head.set(0));
    let told = report.findings.iter().filter(|finding| finding.rule == "page-lost").count() as u64;
    let lost = told + report.more.get("page-lost").unwrap_or(&0);
    assert_eq!(lost, blocks << order, "{report}");
}

#[test]
fn words_of_caches_of_pages_are_held_against_their_lists() {
    let guest =
        Guest::builder().memory(32 << 20).vcpus(2).launch().expect("a guest can be launched");
    let mut lab = Lab::of(guest);
    // 1. A CPU with pages in its cache.
    let malloc = Op::KmemMalloc { map: MapId::KMEM, size: 20 << 12, flags: MallocFlags::NOWAIT };
    let addr = lab.address(malloc);
    lab.ok(Op::KmemFree { map: MapId::KMEM, addr, size: 20 << 12 });
    let (roots_at, roots) = lab.roots();
    let first = roots.cpuhead.get();
    let cpus = [first, lab.get(first).allcpu_next.get()];
    let keeps = |cpu: &KPtr<Pcpu>| lab.get(*cpu).page_cache.pages.count.get() > 1;
    let cpu = cpus.into_iter().find(keeps).expect("a CPU keeps the pages that were freed");
    let head = lab.get(cpu).page_cache.pages.head.get();
    // 2. The fields of the cache, and of its first page.
    let list = cpu.addr().add((offset_of!(Pcpu, page_cache) + offset_of!(PageCache, pages)) as u64);
    let damages: &[(&str, Damage<VmFreeList>)] = &[
        ("page-cache-count", |list| list.count.inc()),
        ("page-cache-link", |list| list.tail.set(3)),
        ("page-cache-link", |list| list.head.set(3)),
    ];
    lab.each(KPtr::new(list), "page cache", damages);
    let damages: &[(&str, Damage<VmPage>)] = &[
        ("page-cache-link", |page| page.prev.set(77)),
        ("page-cache-link", |page| page.segind.set(9)),
        ("page-free", |page| page.flags.set(PageFlags::ALLOCATED)),
        ("page-free-state", |page| page.flags.update_locked(|flags| flags - PageFlags::PCPU_CACHE)),
        ("page-free-state", |page| page.wire_count.set(1)),
        ("page-free-state", |page| page.block.set(1)),
    ];
    lab.each(lab.vm_page(head.into()), "vm_page", damages);
    // 3. The floor, and the limit.
    lab.root_word("page-cache-floor", "kernel roots", |r| &r.page_cache_floor, |floor| floor - 1);
    let report = lab.damaged::<KernelRoots>(roots_at, |roots| roots.idlezero_enable.raise());
    expect_finding(&report, "page-cache-count", "page cache", list);
}

#[test]
fn buddies_of_equal_order_are_found() {
    let lab = Lab::new();
    // Split a block in two halves: each heads a block of the next lower order, which a free never
    // leaves behind.
    let Block { pfn, order, list } = free_block(&lab);
    let _pause = lab.guest.pause().expect("it can be held");
    let half = pfn + (1 << (order - 1));
    let block = u8::try_from(order).expect("it is small");
    lab.change(lab.vm_page(half), |page| page.block.set(block));
    let report = lab.damaged(lab.vm_page(pfn), |page| page.block.set(block));
    expect_finding(&report, "free-block-order", "vm_page", lab.vm_page(pfn).addr());
    expect_finding(&report, "free-block-inner", "vm_page", lab.vm_page(half).addr());
    let (roots_at, _) = lab.roots();
    lab.change(lab.vm_page(pfn), |page| page.block.set(block));
    lab.change(roots_at, |roots: &KernelRoots| {
        let orders = &roots.vm_phys_free_queues[list];
        let (from, to) = (&orders[order], &orders[order - 1]);
        from.head.set(0);
        to.head.set(u32::try_from(pfn).expect("it is small"));
    });
    expect_finding(&lab.check(), "free-block-coalesced", "vm_page", lab.vm_page(pfn).addr());
}

#[test]
fn words_of_pages_in_use_are_held_against_their_owners() {
    let lab = Lab::new();
    // 1. A page of kmem_object.
    let resident = lab.vm_page(lab.pfn_at(lab.block));
    let damages: &[(&str, Damage<VmPage>)] = &[
        ("page-state", |page| page.flags.update_locked(|flags| flags - PageFlags::TOUCHED)),
        ("page-state", |page| page.flags.update_locked(|flags| flags - PageFlags::UNMANAGED)),
        ("page-state", |page| {
            page.flags.update_locked(|flags| PageFlags::from_bits_retain(flags.bits() | 0x8000))
        }),
        ("page-free", |page| page.flags.update_locked(|flags| flags - PageFlags::ALLOCATED)),
        ("page-state", |page| page.block.set(3)),
        ("page-state", |page| page.segind.set(9)),
        ("page-state", |page| page.hold_count.set(1)),
        ("page-state", |page| page.busy.set(1)),
        ("page-state", |page| page.oflags.set(PageOflags::BUSY)),
        ("page-state", |page| page.oflags.set(PageOflags::WANTED)),
        ("page-wanted", |page| page.oflags.set(PageOflags::WANTED | PageOflags::BUSY)),
        ("page-state", |page| page.private.set(1)),
        ("page-state", |page| page.next.set(1)),
        ("page-state", |page| page.wire_count.set(0)),
        ("page-queue", |page| page.queue.set(2)),
        ("page-state", |page| {
            page.valid.set(0x0f);
            page.dirty.set(0x10);
        }),
    ];
    lab.each(resident, "vm_page", damages);
    // 2. A slab.
    let slab = lab.roots().1.zones[4].partial.get();
    let slab = lab.vm_page(
        vmkern_abi::kva::dmap_to_phys(slab.addr()).expect("it is in the direct map").pfn(),
    );
    let damages: &[(&str, Damage<VmPage>)] = &[
        ("page-state", |page| page.wire_count.set(2)),
        ("page-state", |page| page.object.set(KPtr::new(GuestVirt::new(64)))),
        ("page-state", |page| page.pindex.set(5)),
        ("page-state", |page| page.valid.set(0xff)),
        ("page-state", |page| page.private.set(1)),
    ];
    lab.each(slab, "vm_page", damages);
    // 3. A page that pmap_qenter has mapped.
    let window = lab.vm_page(lab.pfn_at(lab.window));
    lab.each::<VmPage>(window, "vm_page", &[("page-state", |page| page.next.set(9))]);
}

#[test]
fn a_page_that_nothing_leads_to_is_lost() {
    let lab = Lab::new();
    lab.wait_until_halted();
    let _pause = lab.guest.pause().expect("it can be held");
    let pfn = lab.pfn_at(lab.window);
    let pte = lab.pte_at(lab.window, vmkern_abi::pte::Level::Pt);
    let report = lab.damaged_phys::<[u8; 8]>(pte, |_| {});
    assert!(report.is_clean(), "{report}");
    lab.guest.hypervisor.ram.write(pte, &[0; 8]).expect("it is RAM");
    expect_finding(&lab.check(), "page-lost", "vm_page", lab.vm_page(pfn).addr());
}

#[test]
fn the_active_queue_and_its_pages_agree() {
    let lab = Lab::new();
    let page = lab.vm_page(lab.pfn_at(lab.pageable));
    let damages: &[(&str, Damage<VmPage>)] = &[
        ("page-queue", |page| page.queue.set(0)),
        ("page-queue", |page| page.queue.set(1)),
        ("page-queue", |page| page.prev.set(5)),
        ("page-state", |page| page.wire_count.set(1)),
        ("page-state", |page| page.flags.update_locked(|flags| flags | PageFlags::UNMANAGED)),
    ];
    lab.each(page, "vm_page", damages);
    let queue = KPtr::<VmFreeList>::new(lab.root_field(|roots| &roots.vm_page_queues[1]));
    let damages: &[(&str, Damage<VmFreeList>)] = &[
        ("page-queue", |list| list.tail.set(5)),
        ("page-queue", |list| list.count.set(7)),
        ("page-queue", |list| list.head.set(1)),
    ];
    lab.each(queue, "paging queue", damages);
    let report = lab.damaged(queue, |list| list.head.set(0));
    expect_finding(&report, "page-queue", "vm_page", page.addr());
}

#[test]
fn every_counter_of_pages_equals_what_it_counts() {
    let lab = Lab::new();
    let more = |n: u64| n + 1;
    lab.root_word("page-counts", "vmmeter", |r| &r.meter.v_page_count, more);
    lab.root_word("page-counts", "vmmeter", |r| &r.meter.v_free_count, more);
    lab.root_word("page-counts", "vmmeter", |r| &r.meter.v_wire_count, more);
    lab.root_word("page-counts", "vmmeter", |r| &r.meter.v_active_count, more);
    lab.root_word("page-counts", "vmmeter", |r| &r.meter.v_inactive_count, more);
    lab.root_word("page-counts", "vmmeter", |r| &r.meter.v_cache_count, more);
    lab.root_word("page-counts", "vmmeter", |r| &r.vm_page_zero_count, more);
    lab.root_word("segment-order", "kernel roots", |r| &r.vm_phys_nsegs, more);
    lab.root_word("page-array", "kernel roots", |r| &r.first_page, |n| n - 1);
    let segment: KPtr<VmPhysSeg> = lab.roots().1.vm_phys_segs.get();
    lab.each::<VmPhysSeg>(
        segment,
        "vm_phys_seg",
        &[("segment-freelist", |seg| seg.freelist.set(0))],
    );
}

#[test]
fn thresholds_follow_from_the_pages_there_are() {
    let lab = Lab::new();
    let more = |n: u64| n + 1;
    lab.root_word("thresholds", "vmmeter", |r| &r.meter.v_free_reserved, more);
    lab.root_word("thresholds", "vmmeter", |r| &r.meter.v_free_min, more);
    lab.root_word("thresholds", "vmmeter", |r| &r.meter.v_free_severe, more);
    lab.root_word("thresholds", "vmmeter", |r| &r.meter.v_free_target, more);
    lab.root_word("thresholds", "vmmeter", |r| &r.meter.v_pageout_free_min, more);
    lab.root_word("thresholds", "vmmeter", |r| &r.meter.v_interrupt_free_min, more);
    lab.root_word("thresholds", "vmmeter", |r| &r.meter.v_cache_min, more);
    lab.root_word("thresholds", "vmmeter", |r| &r.meter.v_cache_max, more);
    lab.root_word("thresholds", "vmmeter", |r| &r.meter.v_inactive_target, |n| n + (1 << 20));
}

#[test]
fn a_free_page_that_should_be_zero_and_is_not_is_found() {
    let lab = Lab::new();
    let Block { pfn, order, .. } = free_block(&lab);
    let last = pfn + (1 << order) - 1;
    let page = lab.vm_page(last);
    let frame = vmkern_abi::addr::GuestPhys::from_pfn(last).add(4088);
    let _pause = lab.guest.pause().expect("it can be held");
    let mut before = [0; 8];
    lab.guest.hypervisor.ram.read(frame, &mut before).expect("it is RAM");
    lab.guest.hypervisor.ram.write(frame, &[1; 8]).expect("it is RAM");
    // Zero according to the flag, zero because it was never touched, and unknown.
    for (flags, found) in [
        (PageFlags::TOUCHED | PageFlags::ZERO, true),
        (PageFlags::empty(), true),
        (PageFlags::TOUCHED, false),
    ] {
        let report = lab.damaged(page, |page| page.flags.set(flags));
        let names = report.findings.iter().any(|f| f.rule == "page-zero" && f.at == page.addr());
        assert_eq!(names, found, "{flags:?}:\n{report}");
    }
    lab.guest.hypervisor.ram.write(frame, &before).expect("it is RAM");
}
