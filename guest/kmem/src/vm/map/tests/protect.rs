//! `vm_map_protect`.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SIZE};
use vmkern_abi::control::{KernReturn, MallocFlags, MapId, Op, Outcome};
use vmkern_abi::kva::KERNBASE;
use vmkern_abi::layout::{Protection, VM_PAGE_BITS_ALL, VmMap};
use vmkern_abi::pte::PteFlags;
use vmkern_abi::walk;

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

/// Whether the tables let no CPU fetch an instruction from any page of the block.
fn nothing_is_executable(f: &Fixture) -> bool {
    let pml4 = f.vm().state().kernel_pmap.pml4.get();
    (0..8).all(|page| {
        let Ok(walk) = walk::walk(&f.sim.machine(), pml4, f.at(page));
        walk.mapping.is_none_or(|mapping| mapping.flags.contains(PteFlags::NX))
    })
}

#[test]
fn after_any_sequence_of_protects_no_translation_is_writable_and_executable() {
    let choices = [NONE, R, RW, ALL, R.union(Protection::EXECUTE)];
    let f = block();
    for sequence in 0..choices.len().pow(3) {
        let picked = |n: u32| choices[sequence / choices.len().pow(n) % choices.len()];
        for (n, (start, end)) in [(0, (0, 5)), (1, (3, 8)), (2, (2, 4))] {
            f.protect(start, end, picked(n)).expect("it is allowed");
            for page in 0..8 {
                for fault in [FaultType::Read, FaultType::Write, FaultType::Execute] {
                    let allowed = f.entry(page).protection.get();
                    let expected = match fault {
                        FaultType::Read => allowed.contains(R),
                        FaultType::Write => allowed.contains(Protection::WRITE),
                        FaultType::Execute => false,
                    };
                    assert_eq!(f.access(page, fault).is_ok(), expected, "{fault:?} {allowed:?}");
                }
            }
            assert!(nothing_is_executable(&f));
        }
        check(&f.sim);
    }
}

#[test]
fn the_operation_allows_nobody_to_execute() {
    let f = block();
    for protection in [ALL, Protection::EXECUTE] {
        let op = Op::Protect { map: MapId::KMEM, addr: f.at(0), size: PAGE_SIZE, protection };
        assert_eq!(f.sim.execute(&op), Outcome::Error(KernReturn::ProtectionFailure));
    }
    assert_eq!(f.allowed(), [(0, 8, ALL)]);
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
fn an_empty_range_inside_an_entry_cuts_nothing() {
    let f = block();
    f.protect(3, 3, NONE).expect("there is nothing");
    assert_eq!(f.allowed(), [(0, 8, ALL)]);
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
    let end = GuestVirt::new(!(PAGE_SIZE - 1));
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
fn a_page_that_was_written_is_dirty_when_it_is_closed() {
    let (f, map, addr) = pageable();
    f.sim.write(addr, 1);
    let _ = f.sim.read(addr.add(PAGE_SIZE));
    let m = [0, 1].map(|page: u64| {
        let pa = f.vm().pmap_extract(addr.add(page * PAGE_SIZE)).expect("it is mapped");
        f.vm().get(f.vm().phys_to_vm_page(pa).expect("it is managed"))
    });
    f.vm().vm_map_protect(map, addr, addr.add(8 * PAGE_SIZE), NONE).expect("it is allowed");
    assert_eq!(m.map(|m| m.dirty.get()), [VM_PAGE_BITS_ALL, 0]);
    check(&f.sim);
}

#[test]
fn a_window_becomes_read_only_and_no_fault_makes_it_writable() {
    let f = Fixture::new();
    let addr = f.vm().kmem_alloc_nofault(f.map, 4 * PAGE_SIZE).expect("there is room");
    assert_eq!(f.sim.execute(&Op::PmapQenter { addr, count: 4 }), Outcome::Ok);
    f.fill(addr, 4 * PAGE_SIZE, 5);
    f.protect(0, 4, R).expect("it is allowed");
    f.verify(addr, 4 * PAGE_SIZE, 5);
    assert_eq!(f.access(1, FaultType::Write), Err(KernReturn::ProtectionFailure));
    f.protect(0, 4, RW).expect("it is allowed");
    assert!(!f.vm().pmap_is_writable(addr));
    assert_eq!(f.sim.execute(&Op::PmapQenter { addr, count: 4 }), Outcome::Ok);
    f.fill(addr, 4 * PAGE_SIZE, 6);
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
