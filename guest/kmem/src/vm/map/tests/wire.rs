//! `vm_map_wire`.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::KernReturn;
use vmkern_abi::layout::EntryFlags;

use super::super::EntrySpec;
use super::Fixture;

/// Two blocks from `kmem_alloc`, pages 0 to 2 and 2 to 4.
fn two_blocks() -> Fixture {
    let f = Fixture::new();
    for page in [0, 2] {
        assert_eq!(f.vm().kmem_alloc(f.map, 2 * PAGE_SIZE), Some(f.at(page)));
    }
    f
}

#[test]
fn kmem_alloc_neighbours_merge_when_wired_equally() {
    let f = two_blocks();
    assert_eq!(f.ranges(), [(0, 4)]);
    assert_eq!(f.entry(0).wired_count.get(), 1);
}

#[test]
fn a_second_wiring_cuts_the_entry_and_keeps_it_apart() {
    let f = two_blocks();
    f.vm().vm_map_wire(f.map, f.at(1), f.at(3)).expect("no hole");
    assert_eq!(f.ranges(), [(0, 1), (1, 3), (3, 4)]);
    assert_eq!([0, 1, 3].map(|page| f.entry(page).wired_count.get()), [1, 2, 1]);
    let wired = f.vm().cnt().v_wire_count.get();
    f.vm().vm_map_wire(f.map, f.at(1), f.at(3)).expect("no hole");
    assert_eq!(f.vm().cnt().v_wire_count.get(), wired, "pages are counted, not wirings");
}

#[test]
fn a_range_that_starts_in_a_hole_is_refused() {
    let f = two_blocks();
    assert_eq!(f.vm().vm_map_wire(f.map, f.at(10), f.at(12)), Err(KernReturn::InvalidAddress));
}

#[test]
fn a_hole_in_the_range_undoes_the_wiring() {
    let f = two_blocks();
    f.vm().kmem_alloc_nofault(f.map, PAGE_SIZE).expect("room");
    f.remove(2, 3);
    assert_eq!(f.vm().vm_map_wire(f.map, f.at(0), f.at(4)), Err(KernReturn::InvalidAddress));
    assert_eq!(f.ranges(), [(0, 2), (3, 4), (4, 5)]);
    assert_eq!([0, 3].map(|page| f.entry(page).wired_count.get()), [1, 1]);
}

#[test]
fn a_range_past_the_last_entry_undoes_the_wiring() {
    let f = two_blocks();
    assert_eq!(f.vm().vm_map_wire(f.map, f.at(0), f.at(6)), Err(KernReturn::InvalidAddress));
    assert_eq!(f.entry(0).wired_count.get(), 1);
    assert_eq!(f.entry(0).eflags.get(), EntryFlags::empty());
}

#[test]
fn a_fault_that_fails_leaves_the_range_unwired() {
    let f = Fixture::new();
    f.vm().kmem_alloc(f.map, 2 * PAGE_SIZE).expect("room");
    // There is no object, so nothing can be wired.
    f.insert(&EntrySpec::EMPTY, 2, 4).expect("free");
    assert_eq!(f.vm().vm_map_wire(f.map, f.at(0), f.at(4)), Err(KernReturn::Failure));
    assert_eq!(f.ranges(), [(0, 2), (2, 4)]);
    assert_eq!([0, 2].map(|page| f.entry(page).wired_count.get()), [1, 0]);
}
