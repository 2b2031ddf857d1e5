//! `vm_map_protect`.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MallocFlags, Op, Outcome};
use vmkern_abi::kva::KERNBASE;
use vmkern_abi::layout::{Protection, VM_PAGE_BITS_ALL, VmMap};

use super::super::EntrySpec;
use super::Fixture;
use crate::sim::check::check;
use crate::vm::fault::FaultType;

const NONE: Protection = Protection::empty();
const R: Protection = Protection::READ;
const RW: Protection = Protection::READ.union(Protection::WRITE);
const ALL: Protection = Protection::ALL;

/// A block of `kmem_malloc`, pages 0 to 8.
fn block() -> Fixture {
    let f = Fixture::new();
    assert_eq!(f.vm().kmem_malloc(f.map, 8 * PAGE_SIZE, MallocFlags::NOWAIT), Some(f.at(0)));
    f
}

impl Fixture {
    fn protect(&self, start: u64, end: u64, protection: Protection) -> Result<(), KernReturn> {
        self.vm().vm_map_protect(self.map, self.at(start), self.at(end), protection)
    }

    /// First page, last page and protection of each entry.
    fn allowed(&self) -> Vec<(u64, u64, Protection)> {
        let ranges = self.ranges().into_iter();
        ranges.map(|(start, end)| (start, end, self.entry(start).protection.get())).collect()
    }

    fn fill(&self, addr: GuestVirt, size: u64, seed: u64) {
        assert_eq!(self.sim.execute(&Op::Fill { addr, size, seed }), Outcome::Ok);
    }

    fn verify(&self, addr: GuestVirt, size: u64, seed: u64) {
        assert_eq!(self.sim.execute(&Op::Verify { addr, size, seed }), Outcome::Ok);
    }

    fn access(&self, page: u64, fault: FaultType) -> Result<(), KernReturn> {
        self.vm().trap_pfault(self.at(page), fault)
    }
}

#[test]
fn a_part_is_cut_out_and_merges_again_with_what_is_equal() {
    let f = block();
    f.protect(2, 4, R).expect("it is allowed");
    assert_eq!(f.allowed(), [(0, 2, ALL), (2, 4, R), (4, 8, ALL)]);
    f.protect(4, 6, R).expect("it is allowed");
    assert_eq!(f.allowed(), [(0, 2, ALL), (2, 6, R), (6, 8, ALL)]);
    f.protect(3, 5, NONE).expect("it is allowed");
    assert_eq!(f.allowed(), [(0, 2, ALL), (2, 3, R), (3, 5, NONE), (5, 6, R), (6, 8, ALL)]);
    f.protect(0, 8, ALL).expect("it is allowed");
    assert_eq!(f.allowed(), [(0, 8, ALL)]);
}

#[test]
fn a_read_only_range_is_read_and_not_written() {
    let f = block();
    f.fill(f.at(0), 8 * PAGE_SIZE, 7);
    f.protect(2, 4, R).expect("it is allowed");
    f.verify(f.at(0), 8 * PAGE_SIZE, 7);
    assert_eq!(f.access(2, FaultType::Write), Err(KernReturn::ProtectionFailure));
    check(&f.sim);
    f.protect(2, 4, RW).expect("it is allowed");
    f.fill(f.at(0), 8 * PAGE_SIZE, 8);
    check(&f.sim);
}

#[test]
fn a_closed_range_is_not_accessed_and_keeps_its_pages_and_their_contents() {
    let f = block();
    f.fill(f.at(0), 8 * PAGE_SIZE, 7);
    let wired = f.vm().cnt().v_wire_count.get();
    f.protect(2, 4, NONE).expect("it is allowed");
    assert_eq!(f.vm().pmap_extract(f.at(3)), None);
    assert_eq!(f.access(3, FaultType::Read), Err(KernReturn::ProtectionFailure));
    assert_eq!(f.vm().cnt().v_wire_count.get(), wired);
    check(&f.sim);
    f.protect(2, 4, R).expect("it is allowed");
    f.verify(f.at(0), 8 * PAGE_SIZE, 7);
    check(&f.sim);
}

#[test]
fn no_range_becomes_executable() {
    let f = block();
    f.protect(0, 8, ALL).expect("it is allowed");
    assert_eq!(f.access(0, FaultType::Execute), Err(KernReturn::ProtectionFailure));
    check(&f.sim);
}

#[test]
fn the_pages_of_a_closed_range_are_freed_with_it() {
    for protection in [NONE, R, RW] {
        let f = block();
        let (wired, free) = (f.vm().cnt().v_wire_count.get(), f.vm().cnt().v_free_count.get());
        f.protect(1, 7, NONE).expect("it is allowed");
        f.protect(2, 5, protection).expect("it is allowed");
        f.remove(0, 8);
        assert_eq!(f.vm().cnt().v_wire_count.get(), wired - 8);
        assert_eq!(f.vm().cnt().v_free_count.get(), free + 8);
        check(&f.sim);
    }
}

#[test]
fn a_closed_range_is_unwired_too() {
    let f = block();
    f.protect(2, 4, NONE).expect("it is allowed");
    let wired = f.vm().cnt().v_wire_count.get();
    f.vm().vm_map_unwire(f.map, f.at(0), f.at(8)).expect("it is wired");
    assert_eq!(f.vm().cnt().v_wire_count.get(), wired - 8);
    f.remove(0, 8);
    check(&f.sim);
}

