//! The behaviour of each function at the edges of its contract.

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MallocFlags, MapId, MapKind, Op, Outcome};
use vmkern_abi::kva::{VM_MIN_KERNEL_ADDRESS, dmap_to_phys, phys_to_dmap};
use vmkern_abi::layout::VmMap;
use vmkern_abi::pte::Pte;

use super::super::check::check;
use super::{MIB, NOWAIT, boot};
use crate::window::PageTable;

#[test]
fn sizes_that_are_zero_or_wrap_give_nothing_and_leak_nothing() {
    let sim = boot();
    let before = sim.counters();
    for size in [0, u64::MAX, u64::MAX - 4094] {
        for flags in [NOWAIT, MallocFlags::WAITOK, MallocFlags::empty()] {
            assert_eq!(sim.malloc(size, flags), None);
        }
        assert_eq!(sim.alloc(size), None);
        assert_eq!(sim.nofault(size), None);
    }
    assert_eq!(sim.counters(), before);
    check(&sim);
}

#[test]
fn freeing_what_was_never_allocated_does_nothing() {
    let sim = boot();
    let addr = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is memory");
    let before = sim.counters();
    sim.free(MapId::KMEM, addr.add(5 * PAGE_SIZE), PAGE_SIZE);
    sim.free(MapId::KERNEL, addr.add(400 * MIB), 3 * PAGE_SIZE);
    sim.free(MapId::KMEM, GuestVirt::new(0), 5);
    sim.free(MapId::KMEM, addr, u64::MAX);
    sim.free(MapId::KMEM, addr, 0u64.wrapping_sub(addr.get()));
    sim.free(MapId::KMEM, GuestVirt::new(u64::MAX), u64::MAX);
    assert_eq!(sim.counters(), before);
    sim.free(MapId::KMEM, addr, PAGE_SIZE);
    sim.free(MapId::KMEM, addr, PAGE_SIZE);
    check(&sim);
}

#[test]
fn neighbours_in_kmem_map_become_one_entry_and_a_hole_splits_it() {
    let sim = boot();
    let references = || sim.vm().state().kmem_object.ref_count.get();
    let (entries, before) = (sim.map(MapId::KMEM).nentries.get(), references());
    let a = sim.malloc(2 * PAGE_SIZE, NOWAIT).expect("there is memory");
    let b = sim.malloc(3 * PAGE_SIZE, NOWAIT).expect("there is memory");
    assert_eq!(b, a.add(2 * PAGE_SIZE));
    assert_eq!((sim.map(MapId::KMEM).nentries.get(), references()), (entries + 1, before + 1));
    sim.free(MapId::KMEM, a.add(2 * PAGE_SIZE), PAGE_SIZE);
    assert_eq!((sim.map(MapId::KMEM).nentries.get(), references()), (entries + 2, before + 2));
    check(&sim);
    sim.free(MapId::KMEM, a, 5 * PAGE_SIZE);
    assert_eq!((sim.map(MapId::KMEM).nentries.get(), references()), (entries, before));
    check(&sim);
}

#[test]
fn nofault_neighbours_are_one_entry_until_one_is_freed() {
    let sim = boot();
    let before = sim.vm().state().kernel_object.ref_count.get();
    // This separates them from the stacks of kernel threads, which are also such ranges.
    assert!(sim.alloc(PAGE_SIZE).is_some());
    let before = before + 1;
    let entries = sim.map(MapId::KERNEL).nentries.get();
    let ranges = [1, 2, 3].map(|pages| sim.nofault(pages * PAGE_SIZE).expect("there is room"));
    assert_eq!(ranges[2], ranges[0].add(3 * PAGE_SIZE));
    assert_eq!(sim.map(MapId::KERNEL).nentries.get(), entries + 1);
    sim.free(MapId::KERNEL, ranges[1], 2 * PAGE_SIZE);
    assert_eq!(sim.map(MapId::KERNEL).nentries.get(), entries + 2);
    assert_eq!(sim.vm().state().kernel_object.ref_count.get(), before);
    check(&sim);
}

#[test]
fn kmem_map_comes_first_in_kernel_map_and_a_range_that_fits_exactly_is_had() {
    let sim = boot();
    let map = sim.map(MapId::KMEM);
    assert_eq!(
        (map.min_offset(), map.max_offset().since(map.min_offset())),
        (VM_MIN_KERNEL_ADDRESS, 24 * MIB)
    );
    let all = sim.malloc(24 * MIB, NOWAIT).expect("it fits exactly");
    assert_eq!(all, map.min_offset());
    assert_eq!(sim.malloc(1, NOWAIT), None);
    check(&sim);
    sim.free(MapId::KMEM, all, 24 * MIB);
    check(&sim);
}

#[test]
fn what_freebsd_forbids_by_contract_is_an_invalid_argument() {
    let sim = boot();
    let before = sim.counters();
    let error = Outcome::Error(KernReturn::InvalidArgument);
    for map in [MapId::EXEC, MapId::PIPE, MapId::CLEAN] {
        assert_eq!(sim.execute(&Op::KmemMalloc { map, size: 1, flags: NOWAIT }), error);
    }
    for map in [MapId::KERNEL, MapId::KMEM, MapId::BUFFER, MapId::PAGER] {
        assert_eq!(sim.execute(&Op::KmemAllocWait { map, size: 1 }), error);
    }
    assert_eq!(sim.counters(), before);
}

