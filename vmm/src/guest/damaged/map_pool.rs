//! Rules of `map_pool`.

use std::mem::offset_of;

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::layout::KernelRoots;

use super::lab::{Lab, expect_finding};

#[test]
fn wrong_counts_and_pages_of_a_pool_are_found() {
    let lab = Lab::new();
    // 1. The fields in the map.
    lab.each(
        lab.map(1),
        "kmem_map",
        &[
            ("pool-used", |map| map.reserve.entries.used.inc()),
            ("pool-used", |map| map.reserve.nodes.used.dec()),
            ("pool-used", |map| map.reserve.nodes.used.set(u64::MAX)),
            ("pool-capacity", |map| map.reserve.entries.capacity.inc()),
            ("pool-pages", |map| map.reserve.entries.last.set(KPtr::NULL)),
            ("pool-top", |map| map.reserve.entries.top.set(KPtr::NULL)),
            ("pool-top", |map| map.reserve.nodes.top.set(map.reserve.entries.top.get())),
            ("pool-item", |map| map.reserve.entries.used.dec()),
            ("map-home", |map| map.reserve.home.set(KPtr::NULL)),
            ("index-spare", |map| map.reserve.unlinked.set(map.index.root.get())),
            ("map-plain-pages", |map| map.reserve.plain_pages.set(1)),
            ("map-credits", |map| map.reserve.credits.set(1)),
            ("pool-reserve", |map| map.reserve.nodes.capacity.update_locked(|n| n + 15)),
        ],
    );
    // 2. The list of pages.
    let page = lab.get(lab.map(1)).reserve.entries.first.get();
    assert!(!page.is_null());
    lab.each(
        page,
        "pool page",
        &[("pool-pages", |page| page.prev.set(KPtr::new(GuestVirt::new(4096))))],
    );
    let report = lab.damaged(page, |page| page.next.set(KPtr::new(GuestVirt::new(8))));
    expect_finding(&report, "pool-pages", "kmem_map", lab.map(1).addr());
    // 3. The number of all pages of pools.
    let (roots_at, _) = lab.roots();
    let report = lab.damaged(roots_at, |roots| roots.map_pages.dec());
    let at = roots_at.addr().add(offset_of!(KernelRoots, map_pages) as u64);
    expect_finding(&report, "map-pages", "map_pages", at);
}

#[test]
fn a_page_of_two_pools_has_two_owners() {
    let lab = Lab::new();
    let page = lab.get(lab.map(1)).reserve.entries.first.get();
    let ram = &lab.guest.hypervisor.ram;
    let first = offset_of!(vmkern_abi::layout::VmMap, reserve)
        + offset_of!(vmkern_abi::layout::MapReserve, entries)
        + offset_of!(vmkern_abi::layout::MapPool, first);
    let place = vmkern_abi::kva::dmap_to_phys(lab.map(2).addr())
        .expect("it is in the direct map")
        .add(first as u64);
    ram.write(place, &page.addr().get().to_le_bytes()).expect("it is RAM");
    let report = lab.check();
    let (_, roots) = lab.roots();
    let pfn = vmkern_abi::kva::dmap_to_phys(page.addr()).expect("it is in the direct map").pfn();
    let element = roots.vm_page_array.get().addr().add((pfn - roots.first_page.get()) * 64);
    expect_finding(&report, "page-owner", "vm_page", element);
}