#[test]
fn a_range_that_may_not_be_written_cannot_be_wired() {
    let f = block();
    f.vm().vm_map_unwire(f.map, f.at(0), f.at(8)).expect("it is wired");
    f.protect(4, 8, R).expect("it is allowed");
    let wire = f.vm().vm_map_wire(f.map, f.at(0), f.at(8));
    assert_eq!(wire, Err(KernReturn::ProtectionFailure));
    f.protect(4, 8, RW).expect("it is allowed");
    f.vm().vm_map_wire(f.map, f.at(0), f.at(8)).expect("it may be written");
    check(&f.sim);
}

#[test]
fn holes_are_passed_over() {
    let f = block();
    f.remove(2, 3);
    f.remove(5, 6);
    f.protect(0, 100, R).expect("it is allowed");
    assert_eq!(f.allowed(), [(0, 2, R), (3, 5, R), (6, 8, R)]);
    f.protect(100, 200, NONE).expect("there is nothing");
    f.protect(3, 3, NONE).expect("it is empty");
    assert_eq!(f.allowed(), [(0, 2, R), (3, 5, R), (6, 8, R)]);
    check(&f.sim);
}

#[test]
fn a_submap_in_the_range_is_refused_and_nothing_has_changed() {
    let f = block();
    let (vm, map) = (f.vm(), f.map);
    let _ = vm.kmem_suballoc(map, 4 * PAGE_SIZE);
    let before = f.allowed();
    assert_eq!(f.protect(3, 9, R), Err(KernReturn::InvalidArgument));
    assert_eq!(f.allowed(), before);
    f.fill(f.at(0), 8 * PAGE_SIZE, 7);
}

#[test]
fn more_than_the_maximum_is_refused_and_nothing_has_changed() {
    let f = block();
    let spec = EntrySpec { protection: R, max_protection: R, ..f.kmem_spec(8) };
    f.insert(&spec, 8, 10).expect("there is room");
    let before = f.allowed();
    assert_eq!(f.protect(3, 9, RW), Err(KernReturn::ProtectionFailure));
    assert_eq!(f.allowed(), before);
    f.protect(3, 9, NONE).expect("less is allowed");
}

#[test]
fn a_range_is_confined_to_the_map() {
    let f = block();
    let end = GuestVirt::new(u64::MAX & !(PAGE_SIZE - 1));
    f.vm().vm_map_protect(f.map, KERNBASE.min(f.min), end, R).expect("it is allowed");
    assert_eq!(f.allowed(), [(0, 8, R)]);
}

#[test]
fn without_a_page_for_the_entries_of_the_cuts_it_is_refused_and_nothing_has_changed() {
    let f = Fixture::new();
    assert_eq!(f.vm().kmem_alloc_nofault(f.map, 200 * PAGE_SIZE), Some(f.at(0)));
    f.drain(0);
    let mut before = f.allowed();
    for page in (0..200).step_by(2) {
        if let Err(code) = f.protect(page, page + 1, R) {
            assert_eq!((code, page > 0), (KernReturn::ResourceShortage, true));
            assert_eq!(f.allowed(), before);
            return;
        }
        before = f.allowed();
    }
    panic!("a hundred cuts take no page");
}

/// A pageable map of 16 pages with a range of 8.
fn pageable() -> (Fixture, KPtr<VmMap>, GuestVirt) {
    let f = Fixture::new();
    let map = f.vm().kmem_suballoc(f.vm().kernel_map(), 16 * PAGE_SIZE);
    let addr = f.vm().kmem_alloc_wait(map, 8 * PAGE_SIZE).expect("there is room");
    (f, map, addr)
}

#[test]
fn a_page_that_was_written_is_dirty_when_it_becomes_read_only() {
    let (f, map, addr) = pageable();
    f.sim.write(addr, 1);
    let _ = f.sim.read(addr.add(PAGE_SIZE));
    let m = |page: u64| {
        let pa = f.vm().pmap_extract(addr.add(page * PAGE_SIZE)).expect("it is mapped");
        f.vm().get(f.vm().phys_to_vm_page(pa).expect("it is managed"))
    };
    f.vm().vm_map_protect(map, addr, addr.add(8 * PAGE_SIZE), R).expect("it is allowed");
    assert_eq!((m(0).dirty.get(), m(1).dirty.get()), (VM_PAGE_BITS_ALL, 0));
    check(&f.sim);
}

#[test]
fn a_pageable_range_that_is_closed_gets_no_page_until_it_is_open_again() {
    let (f, map, addr) = pageable();
    let (end, free) = (addr.add(8 * PAGE_SIZE), f.vm().cnt().v_free_count.get());
    f.vm().vm_map_protect(map, addr, end, NONE).expect("it is allowed");
    assert_eq!(f.vm().trap_pfault(addr, FaultType::Read), Err(KernReturn::ProtectionFailure));
    assert_eq!(f.vm().cnt().v_free_count.get(), free);
    f.vm().vm_map_protect(map, addr, end, RW).expect("it is allowed");
    f.fill(addr, 8 * PAGE_SIZE, 3);
    check(&f.sim);
}
