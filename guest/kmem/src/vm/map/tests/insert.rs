//! `vm_map_insert` and its coalescing.

use vmkern_abi::addr::PAGE_SIZE;
use vmkern_abi::boot::Tunables;
use vmkern_abi::control::{KernReturn, MallocFlags};
use vmkern_abi::layout::Protection;

use super::super::{EntrySpec, OnFault};
use super::{Fixture, PAGES};
use crate::sim::Sim;
use crate::vm::Zeroed;

#[test]
fn a_range_that_is_empty_or_not_inside_the_map_is_an_invalid_address() {
    let f = Fixture::new();
    assert_eq!(f.insert(&EntrySpec::EMPTY, 3, 3), Err(KernReturn::InvalidAddress));
    assert_eq!(f.insert(&EntrySpec::EMPTY, 4, 3), Err(KernReturn::InvalidAddress));
    assert_eq!(f.insert(&EntrySpec::EMPTY, PAGES - 1, PAGES + 1), Err(KernReturn::InvalidAddress));
    let below = |vm: &crate::vm::Vm<_>| {
        let start = vmkern_abi::addr::GuestVirt::new(f.min.get() - PAGE_SIZE);
        vm.vm_map_insert(f.map, &EntrySpec::EMPTY, start, f.at(1))
    };
    assert_eq!(f.locked(|| below(f.vm())), Err(KernReturn::InvalidAddress));
    assert_eq!(f.ranges(), []);
}

#[test]
fn a_range_that_is_partly_taken_is_no_space() {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 10, 20).expect("free");
    for (start, end) in [(10, 20), (12, 14), (15, 25), (5, 11), (5, 30)] {
        assert_eq!(
            f.insert(&EntrySpec::EMPTY, start, end),
            Err(KernReturn::NoSpace),
            "{start}..{end}"
        );
    }
    assert_eq!(f.ranges(), [(10, 20)]);
}

#[test]
fn size_is_the_bytes_in_use() {
    let f = Fixture::new();
    f.insert(&EntrySpec::EMPTY, 0, 3).expect("free");
    f.insert(&EntrySpec::EMPTY, 3, 5).expect("free");
    f.insert(&EntrySpec::NOFAULT, 9, 10).expect("free");
    assert_eq!(f.map().size.get(), 6 * PAGE_SIZE);
    assert_eq!(f.map().nentries.get(), 2);
}

#[test]
fn adjacent_nofault_allocations_share_one_entry() {
    let f = Fixture::new();
    for page in 0..5 {
        let addr = f.vm().kmem_alloc_nofault(f.map, PAGE_SIZE);
        assert_eq!(addr, Some(f.at(page)));
    }
    assert_eq!(f.ranges(), [(0, 5)]);
}

#[test]
fn a_range_without_an_object_extends_the_entry_before_it_and_then_joins_the_one_after() {
    let f = Fixture::new();
    f.insert(&EntrySpec::NOFAULT, 0, 2).expect("free");
    f.insert(&EntrySpec::NOFAULT, 4, 6).expect("free");
    f.insert(&EntrySpec::NOFAULT, 2, 4).expect("free");
    assert_eq!(f.ranges(), [(0, 6)]);
}

#[test]
fn a_plain_insert_does_not_join_the_entry_after_it() {
    let f = Fixture::new();
    f.insert(&EntrySpec::NOFAULT, 4, 6).expect("free");
    f.insert(&EntrySpec::NOFAULT, 2, 4).expect("free");
    assert_eq!(f.ranges(), [(2, 4), (4, 6)]);
}

#[test]
fn coalescing_wants_equal_flags_protections_and_no_wiring() {
    let f = Fixture::new();
    f.insert(&EntrySpec::NOFAULT, 0, 2).expect("free");
    f.insert(&EntrySpec::EMPTY, 2, 4).expect("free");
    let read_only = EntrySpec { protection: Protection::READ, ..EntrySpec::EMPTY };
    f.insert(&read_only, 4, 6).expect("free");
    let read_only_for_ever = EntrySpec { max_protection: Protection::READ, ..read_only };
    f.insert(&read_only_for_ever, 6, 8).expect("free");
    f.entry(6).wired_count.set(1);
    f.insert(&read_only_for_ever, 8, 10).expect("free");
    f.entry(6).wired_count.set(0);
    assert_eq!(f.ranges(), [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]);
}

#[test]
fn a_range_of_an_object_is_always_an_entry_of_its_own() {
    let f = Fixture::new();
    f.insert(&f.kmem_spec(0), 0, 2).expect("free");
    f.insert(&f.kmem_spec(2), 2, 4).expect("free");
    f.insert(&EntrySpec::EMPTY, 4, 6).expect("free");
    assert_eq!(f.ranges(), [(0, 2), (2, 4), (4, 6)]);
}

#[test]
#[should_panic(expected = "vm_map_insert: paradoxical MAP_NOFAULT request")]
fn a_nofault_range_has_no_object() {
    let f = Fixture::new();
    let spec = EntrySpec { on_fault: OnFault::Panic, ..f.kmem_spec(0) };
    let _ = f.insert(&spec, 0, 1);
}

#[test]
fn the_free_range_before_the_boot_entry_is_used_first() {
    let f = Fixture::new();
    let kernel_map = f.vm().kernel_map();
    let first = f.vm().vm_map_entries(kernel_map).next().expect("kernel_map has entries");
    assert_eq!(f.vm().get(first).start.get(), f.vm().get(kernel_map).min_offset());
    f.vm().vm_map_check(kernel_map).expect("the map is sound");
}

#[test]
fn an_entry_from_memory_full_of_garbage_has_no_deleter() {
    let sim = Sim::boot_with(64 << 20, Tunables::default(), Zeroed::No);
    let vm = sim.vm();
    let map = vm.kmem_suballoc(vm.kernel_map(), PAGES * PAGE_SIZE);
    vm.get(map).system_map.raise();
    let a = vm.kmem_malloc(map, 4 * PAGE_SIZE, MallocFlags::NOWAIT).expect("there is room");
    vm.kmem_free(map, a.add(PAGE_SIZE), PAGE_SIZE);
    assert_eq!(vm.vm_map_entries(map).count(), 2, "one was inserted, one cut off");
    assert!(vm.vm_map_entries(map).all(|entry| vm.get(entry).deleter.get() == 0));
}

#[test]
fn a_range_behind_a_read_only_one_shares_its_object_and_counts_as_one_that_may_lack_pages() {
    let f = Fixture::new();
    let map = f.vm().kmem_suballoc(f.vm().kernel_map(), 16 * PAGE_SIZE);
    let plain = || f.vm().get(map).reserve.plain_pages.get();
    let first = f.vm().kmem_alloc_wait(map, 2 * PAGE_SIZE).expect("there is room");
    f.sim.write(first, 1);
    let end = first.add(2 * PAGE_SIZE);
    f.vm().vm_map_protect(map, first, end, Protection::READ).expect("it is allowed");
    assert_eq!(f.vm().kmem_alloc_wait(map, 3 * PAGE_SIZE), Some(end));
    assert_eq!((f.vm().vm_map_entries(map).count(), plain()), (2, 5));
    f.vm().kmem_free_wakeup(map, first, 5 * PAGE_SIZE);
    assert_eq!(plain(), 0);
}
