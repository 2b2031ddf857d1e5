//! `vm_map_delete`, `vm_map_remove` and `kmem_free`.

use vmkern_abi::addr::{GuestVirt, PAGE_SIZE};
use vmkern_abi::control::MallocFlags;
use vmkern_abi::kva::{VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};

use super::super::{EntrySpec, FindSpace};
use super::{Fixture, PAGES};

/// Four pages from `kmem_malloc` at page 0.
fn four_pages() -> Fixture {
    let f = Fixture::new();
    assert_eq!(f.vm().kmem_malloc(f.map, 4 * PAGE_SIZE, MallocFlags::NOWAIT), Some(f.min));
    f
}

#[test]
fn freeing_the_middle_of_a_merged_nofault_entry_splits_it() {
    let f = Fixture::new();
    for _ in 0..3 {
        f.vm().kmem_alloc_nofault(f.map, 2 * PAGE_SIZE).expect("room");
    }
    assert_eq!(f.ranges(), [(0, 6)]);
    f.vm().kmem_free(f.map, f.at(2), 2 * PAGE_SIZE);
    assert_eq!(f.ranges(), [(0, 2), (4, 6)]);
    assert_eq!(f.map().size.get(), 4 * PAGE_SIZE);
}

#[test]
fn freeing_the_middle_of_wired_memory_keeps_the_rest_and_counts_references() {
    let f = four_pages();
    let (refs, free) = (f.kmem_refs(), f.vm().cnt().v_free_count.get());
    f.sim.write(f.at(0), 17);
    f.sim.write(f.at(3), 18);
    f.vm().kmem_free(f.map, f.at(1), 2 * PAGE_SIZE);
    assert_eq!(f.ranges(), [(0, 1), (3, 4)]);
    assert_eq!(f.kmem_refs(), refs + 1);
    assert_eq!(f.vm().cnt().v_free_count.get(), free + 2);
    assert_eq!((f.sim.read(f.at(0)), f.sim.read(f.at(3))), (17, 18));
    assert_eq!(f.entry(3).wired_count.get(), 1);
}

#[test]
#[should_panic(expected = "page fault")]
fn freed_memory_is_out_of_reach() {
    let f = four_pages();
    f.sim.write(f.at(1), 1);
    f.vm().kmem_free(f.map, f.at(1), PAGE_SIZE);
    let _ = f.sim.read(f.at(1));
}

#[test]
fn free_of_a_hole_is_a_no_op() {
    let f = four_pages();
    let before = (
        f.map().nentries.get(),
        f.map().size.get(),
        f.kmem_refs(),
        f.vm().cnt().v_free_count.get(),
    );
    f.vm().kmem_free(f.map, f.at(10), 5 * PAGE_SIZE);
    f.vm().kmem_free(f.map, f.at(4), PAGE_SIZE);
    let after = (
        f.map().nentries.get(),
        f.map().size.get(),
        f.kmem_refs(),
        f.vm().cnt().v_free_count.get(),
    );
    assert_eq!(after, before);
    assert_eq!(f.ranges(), [(0, 4)]);
}

#[test]
fn a_second_free_of_the_same_range_is_a_no_op() {
    let f = four_pages();
    f.vm().kmem_free(f.map, f.at(0), 4 * PAGE_SIZE);
    let free = f.vm().cnt().v_free_count.get();
    f.vm().kmem_free(f.map, f.at(0), 4 * PAGE_SIZE);
    assert_eq!(f.vm().cnt().v_free_count.get(), free);
    assert_eq!(f.ranges(), []);
}

#[test]
fn free_with_size_0_splits_the_entry_at_an_aligned_address() {
    let f = four_pages();
    let refs = f.kmem_refs();
    f.vm().kmem_free(f.map, f.at(2), 0);
    assert_eq!(f.ranges(), [(0, 2), (2, 4)]);
    assert_eq!(f.kmem_refs(), refs + 1);
    f.vm().kmem_free(f.map, f.at(0), 0);
    assert_eq!(f.ranges(), [(0, 2), (2, 4)], "an entry's start needs no cut");
}

