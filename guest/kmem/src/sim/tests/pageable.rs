//! Pageable ranges: anonymous objects that are created at the first touch or cut, and destroyed
//! with their last entry.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MapId, Op, Outcome};
use vmkern_abi::layout::{VmMap, VmObject};

use super::super::Sim;
use super::super::check::{check, check_zeros};
use super::boot;
use crate::vm::fault::FaultType;
use crate::vm::map::{EntrySpec, FindSpace};
use crate::vm::zone::ZoneItem;

impl Sim {
    pub(super) fn exec(&self, pages: u64) -> GuestVirt {
        self.address(&Op::KmemAllocWait { map: MapId::EXEC, size: pages * PAGE_SIZE })
            .expect("there is room")
    }

    pub(super) fn exec_free(&self, addr: GuestVirt, pages: u64) {
        self.ok(&Op::KmemFreeWakeup { map: MapId::EXEC, addr, size: pages * PAGE_SIZE });
    }

    pub(super) fn exec_map(&self) -> &VmMap {
        self.map(MapId::EXEC)
    }

    pub(super) fn anonymous_objects(&self) -> u64 {
        self.vm().state().zones[VmObject::ZONE.index()].used.get()
    }
}

#[test]
fn a_pageable_range_takes_no_page_until_it_is_touched_and_then_zeroed_ones() {
    let sim = boot();
    sim.run();
    // The pages that are allocated next are dirty.
    let addr = sim.malloc(200 * PAGE_SIZE, super::NOWAIT).expect("there is memory");
    sim.fill(addr, 200 * PAGE_SIZE, 1);
    sim.free(MapId::KMEM, addr, 200 * PAGE_SIZE);
    let free = sim.free_pages();
    let addr = sim.exec(66);
    assert_eq!((sim.free_pages(), sim.anonymous_objects()), (free, 0));
    assert_eq!(sim.vm().pmap_extract(addr), None);
    let zfod = sim.vm().cnt().v_zfod.get();
    sim.ok(&Op::VerifyZero { addr: addr.add(5 * PAGE_SIZE), size: 3 * PAGE_SIZE });
    assert_eq!((sim.vm().cnt().v_zfod.get() - zfod, sim.vm().cnt().v_active_count.get()), (3, 3));
    check(&sim);
    sim.fill(addr, 66 * PAGE_SIZE, 2);
    sim.verify(addr, 66 * PAGE_SIZE, 2);
    assert_eq!((sim.vm().cnt().v_active_count.get(), sim.anonymous_objects()), (66, 1));
    check(&sim);
    sim.exec_free(addr, 66);
    assert_eq!((sim.vm().cnt().v_active_count.get(), sim.anonymous_objects()), (0, 0));
    assert!(sim.exec_map().nentries.get() == 0 && sim.vm().pmap_extract(addr).is_none());
    check(&sim);
    check_zeros(&sim);
}

#[test]
fn freeing_and_touching_again_brings_zeros_and_never_the_old_contents() {
    let sim = boot();
    let addr = sim.exec(8);
    sim.fill(addr, 8 * PAGE_SIZE, 3);
    sim.exec_free(addr.add(2 * PAGE_SIZE), 3);
    check(&sim);
    sim.verify(addr, 2 * PAGE_SIZE, 3);
    sim.verify(addr.add(5 * PAGE_SIZE), 3 * PAGE_SIZE, 3);
    assert_eq!((sim.vm().cnt().v_active_count.get(), sim.anonymous_objects()), (5, 1));
    assert_eq!(sim.exec(3), addr.add(2 * PAGE_SIZE));
    sim.ok(&Op::VerifyZero { addr: addr.add(2 * PAGE_SIZE), size: 3 * PAGE_SIZE });
    sim.verify(addr.add(5 * PAGE_SIZE), 3 * PAGE_SIZE, 3);
    check(&sim);
    sim.exec_free(addr, 8);
    assert_eq!(sim.anonymous_objects(), 0);
    check(&sim);
}

