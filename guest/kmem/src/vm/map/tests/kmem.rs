//! The entries that the functions of `vm_kern.c` leave in a map.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::control::MallocFlags;
use vmkern_abi::kva::VM_MIN_KERNEL_ADDRESS;

use super::Fixture;

fn malloc(f: &Fixture, pages: u64) -> Option<u64> {
    f.vm().kmem_malloc(f.map, pages * PAGE_SIZE, MallocFlags::NOWAIT).map(|va| f.page(va))
}

#[test]
fn kmem_malloc_neighbours_merge_when_wired_equally() {
    let f = Fixture::new();
    let refs = f.kmem_refs();
    assert_eq!([malloc(&f, 3), malloc(&f, 2), malloc(&f, 1)], [Some(0), Some(3), Some(5)]);
    assert_eq!(f.ranges(), [(0, 6)]);
    assert_eq!(f.kmem_refs(), refs + 1, "one reference an entry");
    f.entry(0).wired_count.set(2);
    assert_eq!(malloc(&f, 1), Some(6));
    assert_eq!(f.ranges(), [(0, 6), (6, 7)]);
    f.entry(0).wired_count.set(1);
}

#[test]
fn a_block_that_fills_a_hole_joins_both_sides() {
    let f = Fixture::new();
    for page in 0..3 {
        assert_eq!(malloc(&f, 1), Some(page));
    }
    f.vm().kmem_free(f.map, f.at(1), PAGE_SIZE);
    assert_eq!(f.ranges(), [(0, 1), (2, 3)]);
    assert_eq!(malloc(&f, 1), Some(1));
    assert_eq!(f.ranges(), [(0, 3)]);
}

#[test]
fn blocks_of_different_objects_do_not_merge() {
    let f = Fixture::new();
    assert_eq!(malloc(&f, 1), Some(0));
    f.vm().kmem_alloc(f.map, PAGE_SIZE).expect("room");
    f.vm().kmem_alloc_nofault(f.map, PAGE_SIZE).expect("room");
    assert_eq!(f.ranges(), [(0, 1), (1, 2), (2, 3)]);
}

#[test]
fn offsets_count_from_the_first_kernel_address_in_every_map() {
    let f = Fixture::new();
    malloc(&f, 1);
    f.vm().kmem_alloc(f.map, PAGE_SIZE).expect("room");
    for page in [0, 1] {
        assert_eq!(f.entry(page).offset.get(), f.at(page).since(VM_MIN_KERNEL_ADDRESS));
    }
}

#[test]
fn a_rollback_for_lack_of_pages_leaves_map_and_references_alone() {
    let f = Fixture::new();
    let vm = f.vm();
    malloc(&f, 1);
    f.drain(7);
    let before =
        (f.map().nentries.get(), f.map().size.get(), f.kmem_refs(), vm.cnt().v_free_count.get());
    assert_eq!(malloc(&f, 8), None);
    let after =
        (f.map().nentries.get(), f.map().size.get(), f.kmem_refs(), vm.cnt().v_free_count.get());
    assert_eq!(after, before);
    assert_eq!(f.ranges(), [(0, 1)]);
}