#[test]
fn free_with_size_0_frees_the_page_of_an_unaligned_address() {
    let f = four_pages();
    f.vm().kmem_free(f.map, f.at(2).add(1), 0);
    assert_eq!(f.ranges(), [(0, 2), (3, 4)]);
}

#[test]
fn unaligned_free_widens_to_whole_pages() {
    let f = four_pages();
    f.vm().kmem_free(f.map, f.at(1).add(PAGE_SIZE - 1), 2);
    assert_eq!(f.ranges(), [(0, 1), (3, 4)]);
}

#[test]
fn a_free_across_entries_and_holes_takes_all_that_is_there() {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 0, 4).expect("free");
    f.insert(&EntrySpec::NOFAULT, 6, 8).expect("free");
    f.insert(&EntrySpec::EMPTY, 8, 12).expect("free");
    f.remove(2, 10);
    assert_eq!(f.ranges(), [(0, 2), (10, 12)]);
}

#[test]
fn a_remove_is_confined_to_the_map() {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 0, PAGES).expect("free");
    f.vm().vm_map_remove(f.map, GuestVirt::new(0), f.at(1));
    f.vm().vm_map_remove(f.map, f.at(PAGES - 1), GuestVirt::new(u64::MAX - 4095));
    assert_eq!(f.ranges(), [(1, PAGES - 1)]);
    f.vm().vm_map_remove(f.map, f.at(PAGES + 5), f.at(PAGES + 9));
    f.vm().vm_map_remove(f.map, GuestVirt::new(0), GuestVirt::new(4096));
    assert_eq!(f.ranges(), [(1, PAGES - 1)]);
}

#[test]
fn a_range_that_ends_before_it_starts_is_empty() {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 0, 8).expect("free");
    f.remove(20, 10);
    assert_eq!(f.ranges(), [(0, 8)]);
}

#[test]
fn a_range_whose_end_wraps_frees_nothing() {
    let f = four_pages();
    f.vm().kmem_free(f.map, f.at(0), u64::MAX);
    f.vm().kmem_free(f.map, f.at(0), 0u64.wrapping_sub(f.min.get()));
    assert_eq!(f.ranges(), [(0, 4)]);
}

#[test]
fn all_wirings_go_at_once() {
    let f = Fixture::new();
    let free = f.vm().cnt().v_free_count.get();
    let addr = f.vm().kmem_alloc(f.map, 2 * PAGE_SIZE).expect("room");
    f.vm().vm_map_wire(f.map, addr, addr.add(PAGE_SIZE)).expect("no hole");
    assert_eq!(f.entry(0).wired_count.get(), 2);
    f.vm().kmem_free(f.map, addr, 2 * PAGE_SIZE);
    assert_eq!(f.ranges(), []);
    assert!(f.vm().cnt().v_free_count.get() >= free - 1, "at most a page of the reserve stays");
}

#[test]
fn a_submap_entry_goes_without_its_submap() {
    let f = Fixture::new();
    let inner = f.vm().kmem_suballoc(f.map, 8 * PAGE_SIZE);
    f.vm().get(inner).system_map.raise();
    f.vm().kmem_alloc_nofault(inner, PAGE_SIZE).expect("room");
    f.remove(0, 8);
    assert_eq!(f.ranges(), []);
    assert_eq!(f.vm().get(inner).nentries.get(), 1);
}

#[test]
fn a_range_freed_at_the_very_end_keeps_the_size_of_its_object() {
    let f = Fixture::new();
    let (map, object) = (f.vm().kernel_map(), f.vm().kernel_object());
    let size = f.vm().get(object).size.get();
    let last = GuestVirt::new(VM_MAX_KERNEL_ADDRESS.get() - PAGE_SIZE);
    let offset = last.since(VM_MIN_KERNEL_ADDRESS);
    assert_eq!((offset + PAGE_SIZE) / PAGE_SIZE, size, "the map ends where the object ends");
    f.vm().vm_object_reference(object);
    let spec = EntrySpec::object(object, offset);
    assert_eq!(f.vm().vm_map_find(map, &spec, last, PAGE_SIZE, FindSpace::Exact), Ok(last));
    f.vm().kmem_free(map, last, PAGE_SIZE);
    assert_eq!(f.vm().get(object).size.get(), size);
}