#[test]
fn a_range_behind_a_touched_one_extends_its_object_and_the_index_grows_with_it() {
    let sim = boot();
    let first = sim.exec(66);
    sim.fill(first, 66 * PAGE_SIZE, 0);
    for buffer in 1..16 {
        let addr = sim.exec(66);
        assert_eq!(addr, first.add(buffer * 66 * PAGE_SIZE));
        sim.fill(addr, 66 * PAGE_SIZE, buffer);
        check(&sim);
    }
    assert_eq!((sim.exec_map().nentries.get(), sim.anonymous_objects()), (1, 1));
    assert_eq!(
        sim.vm().cnt().v_active_count.get(),
        16 * 66,
        "more than one leaf of the index holds"
    );
    for buffer in (0..16).rev() {
        let addr = first.add(buffer * 66 * PAGE_SIZE);
        sim.verify(addr, 66 * PAGE_SIZE, buffer);
        sim.exec_free(addr, 66);
        check(&sim);
    }
    assert_eq!((sim.exec_map().nentries.get(), sim.anonymous_objects()), (0, 0));
}

#[test]
fn a_range_whose_upper_part_was_freed_is_extended_with_clean_pages() {
    let sim = boot();
    let addr = sim.exec(10);
    sim.fill(addr, 10 * PAGE_SIZE, 1);
    sim.exec_free(addr.add(6 * PAGE_SIZE), 4);
    assert_eq!(sim.exec(8), addr.add(6 * PAGE_SIZE));
    assert_eq!(sim.exec_map().nentries.get(), 1);
    sim.ok(&Op::VerifyZero { addr: addr.add(6 * PAGE_SIZE), size: 8 * PAGE_SIZE });
    sim.verify(addr, 6 * PAGE_SIZE, 1);
    check(&sim);
}

#[test]
fn cutting_an_untouched_range_gives_its_parts_one_object_so_that_they_merge_again() {
    let sim = boot();
    let addr = sim.exec(9);
    sim.exec_free(addr.add(3 * PAGE_SIZE), 0);
    assert_eq!((sim.exec_map().nentries.get(), sim.anonymous_objects()), (2, 1));
    sim.ok(&Op::Touch { addr, size: 9 * PAGE_SIZE });
    check(&sim);
    // The next cut first merges entries that form one range.
    sim.exec_free(addr.add(5 * PAGE_SIZE), 0);
    assert_eq!((sim.exec_map().nentries.get(), sim.anonymous_objects()), (2, 1));
    check(&sim);
    sim.exec_free(addr, 9);
    assert_eq!(sim.anonymous_objects(), 0);
    check(&sim);
}

#[test]
fn wiring_a_pageable_range_takes_its_pages_off_the_queue_and_freeing_gives_all_back() {
    let sim = boot();
    let addr = sim.exec(6);
    sim.ok(&Op::Touch { addr, size: 2 * PAGE_SIZE });
    let map = sim.vm().map_by_id(MapId::EXEC).expect("it exists");
    sim.vm().vm_map_wire(map, addr.add(PAGE_SIZE), addr.add(4 * PAGE_SIZE)).expect("no hole");
    assert_eq!((sim.vm().cnt().v_active_count.get(), sim.exec_map().nentries.get()), (1, 3));
    check(&sim);
    sim.exec_free(addr, 6);
    assert_eq!((sim.vm().cnt().v_active_count.get(), sim.anonymous_objects()), (0, 0));
    check(&sim);
}

#[test]
fn a_range_without_an_object_in_a_system_map_is_a_clean_fatal_fault() {
    let sim = boot();
    let map = sim.vm().map_by_id(MapId::BUFFER).expect("it exists");
    let min = sim.vm().get(map).min_offset();
    let addr = sim
        .vm()
        .vm_map_find(map, &EntrySpec::EMPTY, min, PAGE_SIZE, FindSpace::Any)
        .expect("there is room");
    assert_eq!(sim.vm().trap_pfault(addr, FaultType::Read), Err(KernReturn::Failure));
    let exec = sim.exec(1);
    assert_eq!(sim.vm().trap_pfault(exec, FaultType::Execute), Err(KernReturn::ProtectionFailure));
    assert_eq!(
        sim.vm().trap_pfault(exec.add(PAGE_SIZE), FaultType::Read),
        Err(KernReturn::InvalidAddress)
    );
    check(&sim);
}

#[test]
fn a_request_that_never_fits_gives_nothing_and_one_of_the_whole_map_takes_it_all() {
    let sim = boot();
    let bytes = sim.exec_map().max_offset().since(sim.exec_map().min_offset());
    for size in [0, bytes + 1, u64::MAX, u64::MAX - 4095] {
        assert_eq!(sim.execute(&Op::KmemAllocWait { map: MapId::EXEC, size }), Outcome::Null);
    }
    let addr = sim.exec(bytes / PAGE_SIZE);
    assert_eq!(addr, sim.exec_map().min_offset());
    sim.exec_free(addr, bytes / PAGE_SIZE);
    check(&sim);
}