#[test]
fn a_suballocated_map_is_named_by_its_address_and_no_other_address_is_believed() {
    let sim = boot();
    for kind in [MapKind::System, MapKind::User] {
        let size = 64 * PAGE_SIZE;
        let map = sim
            .address(&Op::KmemSuballoc { parent: MapId::KERNEL, size, kind })
            .expect("there is room");
        let id = MapId(map.get());
        assert_eq!(sim.map(id).max_offset().since(sim.map(id).min_offset()), size);
        let got = sim.execute(&Op::KmemMalloc { map: id, size: PAGE_SIZE, flags: NOWAIT });
        let waited = sim.execute(&Op::KmemAllocWait { map: id, size: PAGE_SIZE });
        let (error, addr) = (
            Outcome::Error(KernReturn::InvalidArgument),
            Outcome::Value(sim.map(id).min_offset().get()),
        );
        assert_eq!(
            (got, waited),
            if kind == MapKind::System { (addr, error) } else { (error, addr) }
        );
        for wrong in [map.get() + 64, map.get() - 64, map.get() + 1] {
            assert!(sim.vm().map_by_id(MapId(wrong)).is_none());
        }
        check(&sim);
    }
}

#[test]
fn kernel_map_begins_with_kmem_map_then_the_submaps_in_the_order_of_freebsds_boot() {
    let sim = boot();
    let mut end = VM_MIN_KERNEL_ADDRESS;
    let length = |map: &VmMap| map.max_offset().since(map.min_offset());
    let clean = sim.vm().get(sim.vm().state().clean_map.get());
    // Of all usable memory, including the page array.
    let physmem = (64 * MIB - crate::sim::tables::IMAGE_END.get()) / PAGE_SIZE;
    assert!(physmem > sim.vm().cnt().v_page_count.get());
    let nbuf = 50 + (physmem * 4 - 4096) / 64;
    for (map, size) in [
        (sim.map(MapId::KMEM), 24 * MIB),
        (clean, nbuf * (16 << 10) + nbuf / 4 * (128 << 10)),
        (sim.map(MapId::EXEC), 4_390_912),
        (sim.map(MapId::PIPE), 24 * MIB / 4096 / 20 * 4096),
    ] {
        assert_eq!((map.min_offset(), length(map)), (end, size));
        end = map.max_offset();
    }
    assert_eq!(
        [clean, sim.map(MapId::EXEC), sim.map(MapId::PIPE)].map(|map| map.system_map.get().raw()),
        [0; 3]
    );
    let pager = sim.vm().get(sim.vm().state().pager_map.get());
    assert_eq!(sim.map(MapId::BUFFER).min_offset(), clean.min_offset());
    assert_eq!(pager.min_offset(), sim.map(MapId::BUFFER).max_offset());
    assert_eq!(pager.max_offset(), clean.max_offset());
    assert_eq!(
        (pager.system_map.get().raw(), sim.map(MapId::BUFFER).system_map.get().raw()),
        (1, 1)
    );
}

#[test]
fn a_map_that_does_not_exist_is_an_invalid_argument() {
    let sim = boot();
    for map in [MapId(7), MapId(63), MapId(0xffff_ff00_0000_1000), MapId(u64::MAX)] {
        let error = Outcome::Error(KernReturn::InvalidArgument);
        assert_eq!(sim.execute(&Op::KmemAlloc { map, size: 1 }), error);
        assert_eq!(sim.execute(&Op::KmemFree { map, addr: GuestVirt::new(0), size: 1 }), error);
    }
}

#[test]
fn a_map_is_found_without_a_look_at_the_others() {
    let sim = boot();
    let ids: Vec<MapId> = (0..50)
        .map(|_| {
            let op =
                Op::KmemSuballoc { parent: MapId::KERNEL, size: PAGE_SIZE, kind: MapKind::System };
            MapId(sim.address(&op).expect("there is room").get())
        })
        .collect();
    let list = &sim.vm().state().map_list;
    let head = list.get();
    list.set(KPtr::NULL);
    for id in ids {
        assert_eq!(sim.vm().map_by_id(id).map(|map| map.addr().get()), Some(id.0));
    }
    list.set(head);
    check(&sim);
}

#[test]
fn no_address_is_believed_to_be_a_map_because_of_what_lies_there() {
    let sim = boot();
    let op = Op::KmemSuballoc { parent: MapId::KERNEL, size: PAGE_SIZE, kind: MapKind::System };
    let map = sim.address(&op).expect("there is room");
    let copy = sim.malloc(PAGE_SIZE, NOWAIT).expect("there is room");
    let home = dmap_to_phys(map).expect("it lies in the direct map");
    let page = sim.vm().pmap_extract(copy).expect("it is mapped");
    // The map's own words: the rest of its page is free, and must not be read.
    let words = size_of::<VmMap>() / size_of::<Pte>();
    for (to, from) in
        sim.vm().at::<PageTable>(page).iter().zip(sim.vm().at::<PageTable>(home)).take(words)
    {
        to.set(from.get());
    }
    let forged = phys_to_dmap(page);
    // Not in the direct map; past the end of memory; below the first managed page; the smallest and
    // the largest numbers.
    let far = phys_to_dmap(GuestPhys::new(1 << 38));
    let wrong =
        [copy, forged, phys_to_dmap(home.add(PAGE_SIZE)), far, phys_to_dmap(GuestPhys::new(0))];
    let wrong =
        wrong.into_iter().map(GuestVirt::get).chain([u64::MAX, u64::MAX - 4095, 1 << 63, 0x1000]);
    for id in wrong {
        assert!(sim.vm().map_by_id(MapId(id)).is_none(), "{id:#x}");
        let outcome =
            sim.execute(&Op::KmemMalloc { map: MapId(id), size: PAGE_SIZE, flags: NOWAIT });
        assert_eq!(outcome, Outcome::Error(KernReturn::InvalidArgument), "{id:#x}");
    }
    assert!(sim.vm().map_by_id(MapId(map.get())).is_some());
}
